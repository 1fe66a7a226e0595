package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/tonistiigi/fsutil"
)

// Manifest are the files of a local directory that a build asked for.
type Manifest struct {
	Files []File `json:"files"` // by path
	// Partial says why not all is known: there were more files or bytes than are recorded.
	Partial string `json:"partial,omitempty"`
}

// File is one file, directory or link.
type File struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"`
	Size int64       `json:"size,omitempty"` // bytes
	// Sum is the SHA-256 of a plain file's contents, or the target of a link. A plain file without is not known.
	Sum string `json:"sum,omitempty"`
}

// How much of a directory is recorded: what takes about half a second to read.
const (
	maxManifestFiles = 20_000
	maxManifestBytes = 256 << 20
)

// asked is which files of a directory BuildKit asks for.
type asked struct{ include, exclude, follow []string }

var errEnough = errors.New("enough")

// manifest reads the files of a directory that BuildKit asks for, as its client finds them.
func (b Build) manifest(ctx context.Context, dir string, a asked) (m Manifest) {
	fail := func(err error) Manifest {
		m.Partial = err.Error()
		return m
	}
	local, err := b.open(dir)
	if err != nil {
		return fail(err)
	}
	if local, err = fsutil.NewFilterFS(local, &fsutil.FilterOpt{IncludePatterns: a.include, ExcludePatterns: a.exclude, FollowPaths: a.follow}); err != nil {
		return fail(err)
	}
	real, err := b.inside(dir)
	if err != nil {
		return fail(err)
	}
	root, err := os.OpenRoot(filepath.Join(b.Dir, real))
	if err != nil {
		return fail(err)
	}
	defer func() { _ = root.Close() }()
	left := int64(maxManifestBytes)
	err = local.Walk(ctx, "", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if len(m.Files) == maxManifestFiles {
			m.Partial = fmt.Sprintf("more than %d files", maxManifestFiles)
			return errEnough
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		f := File{Path: filepath.ToSlash(name), Mode: info.Mode()}
		switch {
		case f.Mode.IsRegular():
			f.Size = info.Size()
			if left -= f.Size; left < 0 {
				m.Partial = fmt.Sprintf("more than %d MiB", maxManifestBytes>>20)
			} else if f.Sum, err = sumFile(root, name); err != nil {
				return err
			}
		case f.Mode&fs.ModeSymlink != 0:
			if f.Sum, err = root.Readlink(name); err != nil {
				return err
			}
		}
		m.Files = append(m.Files, f)
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return fail(err)
	}
	return m
}

func sumFile(root *os.Root, name string) (string, error) {
	f, err := root.Open(name)
	if err != nil {
		return "", err
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Taken returns the files that t takes, in order.
func (m Manifest) Taken(t Taken) (out []File) {
	takes := t.Matcher()
	for _, f := range m.Files {
		if takes(f.Path) {
			out = append(out, f)
		}
	}
	return out
}

// Matcher tells whether t takes a path.
func (t Taken) Matcher() func(path string) bool {
	include, exclude := matcher(t.Include), matcher(t.Exclude)
	return func(path string) bool {
		below, ok := t.has(path)
		return ok && (include == nil || matches(include, below)) && (exclude == nil || !matches(exclude, below))
	}
}

// sum is the digest of all that is taken, or empty if not all of it is known.
func (m Manifest) sum(takes []Taken) string {
	h := sha256.New()
	for _, t := range takes {
		_, _ = fmt.Fprintf(h, "%q\n", t.Paths)
		for _, f := range m.Taken(t) {
			if f.Mode.IsRegular() && f.Sum == "" {
				return ""
			}
			_, _ = fmt.Fprintf(h, "%q %o %d %q\n", f.Path, f.Mode, f.Size, f.Sum)
		}
	}
	if m.Partial != "" && (len(m.Files) == 0 || len(m.Files) == maxManifestFiles) {
		return ""
	}
	return "files:" + hex.EncodeToString(h.Sum(nil))
}

// has tells whether a path is one of t's, or below one, and what it is called there: patterns are relative to the
// path that is taken.
func (t Taken) has(name string) (below string, ok bool) {
	parts := strings.Split(name, "/")
	for _, p := range t.Paths {
		if p == "." {
			return name, true
		}
		n := strings.Count(p, "/") + 1
		if len(parts) < n {
			continue
		}
		first := strings.Join(parts[:n], "/")
		if match, _ := path.Match(p, first); !match && first != p {
			continue
		}
		if len(parts) == n { // the path itself: a file goes by its name
			return parts[n-1], true
		}
		return strings.Join(parts[n:], "/"), true
	}
	return "", false
}

// cleanPath is a path of a definition as manifests have it.
func cleanPath(p string) string {
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p == "" {
		return "."
	}
	return p
}

func matcher(patterns []string) *patternmatcher.PatternMatcher {
	if len(patterns) == 0 {
		return nil
	}
	var relative []string
	for _, p := range patterns {
		relative = append(relative, strings.TrimPrefix(p, "/"))
	}
	m, err := patternmatcher.New(relative)
	if err != nil {
		return nil
	}
	return m
}

func matches(m *patternmatcher.PatternMatcher, name string) bool {
	ok, err := m.MatchesOrParentMatches(name)
	return ok && err == nil
}
