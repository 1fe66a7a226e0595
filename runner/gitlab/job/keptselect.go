package job

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/runnerd/runnerd/sandbox"
)

// packUser is as whom files are packed: as gitlab-runner's helper, which reads what scripts have made as others, but not
// what links lead to outside of the project.
const packUser = "0:0"

// pack begins to pack what paths and exclude match, and what git does not track.
func (k *Kept) pack(ctx context.Context, s Selection, untracked bool) (Packing, error) {
	s.Dir, s.User, s.Beneath = k.Dir, packUser, true
	if !untracked {
		return k.Archiver.Pack(ctx, k.On, s)
	}
	names, list, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	listed := make(chan error, 1)
	go func() {
		err := k.untracked(ctx, list)
		_ = list.Close()
		listed <- err
	}()
	s.Untracked = names
	p, err := k.Archiver.Pack(ctx, k.On, s)
	_ = names.Close() // it was read to its end, or nobody will
	if failed := <-listed; failed != nil && err == nil {
		k.warn("untracked: %v", failed)
	}
	return p, err
}

// untracked lists what git does not track, ignored files too (GitLab, artifacts:untracked). The repository's own
// configuration must not name a program to run, and the repository may be another user's.
func (k *Kept) untracked(ctx context.Context, out *os.File) error {
	on := k.Helper
	if on == nil {
		on = k.On
	}
	var complaint complaint
	exit, err := on.Exec(ctx, sandbox.Process{
		Args: []string{"git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "ls-files", "--others", "-z"},
		Dir:  k.Dir, Stdout: out, Stderr: &complaint,
	})
	if err == nil && !exit.Success() {
		err = fmt.Errorf("exit status %d: %s", exit.Code, strings.TrimSpace(complaint.String()))
	}
	return err
}

// complaint keeps the beginning of what a program says.
type complaint struct{ bytes.Buffer }

func (c *complaint) Write(p []byte) (int, error) {
	const most = 2000
	c.Buffer.Write(p[:max(0, min(len(p), most-c.Len()))])
	return len(p), nil
}

// tell says what was found.
func (k *Kept) tell(s Selection, untracked bool, f Found) {
	for i, m := range f.Paths {
		switch path := s.Paths[i]; {
		case path == "":
			k.warn("No matching files. Path is empty.")
		case m.Wrong != "":
			k.wrong("processPath", path)
		case m.Entries == 0:
			k.warn("%s: no matching files. Ensure that the artifact path is relative to the working directory (%s)", path, k.Dir)
		default:
			k.info("%s: found %d matching artifact files and directories", path, m.Entries)
		}
	}
	if untracked && f.Untracked == 0 {
		k.warn("untracked: no files")
	} else if untracked {
		k.info("untracked: found %d files", f.Untracked)
	}
	for i, m := range f.Excluded {
		if m.Wrong != "" {
			k.wrong("isExcluded", s.Exclude[i])
		} else if m.Entries > 0 {
			k.info("%s: excluded %d files", s.Exclude[i], m.Entries)
		}
	}
	if f.Git {
		k.git("archive")
	}
}

// wrong says what is wrong about a pattern.
func (k *Kept) wrong(where, pattern string) {
	if !doublestar.ValidatePattern(pattern) {
		k.warn("%s: %v", pattern, doublestar.ErrBadPattern)
		return
	}
	k.warn("%s: artifact path is not a subpath of project directory: %s", where, pattern)
}

func (k *Kept) git(doing string) {
	k.warn("Part of .git directory is on the list of files to %s", doing)
	k.warn("This may introduce unexpected problems")
}

// expand expands the variables in each.
func (k *Kept) expand(texts []string) []string {
	out := make([]string, len(texts))
	for i, text := range texts {
		out[i] = k.Variables.Expand(text)
	}
	return out
}
