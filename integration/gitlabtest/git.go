package gitlabtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// commit is what a pipeline runs for.
type commit struct {
	sha, before, branch, message, author, timestamp string
}

// repository is a bare one, which borrows the objects of a project's directory.
type repository struct{ dir string }

const zeroSHA = "0000000000000000000000000000000000000000"

// snapshot brings the project's state into the server's own repository. What is not committed becomes a commit there.
func (s *Server) snapshot(ctx context.Context, dir string) (commit, error) {
	r, err := s.bare(ctx, s.o.Project.Path, dir)
	if err != nil {
		return commit{}, err
	}
	c := commit{branch: defaulted(s.o.Project.DefaultBranch, "main"), before: zeroSHA}
	if r.isTop(ctx, dir) {
		if branch, err := r.git(ctx, dir, "-C", dir, "symbolic-ref", "--quiet", "--short", "HEAD"); err == nil {
			c.branch = branch
		}
	}
	if c.sha, err = r.state(ctx, dir); err != nil {
		return commit{}, err
	}
	if parent, err := r.git(ctx, "", "rev-parse", "--verify", "--quiet", c.sha+"^"); err == nil {
		c.before = parent
	}
	text, err := r.git(ctx, "", "log", "-1", "--format=%an <%ae>%x00%cI%x00%B", c.sha)
	if err != nil {
		return commit{}, err
	}
	parts := strings.SplitN(text, "\x00", 3)
	if len(parts) != 3 {
		return commit{}, fmt.Errorf("git log says %q", text)
	}
	c.author, c.timestamp, c.message = parts[0], parts[1], parts[2]
	return c, nil
}

// AddRepository serves one more project, such as a submodule's, as it is.
func (s *Server) AddRepository(ctx context.Context, project, dir string) error {
	r, err := s.bare(ctx, project, dir)
	if err != nil {
		return err
	}
	sha, err := r.state(ctx, dir)
	if err != nil {
		return err
	}
	_, err = r.git(ctx, "", "update-ref", "refs/heads/main", sha)
	return err
}

// publish gives the pipeline's commit its refs.
func (s *Server) publish(ctx context.Context, p *pipeline) error {
	s.mu.Lock()
	r := s.repos[s.o.Project.Path]
	s.mu.Unlock()
	ref := "refs/heads/" + p.Ref
	if p.tag {
		ref = "refs/tags/" + p.Ref
		if sha, err := r.git(ctx, "", "rev-parse", "--verify", "--quiet", ref+"^{commit}"); err == nil && sha == p.SHA {
			ref = "" // there already, perhaps with an annotation
		}
	}
	refs := []string{"refs/pipelines/" + strconv.FormatInt(p.ID, 10)}
	if ref != "" {
		refs = append(refs, ref)
	}
	for _, ref := range refs {
		if _, err := r.git(ctx, "", "update-ref", ref, p.SHA); err != nil {
			return err
		}
	}
	return nil
}

