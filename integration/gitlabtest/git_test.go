package gitlabtest

import (
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

const pipelineFile = `
stages: [build, test]
variables:
  GREETING: hello
build:
  stage: build
  image: debian
  script: [make]
  artifacts: {paths: [out]}
test:
  stage: test
  script: [./test "$GREETING"]
`

// git runs git as a user does, without the machine's configuration.
func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(gitEnv(), "GIT_TERMINAL_PROMPT=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// listening is a server that git can reach.
func listening(t *testing.T, o Options) *Server {
	t.Helper()
	o.Dir = t.TempDir()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// fetch gets the job's commit as a runner does, and returns the directory.
func fetch(t *testing.T, j spec.Job) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q")
	args := []string{"fetch", "-q", "--no-tags", j.GitInfo.RepoURL}
	if j.GitInfo.Depth > 0 {
		args = append(args, fmt.Sprint("--depth=", j.GitInfo.Depth))
	}
	git(t, dir, append(args, j.GitInfo.Refspecs...)...)
	git(t, dir, "checkout", "-q", "-f", j.GitInfo.SHA)
	return dir
}

func TestRepository(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "trunk")
	write(t, dir, ".gitlab-ci.yml", pipelineFile)
	write(t, dir, "file", "first")
	git(t, dir, "add", ".")
	for i := range 22 {
		git(t, dir, "commit", "-q", "--allow-empty", "-m", fmt.Sprint("Change ", i, "\n\nMore of it."))
	}
	before := git(t, dir, "for-each-ref") + git(t, dir, "status", "--porcelain")
	s := listening(t, Options{Project: Project{Dir: dir}, Variables: []spec.Variable{{Key: "SECRET", Value: "correct-horse", Masked: true}}})
	a := newAgent(t, s)
	p, err := s.Run(t.Context(), RunOptions{Variables: map[string]string{"WHO": "me"}})
	if err != nil {
		t.Fatal(err)
	}
	head := git(t, dir, "rev-parse", "HEAD")
	if p.SHA != head || p.Ref != "trunk" {
		t.Errorf("%+v", p)
	}
	j := a.take()
	if j.JobInfo.Name != "build" || j.Image == nil || j.Image.Name != "debian" || j.GitInfo.Depth != 20 || !*j.GitInfo.Protected {
		t.Errorf("%+v", j)
	}
	for key, want := range map[string]string{
		"CI_COMMIT_SHA": head, "CI_COMMIT_BRANCH": "trunk", "CI_COMMIT_TITLE": "Change 21", "CI_COMMIT_DESCRIPTION": "More of it.",
		"CI_JOB_TOKEN": j.Token, "CI_API_V4_URL": s.URL + "/api/v4", "GREETING": "hello", "WHO": "me", "SECRET": "correct-horse",
		"CI_REPOSITORY_URL": j.GitInfo.RepoURL, "CI_PROJECT_PATH": "group/project", "CI_SERVER_URL": s.URL, "CI": "true",
		"CI_JOB_NAME": "build", "CI_PIPELINE_SOURCE": "push", "CI_COMMIT_REF_PROTECTED": "true",
	} {
		if got := value(j, key); got != want {
			t.Errorf("%s is %q, not %q", key, got, want)
		}
	}
	seen := map[string]int{}
	for _, v := range j.Variables {
		if seen[v.Key]++; seen[v.Key] > 1 {
			t.Errorf("%s is there twice", v.Key)
		}
		if want := v.Key == "CI_JOB_TOKEN" || v.Key == "SECRET"; v.Masked != want {
			t.Errorf("%s: masked %v", v.Key, v.Masked)
		}
	}
	out := fetch(t, j)
	if got := git(t, out, "rev-list", "--count", "HEAD"); got != "20" {
		t.Errorf("%s commits", got)
	}
	if got := git(t, dir, "for-each-ref") + git(t, dir, "status", "--porcelain"); got != before {
		t.Errorf("the project's directory changed: %s", got)
	}
	clean(t, s)

	// What is not committed is in the next pipeline.
	write(t, dir, "file", "changed")
	write(t, dir, "new", "new")
	if p, err = s.Run(t.Context(), RunOptions{}); err != nil {
		t.Fatal(err)
	}
	a.succeed(j)
	for range 2 {
		if j = a.take(); j.JobInfo.PipelineID == p.ID {
			break
		}
	}
	out = fetch(t, j)
	if text, err := os.ReadFile(filepath.Join(out, "new")); err != nil || string(text) != "new" {
		t.Errorf("%s %v", text, err)
	}
	if got := git(t, out, "rev-parse", "HEAD^"); got != head || value(j, "CI_COMMIT_BEFORE_SHA") != head {
		t.Errorf("the parent is %s", got)
	}
	if got := git(t, dir, "status", "--porcelain"); got != "M file\n?? new" {
		t.Errorf("the project's directory changed: %q", got)
	}
	clean(t, s)
}

func TestPlainDirectory(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".gitlab-ci.yml", pipelineFile)
	write(t, dir, ".gitignore", "ignored\n")
	write(t, dir, "ignored", "x")
	s := listening(t, Options{Depth: -1})
	a := newAgent(t, s)
	if _, err := s.Run(t.Context(), RunOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	j := a.take()
	out := fetch(t, j)
	if _, err := os.Stat(filepath.Join(out, ".gitlab-ci.yml")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(out, "ignored")); err == nil {
		t.Error("an ignored file is in the commit")
	}
	if _, err := os.Stat(filepath.Join(dir, ".git")); err == nil {
		t.Error("the directory became a repository")
	}
	clean(t, s)
}

// TestSubdirectory is a project within a repository.
func TestSubdirectory(t *testing.T) {
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "trunk")
	sub := filepath.Join(dir, "sub")
	if err := os.Mkdir(sub, 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "outside", "x")
	write(t, sub, ".gitlab-ci.yml", pipelineFile)
	s := listening(t, Options{})
	a := newAgent(t, s)
	if p, err := s.Run(t.Context(), RunOptions{Dir: sub}); err != nil || p.Ref != "main" {
		t.Fatal(p, err)
	}
	if got := git(t, fetch(t, a.take()), "ls-files"); got != ".gitlab-ci.yml" {
		t.Errorf("files: %s", got)
	}
}

