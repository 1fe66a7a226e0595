package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// project is the directory whose pipeline runs. It need not be a git repository.
type project struct {
	dir       string // its top
	file      string // the pipeline's, below dir, with slashes
	path      string // group/name, for CI_PROJECT_PATH and what is kept between jobs
	git       bool   // there is a repository with a commit
	committed bool   // only what is committed counts

	branch, tag, defaultBranch string

	root  *os.Root // what the pipeline is read from: nothing outside of it
	clone string   // of what is committed; empty: dir itself
}

const pipelineFile = ".gitlab-ci.yml"

// openProject finds the project that a file belongs to. It must be closed.
func openProject(ctx context.Context, file string, f execFlags) (p *project, err error) {
	if file, err = filepath.Abs(file); err != nil {
		return nil, err
	}
	if _, err := os.Stat(file); err != nil {
		return nil, fmt.Errorf("read the pipeline: %w: name the file as the first argument, or go where it is", err)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	file = filepath.Join(dir, filepath.Base(file))
	p = &project{dir: dir, committed: f.committed, branch: f.branch, tag: f.tag}
	top, err := p.run(ctx, "rev-parse", "--show-toplevel")
	switch {
	case err == nil:
		p.dir = top
		_, err := p.run(ctx, "rev-parse", "--verify", "--quiet", "HEAD")
		p.git = err == nil
	case strings.Contains(err.Error(), "safe.directory"):
		// Its configuration may name programs, which git would start as this user.
		return nil, fmt.Errorf("%w\nOr run this command as the owner: the daemon's socket decides who may", err)
	}
	if p.file, err = filepath.Rel(p.dir, file); err != nil {
		return nil, err
	}
	p.file = filepath.ToSlash(p.file)
	p.path = projectPath(p.dir)
	if err := p.refs(ctx); err != nil {
		return nil, err
	}
	read := p.dir
	if p.committed {
		if err := p.checkout(ctx); err != nil {
			return nil, errors.Join(err, p.close())
		}
		read = p.clone
	}
	if p.root, err = os.OpenRoot(read); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

var notPath = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// projectPath names a directory as a project. Directories of the same name are told apart, as they share no caches.
func projectPath(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	name := strings.Trim(notPath.ReplaceAllString(filepath.Base(dir), "-"), "-.")
	if name == "" {
		name = "project"
	}
	return "local-" + hex.EncodeToString(sum[:4]) + "/" + name
}

// address is where the server of a project listens: below the ports that the kernel gives away.
func (p *project) address() string {
	sum := sha256.Sum256([]byte(p.path))
	return fmt.Sprintf("127.0.0.1:%d", 20000+binary.BigEndian.Uint16(sum[:])%10000)
}

// refs finds out which branch this is, and which the default one.
func (p *project) refs(ctx context.Context) error {
	p.defaultBranch = "main"
	current, err := p.run(ctx, "symbolic-ref", "--quiet", "--short", "HEAD")
	if err == nil {
		p.defaultBranch = current
	}
	if remote, err := p.run(ctx, "symbolic-ref", "--quiet", "--short", "refs/remotes/origin/HEAD"); err == nil {
		p.defaultBranch = strings.TrimPrefix(remote, "origin/")
	} else {
		for _, name := range []string{"main", "master"} {
			if _, err := p.run(ctx, "rev-parse", "--verify", "--quiet", "refs/heads/"+name); err == nil {
				p.defaultBranch = name
				break
			}
		}
	}
	if p.branch != "" && p.tag != "" {
		return errors.New("--branch and --tag exclude each other")
	}
	for _, ref := range []string{p.branch, p.tag} {
		if ref == "" {
			continue
		}
		if _, err := git(ctx, "", "check-ref-format", "refs/heads/"+ref); err != nil {
			return fmt.Errorf("%q cannot be the name of a branch or tag", ref)
		}
	}
	if p.branch == "" && p.tag == "" {
		if p.branch = current; p.branch == "" {
			p.branch = p.defaultBranch
		}
	}
	return nil
}

// checkout clones what is committed. The clone borrows the project's objects.
func (p *project) checkout(ctx context.Context) error {
	if !p.git {
		return fmt.Errorf("--committed: nothing is committed in %s", p.dir)
	}
	var err error
	if p.clone, err = os.MkdirTemp("", "runnerd-exec-"); err != nil {
		return err
	}
	_, err = git(ctx, "", "clone", "--quiet", "--shared", "--no-tags", "--", p.dir, p.clone)
	return err
}

func (p *project) close() error {
	var err error
	if p.root != nil {
		err = p.root.Close()
	}
	if p.clone != "" {
		err = errors.Join(err, os.RemoveAll(p.clone))
	}
	return err
}

// snapshot is the directory that the jobs get.
func (p *project) snapshot() string {
	if p.clone != "" {
		return p.clone
	}
	return p.dir
}

func (p *project) fs() fs.FS { return p.root.FS() }

// options say what the pipeline is made for.
func (p *project) options(ctx context.Context, f execFlags, variables map[string]string) (ciyaml.Options, error) {
	o := ciyaml.Options{
		Source: f.source, DefaultBranch: p.defaultBranch, ProjectPath: p.path, Protected: true,
		Predefined: p.predefined(ctx, f), Variables: variables,
	}
	if o.Branch, o.Tag = p.branch, p.tag; o.Tag != "" {
		o.Branch = ""
	}
	if !p.git {
		return o, nil
	}
	var err error
	if o.Files, err = p.files(ctx); err != nil {
		return o, err
	}
	o.ChangedSince = func(ref string) ([]string, error) { return p.changedSince(ctx, ref) }
	if o.Changed, err = p.changed(ctx, f.source); err != nil {
		return o, err
	}
	return o, nil
}

// predefined are variables that rules often look at. The server of the pipeline makes those that jobs get.
func (p *project) predefined(ctx context.Context, f execFlags) map[string]string {
	all := map[string]string{
		"CI_CONFIG_PATH":       p.file,
		"CI_PROJECT_NAME":      filepath.Base(p.path),
		"CI_PROJECT_NAMESPACE": filepath.Dir(p.path),
	}
	if text, err := p.run(ctx, "log", "-1", "--format=%H%x00%h%x00%an <%ae>%x00%cI%x00%B"); err == nil {
		if part := strings.SplitN(text, "\x00", 5); len(part) == 5 {
			all["CI_COMMIT_SHA"], all["CI_COMMIT_SHORT_SHA"] = part[0], part[0][:8]
			all["CI_COMMIT_AUTHOR"], all["CI_COMMIT_TIMESTAMP"] = part[2], part[3]
			title, description, _ := strings.Cut(part[4], "\n")
			all["CI_COMMIT_MESSAGE"], all["CI_COMMIT_TITLE"], all["CI_COMMIT_DESCRIPTION"] = part[4], title, strings.TrimSpace(description)
		}
	}
	if f.source == "merge_request_event" {
		all["CI_MERGE_REQUEST_IID"], all["CI_MERGE_REQUEST_EVENT_TYPE"] = "1", "detached"
		all["CI_MERGE_REQUEST_SOURCE_BRANCH_NAME"], all["CI_MERGE_REQUEST_TARGET_BRANCH_NAME"] = p.branch, p.defaultBranch
	}
	return all
}

// files are those that the jobs will find.
func (p *project) files(ctx context.Context) ([]string, error) {
	if p.committed {
		return p.lines(ctx, "ls-tree", "-r", "-z", "--full-tree", "--name-only", "HEAD")
	}
	all, err := p.lines(ctx, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	if err != nil {
		return nil, err
	}
	deleted, err := p.lines(ctx, "ls-files", "-z", "--deleted")
	if err != nil {
		return nil, err
	}
	gone := make(map[string]bool, len(deleted))
	for _, name := range deleted {
		gone[name] = true
	}
	return slices.DeleteFunc(all, func(name string) bool { return gone[name] }), nil
}

// changed are the files that a push would change: what is not on the remote's branch, or for a merge request not on the
// default one. Nil: there is no such branch, and it is not known.
func (p *project) changed(ctx context.Context, source string) ([]string, error) {
	refs := []string{p.branch + "@{push}", "refs/remotes/origin/" + p.branch}
	if source == "merge_request_event" {
		refs = []string{"refs/remotes/origin/" + p.defaultBranch, "refs/heads/" + p.defaultBranch}
	}
	if p.tag != "" {
		return nil, nil
	}
	for _, ref := range refs {
		if _, err := p.run(ctx, "rev-parse", "--verify", "--quiet", ref); err == nil {
			return p.changedSince(ctx, ref)
		}
	}
	return nil, nil
}

func (p *project) changedSince(ctx context.Context, ref string) ([]string, error) {
	base, err := p.run(ctx, "merge-base", "--end-of-options", ref, "HEAD")
	if err != nil {
		if base, err = p.run(ctx, "merge-base", "--end-of-options", "refs/remotes/origin/"+ref, "HEAD"); err != nil {
			return nil, fmt.Errorf("%q has no commit in common with this one", ref)
		}
	}
	if p.committed {
		return p.lines(ctx, "diff", "-z", "--name-only", "--no-renames", base, "HEAD")
	}
	changed, err := p.lines(ctx, "diff", "-z", "--name-only", "--no-renames", base)
	if err != nil {
		return nil, err
	}
	added, err := p.lines(ctx, "ls-files", "-z", "--full-name", "--others", "--exclude-standard")
	return append(changed, added...), err
}

func (p *project) run(ctx context.Context, args ...string) (string, error) {
	return git(ctx, p.dir, args...)
}

// lines is what git says, which ends each part with a zero byte. It is never nil.
func (p *project) lines(ctx context.Context, args ...string) ([]string, error) {
	text, err := p.run(ctx, args...)
	if err != nil {
		return nil, err
	}
	parts := strings.Split(strings.TrimRight(text, "\x00"), "\x00")
	if len(parts) == 1 && parts[0] == "" {
		return []string{}, nil
	}
	return parts, nil
}

// git runs git. Hooks and monitors of the repository are not started.
func git(ctx context.Context, dir string, args ...string) (string, error) {
	if dir != "" {
		args = append([]string{"-C", dir}, args...)
	}
	args = append([]string{"-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"}, args...)
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "GIT_TERMINAL_PROMPT=0", "GIT_OPTIONAL_LOCKS=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("git: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(stdout.String()), nil
}