// bare makes a project's repository, with the refs that its directory has now.
func (s *Server) bare(ctx context.Context, project, dir string) (*repository, error) {
	r := &repository{filepath.Join(s.dir, "repositories", filepath.FromSlash(project)+".git")}
	if _, err := os.Stat(r.dir); err != nil {
		if err := os.MkdirAll(r.dir, 0o700); err != nil {
			return nil, err
		}
		if _, err := r.git(ctx, "", "init", "--quiet", "--bare", "--initial-branch=main"); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	s.repos[project] = r
	s.mu.Unlock()
	if !r.isTop(ctx, dir) {
		return r, nil
	}
	objects, err := r.git(ctx, dir, "-C", dir, "rev-parse", "--path-format=absolute", "--git-path", "objects")
	if err != nil {
		return nil, err
	}
	if shallow, err := os.ReadFile(filepath.Join(filepath.Dir(objects), "shallow")); err == nil {
		if err := os.WriteFile(filepath.Join(r.dir, "shallow"), shallow, 0o600); err != nil {
			return nil, err
		}
	}
	alternates := filepath.Join(r.dir, "objects", "info", "alternates")
	if err := os.WriteFile(alternates, []byte(objects+"\n"), 0o600); err != nil {
		return nil, err
	}
	_, err = r.git(ctx, "", "fetch", "--quiet", "--no-auto-gc", "--update-shallow", dir,
		"+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
	return r, err
}

// state is the commit that the directory is at, or one of what is in it.
func (r *repository) state(ctx context.Context, dir string) (string, error) {
	if dir == "" {
		tree, err := r.git(ctx, "", "mktree")
		if err != nil {
			return "", err
		}
		return r.commit(ctx, tree, "An empty project")
	}
	head := ""
	if r.isTop(ctx, dir) {
		var err error
		if head, err = r.git(ctx, dir, "-C", dir, "rev-parse", "--verify", "--quiet", "HEAD"); err != nil {
			head = "" // there is no commit yet
		}
	}
	if head != "" {
		changes, err := r.git(ctx, dir, "-C", dir, "status", "--porcelain", "--untracked-files=normal")
		if err != nil {
			return "", err
		}
		if changes == "" {
			return head, nil
		}
	}
	return r.dirty(ctx, dir, head)
}

// dirty commits all that is in a directory and not ignored, into the server's repository only.
func (r *repository) dirty(ctx context.Context, dir, head string) (string, error) {
	index, err := os.CreateTemp(r.dir, "index-")
	if err != nil {
		return "", err
	}
	_ = index.Close()
	if err := os.Remove(index.Name()); err != nil { // git wants none or a real one
		return "", err
	}
	defer func() { _ = os.Remove(index.Name()) }()
	env := []string{"GIT_INDEX_FILE=" + index.Name(), "GIT_WORK_TREE=" + dir}
	if head != "" {
		if _, err := r.run(ctx, env, "read-tree", head); err != nil {
			return "", err
		}
	}
	if _, err := r.run(ctx, env, "-C", dir, "add", "--all", "."); err != nil {
		return "", err
	}
	tree, err := r.run(ctx, env, "write-tree")
	if err != nil {
		return "", err
	}
	if head == "" {
		return r.commit(ctx, tree, "The directory as it is")
	}
	return r.commit(ctx, tree, "Changes that are not committed", "-p", head)
}

func (r *repository) commit(ctx context.Context, tree, message string, more ...string) (string, error) {
	return r.git(ctx, "", append([]string{"commit-tree", tree, "-m", message}, more...)...)
}

// git runs git in the repository, or with another one that "-C" names if its directory is given.
func (r *repository) git(ctx context.Context, other string, args ...string) (string, error) {
	if other != "" {
		return command(ctx, nil, args...)
	}
	return r.run(ctx, nil, args...)
}

func (r *repository) run(ctx context.Context, env []string, args ...string) (string, error) {
	return command(ctx, append(env, "GIT_DIR="+r.dir), args...)
}

// command runs git and returns what it says. Nothing of the user's or machine's configuration counts.
func command(ctx context.Context, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Env = append(gitEnv(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// gitEnv lets git read repositories of other owners, as root does for a user's.
func gitEnv() []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "LC_ALL=C", "GIT_CONFIG_NOSYSTEM=1", "GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_COUNT=3", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*",
		"GIT_CONFIG_KEY_1=uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_1=true",
		"GIT_CONFIG_KEY_2=uploadpack.allowFilter", "GIT_CONFIG_VALUE_2=true",
		"GIT_AUTHOR_NAME=User", "GIT_AUTHOR_EMAIL=user@example.com",
		"GIT_COMMITTER_NAME=User", "GIT_COMMITTER_EMAIL=user@example.com",
	}
}

// isTop says whether a directory is a work tree. One within a work tree is a project of its own.
func (r *repository) isTop(ctx context.Context, dir string) bool {
	if dir == "" {
		return false
	}
	top, err := r.git(ctx, dir, "-C", dir, "rev-parse", "--show-toplevel")
	if err != nil {
		return false
	}
	one, err1 := os.Stat(top)
	two, err2 := os.Stat(dir)
	return err1 == nil && err2 == nil && os.SameFile(one, two)
}

// repositoryPath splits the path of a request for a repository.
func repositoryPath(p string) (project, rest string, ok bool) {
	project, rest, ok = strings.Cut(strings.TrimPrefix(p, "/"), ".git/")
	return project, rest, ok && project != ""
}

// negotiation is how large a client's list of what it has may be, in bytes, where it comes without a length.
const negotiation = 64 << 20

// git serves fetching from a repository, to jobs that run.
func (s *Server) git(w http.ResponseWriter, r *http.Request, project, rest string) {
	user, password, ok := r.BasicAuth()
	s.mu.Lock()
	repo := s.repos[project]
	allowed := false
	for _, j := range s.jobs {
		allowed = allowed || j.token != "" && password == j.token && (j.Status == Running || j.Status == Canceling || j.waitsForAck)
	}
	if ok && allowed && user != tokenUser {
		c := &call{s: s, w: w, r: r}
		c.note("the user of the job's token is %q, not %s", user, tokenUser)
		allowed = false
	}
	s.mu.Unlock()
	switch {
	case !allowed:
		w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
		http.Error(w, "HTTP Basic: Access denied", http.StatusUnauthorized)
		return
	case repo == nil:
		http.Error(w, "The project you were looking for could not be found.", http.StatusNotFound)
		return
	case strings.Contains(rest, "receive-pack") || strings.Contains(r.URL.RawQuery, "receive-pack"):
		http.Error(w, "You are not allowed to push code to this project.", http.StatusForbidden)
		return
	}
	if r.ContentLength < 0 { // CGI knows no chunks
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, negotiation))
		if err != nil {
			http.Error(w, "the request is too large", http.StatusRequestEntityTooLarge)
			return
		}
		r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	}
	git, err := exec.LookPath("git")
	if err != nil {
		http.Error(w, "git is not installed", http.StatusInternalServerError)
		return
	}
	r.Header.Del("Authorization")
	(&cgi.Handler{
		Path: git, Args: []string{"http-backend"}, Root: "/" + project + ".git",
		Env:    append(gitEnv(), "GIT_PROJECT_ROOT="+repo.dir, "GIT_HTTP_EXPORT_ALL=1"),
		Stderr: io.Discard,
	}).ServeHTTP(w, r)
}

// Repository is where the project's bare repository lies. It is there once a pipeline has run.
func (s *Server) Repository() (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repos[s.o.Project.Path]
	if r == nil {
		return "", errors.New("no pipeline has run")
	}
	return r.dir, nil
}