// TestGitRefused has who may not fetch, and that nobody may push.
func TestGitRefused(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".gitlab-ci.yml", pipelineFile)
	s := listening(t, Options{})
	a := newAgent(t, s)
	if _, err := s.Run(t.Context(), RunOptions{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	j := a.take()
	out := fetch(t, j)
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command("git", args...)
		cmd.Dir, cmd.Env = out, gitEnv()
		text, err := cmd.CombinedOutput()
		if err == nil {
			t.Errorf("git %v is allowed", args)
		}
		return string(text)
	}
	if got := run("push", j.GitInfo.RepoURL, "HEAD:refs/heads/mine"); !strings.Contains(got, "403") {
		t.Errorf("push: %s", got)
	}
	u, err := url.Parse(j.GitInfo.RepoURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(tokenUser, "wrong")
	_ = run("ls-remote", u.String())
	clean(t, s)
	u.User = url.UserPassword("root", j.Token)
	_ = run("ls-remote", u.String())
	breach(t, s, `is "root"`)
	u.User = url.UserPassword(tokenUser, j.Token)
	u.Path = "/group/other.git"
	_ = run("ls-remote", u.String())
	a.succeed(j)
	_ = run("ls-remote", j.GitInfo.RepoURL)
}

func TestTag(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".gitlab-ci.yml", pipelineFile)
	git(t, dir, "init", "-q", "-b", "main")
	git(t, dir, "add", ".")
	git(t, dir, "commit", "-q", "-m", "First")
	git(t, dir, "tag", "-m", "Version 1", "v1")
	s := listening(t, Options{})
	a := newAgent(t, s)
	if _, err := s.Run(t.Context(), RunOptions{Dir: dir, Tag: "v1"}); err != nil {
		t.Fatal(err)
	}
	j := a.take()
	if j.GitInfo.RefType != "tag" || value(j, "CI_COMMIT_TAG") != "v1" || value(j, "CI_COMMIT_BRANCH") != "" {
		t.Errorf("%+v", j.GitInfo)
	}
	if got := git(t, fetch(t, j), "describe"); got != "v1" {
		t.Errorf("describe: %s", got)
	}
}

// TestBadFile has the reader's words on a file that is wrong.
func TestBadFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".gitlab-ci.yml", "build:\n  scrip: [make]\n")
	s := newServer(t, Options{})
	if _, err := s.Run(t.Context(), RunOptions{Dir: dir}); err == nil || !strings.Contains(err.Error(), ".gitlab-ci.yml:1") {
		t.Errorf("error: %v", err)
	}
	if len(s.Pipelines()) != 0 {
		t.Error("there is a pipeline")
	}
}
