package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// scriptRunner is a daemon's part of a forge's runner: it runs the scripts of jobs by bash, in empty directories.
type scriptRunner struct {
	t       *testing.T
	mu      sync.Mutex
	asked   []api.NewRunner
	forgets int
	stop    context.CancelFunc
	work    sync.WaitGroup
}

func (r *scriptRunner) Register(_ context.Context, n api.NewRunner) (api.Runner, error) {
	ctx, cancel := context.WithCancel(context.Background())
	r.mu.Lock()
	r.asked, r.stop = append(r.asked, n), cancel
	r.mu.Unlock()
	for range max(n.Concurrent, 2) {
		r.work.Go(func() {
			for ctx.Err() == nil {
				r.job(ctx, n)
			}
		})
	}
	return api.Runner{Name: "exec", Forge: "gitlab", URL: n.URL, Ephemeral: n.Ephemeral, State: "online", Sandbox: sandbox.Nesting{sandbox.Container}}, nil
}

func (r *scriptRunner) Forget(string) {
	r.mu.Lock()
	r.forgets++
	r.stop()
	r.mu.Unlock()
}

func (r *scriptRunner) Runners(context.Context) ([]api.Runner, error) {
	return []api.Runner{{Name: "exec", State: "online", Sandbox: sandbox.Nesting{sandbox.Container}}}, nil
}

var errNotAsked = errors.New("nobody asks for this here")

func (r *scriptRunner) Verify(context.Context, string) (api.Runner, error) {
	return api.Runner{}, errNotAsked
}

func (r *scriptRunner) Rotate(context.Context, string) (api.Runner, error) {
	return api.Runner{}, errNotAsked
}
func (r *scriptRunner) Unregister(context.Context, string, bool) error { return errNotAsked }

// job asks for a job and runs it.
func (r *scriptRunner) job(ctx context.Context, n api.NewRunner) {
	var j spec.Job
	if r.call(ctx, http.MethodPost, n.URL+"/api/v4/jobs/request", nil, spec.JobRequest{Token: n.Token, SystemID: "s_0123456789ab"}, &j) != http.StatusCreated {
		return
	}
	url := fmt.Sprintf("%s/api/v4/jobs/%d", n.URL, j.ID)
	cmd := exec.CommandContext(ctx, "bash", "-ec", strings.Join(j.Steps[0].Script, "\n"))
	cmd.Dir = r.t.TempDir()
	for _, v := range j.Variables {
		if !strings.Contains(v.Value, "\x00") {
			cmd.Env = append(cmd.Env, v.Key+"="+v.Value)
		}
	}
	trace, err := cmd.CombinedOutput()
	u := spec.Update{Token: j.Token, State: spec.Success, Checksum: fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE(trace))}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		u.State, u.FailureReason, u.ExitCode = spec.Failed, spec.ScriptFailure, exit.ExitCode()
	}
	u.Output = spec.Output{Checksum: u.Checksum, Bytesize: len(trace)}
	if len(trace) > 0 {
		r.call(ctx, http.MethodPatch, url+"/trace?debug_trace=false", map[string]string{
			"JOB-TOKEN": j.Token, "Content-Type": "text/plain", "Content-Range": fmt.Sprintf("0-%d", len(trace)-1),
		}, trace, nil)
	}
	r.call(ctx, http.MethodPut, url, nil, u, nil)
}

func (r *scriptRunner) call(ctx context.Context, method, url string, headers map[string]string, body, answer any) int {
	text, ok := body.([]byte)
	if !ok {
		text, _ = json.Marshal(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(text))
	if err != nil {
		r.t.Error(err)
		return 0
	}
	req.Header.Set("Content-Type", "application/json")
	for k, v := range headers {
		req.Header.Set(k, v)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer func() { _ = res.Body.Close() }()
	if answer != nil && res.StatusCode == http.StatusCreated {
		if err := json.NewDecoder(res.Body).Decode(answer); err != nil {
			r.t.Error(err)
		}
	}
	return res.StatusCode
}

// execFor runs the command in a directory with the files, against a daemon whose jobs scriptRunner runs.
func execFor(t *testing.T, dir string, args ...string) (code int, stdout, stderr string, r *scriptRunner) {
	t.Helper()
	r = &scriptRunner{t: t}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Runners = r })
	t.Cleanup(r.work.Wait)
	t.Chdir(dir)
	var out, errs buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
	code = a.execute(t.Context(), append([]string{"--socket", s.Socket, "exec"}, args...))
	return code, out.String(), errs.String(), r
}

func projectWith(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func gitIn(t *testing.T, dir string, args ...string) {
	t.Helper()
	cmd := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=a@b"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
}

const execPipelineFile = `
stages: [build, test, deploy]
build:
  stage: build
  script: [echo building $CI_COMMIT_BRANCH $GIVEN, "echo $CI_PIPELINE_SOURCE"]
unit: {script: echo unit}
flaky: {script: exit 3, allow_failure: {exit_codes: 3}}
lint: {script: echo lint, needs: []}
tagged: {script: echo tagged, rules: [{if: $CI_COMMIT_TAG}]}
deploy: {stage: deploy, script: echo deploying, when: manual}
`

func TestExec(t *testing.T) {
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": execPipelineFile})
	code, out, errs, r := execFor(t, dir, "--branch", "feature", "--var", "GIVEN=x y", "--image", "debian")
	if code != 0 {
		t.Errorf("exit code %d: %s", code, errs)
	}
	for _, want := range []string{"build  | building feature x y\n", "build  | push\n", "unit   | unit\n", "lint   | lint\n", "Pipeline success in ", "exit code 3"} {
		if !strings.Contains(out, want) {
			t.Errorf("the output has no %q:\n%s", want, out)
		}
	}
	if strings.Contains(out, "deploying") || !strings.Contains(errs, "--manual") {
		t.Errorf("the manual job ran, or is not told of:\n%s%s", out, errs)
	}
	if len(r.asked) != 1 || !r.asked[0].Ephemeral || r.asked[0].Image != "debian" {
		t.Errorf("the daemon was asked for %+v", r.asked)
	}
}

func TestExecJobs(t *testing.T) {
	dir := projectWith(t, map[string]string{"ci/x.yml": `
build: {stage: build, script: echo b, artifacts: {paths: [x]}}
other: {stage: build, script: echo o}
test: {script: echo t}
fail: {script: exit 7, retry: 1}
deploy: {stage: deploy, script: echo d, when: manual, needs: [test]}
`})
	code, out, errs, _ := execFor(t, dir, "ci/x.yml", "deploy", "--json")
	var o execOutcome
	if err := json.Unmarshal([]byte(out), &o); err != nil || code != 0 {
		t.Fatalf("%d: %v: %s%s", code, err, out, errs)
	}
	var names []string
	for _, j := range o.Jobs {
		names = append(names, j.Name+" "+j.Status)
	}
	if want := []string{"build success", "test success", "deploy success"}; !slices.Equal(names, want) {
		t.Errorf("ran %v, want %v", names, want)
	}
	if !strings.Contains(errs, "deploy | d\n") {
		t.Errorf("the logs are not on the standard error: %s", errs)
	}
	code, out, _, _ = execFor(t, dir, "ci/x.yml", "fail", "--only", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil || code != 1 || o.Status != "failed" {
		t.Fatalf("%d: %v: %s", code, err, out)
	}
	if j := o.Jobs[len(o.Jobs)-1]; len(o.Jobs) != 1 || j.ExitCode != 7 || j.Tries != 2 || j.FailureReason != "script_failure" {
		t.Errorf("%+v", o.Jobs)
	}
}

// TestExecAddress runs twice: what jobs keep would not be found at another address. One that is taken is no hindrance.
func TestExecAddress(t *testing.T) {
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": "a: {script: echo $CI_SERVER_URL}"})
	_, first, _, r := execFor(t, dir)
	_, second, _, again := execFor(t, dir)
	if r.asked[0].URL != again.asked[0].URL {
		t.Errorf("%s, then %s:\n%s%s", r.asked[0].URL, again.asked[0].URL, first, second)
	}
	l, err := net.Listen("tcp", strings.TrimPrefix(r.asked[0].URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	code, _, errs, r := execFor(t, dir)
	if code != 0 || r.asked[0].URL == again.asked[0].URL {
		t.Errorf("%d %s: %s", code, r.asked[0].URL, errs)
	}
}

// TestExecForgets ends the runner with the command: the daemon is told by the end of its connection.
func TestExecForgets(t *testing.T) {
	_, _, _, r := execFor(t, projectWith(t, map[string]string{".gitlab-ci.yml": "a: {script: echo a}"}))
	r.work.Wait() // it is stopped by Forget alone
	if r.forgets != 1 {
		t.Errorf("forgotten %d times", r.forgets)
	}
}

// TestExecInterrupted cancels the pipeline from the terminal.
func TestExecInterrupted(t *testing.T) {
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": "long: {script: [touch $STARTED, sleep 60]}\nnext: {stage: deploy, script: echo next}"})
	started := filepath.Join(t.TempDir(), "started")
	go func() {
		for t.Context().Err() == nil {
			if _, err := os.Stat(started); err == nil {
				_ = syscall.Kill(os.Getpid(), syscall.SIGINT)
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	begin := time.Now()
	code, out, errs, _ := execFor(t, dir, "--var", "STARTED="+started)
	if code != exitCancelled || !strings.Contains(out, "Pipeline canceled in ") || !strings.Contains(errs, "cancelling the pipeline") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestExecList(t *testing.T) {
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": execPipelineFile})
	code, out, errs, r := execFor(t, dir, "--list")
	for _, want := range []string{"build   build   on_success", "tagged     rules: none matches", "deploy  deploy  manual"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%d: the list has no %q:\n%s%s", code, want, out, errs)
		}
	}
	code, out, _, _ = execFor(t, dir, "--list", "--json", "--tag", "v1")
	var p ciyaml.Pipeline
	if err := json.Unmarshal([]byte(out), &p); err != nil || code != 0 || p.Job("tagged") == nil {
		t.Errorf("%d %v %s", code, err, out)
	}
	if code, out, _, _ = execFor(t, dir, "--dry-run", "lint"); code != 0 || !strings.Contains(out, "# lint (stage test, on_success)\necho lint\n") {
		t.Errorf("%d %s", code, out)
	}
	if len(r.asked) != 0 {
		t.Error("the daemon was asked for a runner")
	}
}

func TestExecCompletes(t *testing.T) {
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": execPipelineFile})
	t.Chdir(dir)
	var out buffer
	a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &out}
	if code := a.execute(t.Context(), []string{"__complete", "exec", ""}); code != 0 || !strings.HasPrefix(out.String(), "build\nunit\nflaky\nlint\ndeploy\n") {
		t.Errorf("%d %s", code, out.String())
	}
}

func TestExecErrors(t *testing.T) {
	dir := projectWith(t, map[string]string{
		".gitlab-ci.yml": execPipelineFile, "bad.yml": "a: {scirpt: a}", "none.yml": "a: {script: a, rules: [{when: never}]}",
	})
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"tagged"}, exitFailed, `job "tagged" is not in this pipeline: rules: none matches`},
		{[]string{"biuld"}, exitFailed, `there is no job "biuld": there are build, unit, flaky, lint, deploy`},
		{[]string{"bad.yml"}, exitUsage, `bad.yml:1:1: jobs:a config should implement the script:, run:, or trigger: keyword: do you mean "script"?`},
		{[]string{"none.yml"}, exitFailed, "The resulting pipeline would have been empty."},
		{[]string{"--only"}, exitUsage, "--only needs the names of jobs"},
		{[]string{"--var", "x"}, exitUsage, `--var "x": KEY=VALUE is needed`},
		{[]string{"--branch", "a..b"}, exitUsage, `"a..b" cannot be the name of a branch or tag`},
		{[]string{"--branch", "a", "--tag", "b"}, exitUsage, "exclude each other"},
		{[]string{"--committed"}, exitUsage, "nothing is committed"},
	} {
		code, _, errs, _ := execFor(t, dir, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit code %d, %s; want %d, %s", c.args, code, errs, c.code, c.want)
		}
	}
	code, _, errs, _ := execFor(t, t.TempDir())
	if code != exitUsage || !strings.Contains(errs, "name the file as the first argument") {
		t.Errorf("%d %s", code, errs)
	}
}

// TestExecGit looks at the project as git does.
func TestExecGit(t *testing.T) {
	dir := projectWith(t, map[string]string{
		".gitlab-ci.yml": `
include: /ci/*.yml
docs: {script: echo docs, rules: [{changes: [docs/*]}]}
code: {script: echo code, rules: [{changes: {paths: [src/*], compare_to: main}}]}
new: {script: echo new, rules: [{exists: [new]}]}
ignored: {script: echo ignored, rules: [{exists: [ignored]}]}
deleted: {script: echo deleted, rules: [{exists: [deleted]}]}
title: {script: echo title, rules: [{if: $CI_COMMIT_TITLE == "Second"}]}
branch: {script: echo branch, rules: [{if: $CI_COMMIT_BRANCH == "feature" && $CI_DEFAULT_BRANCH == "main"}]}
`, "ci/a.yml": "included: {script: echo}", ".gitignore": "ignored\n", "src/x": "1", "deleted": "",
	})
	t.Setenv("HOME", t.TempDir())
	gitIn(t, dir, "init", "-q", "-b", "main")
	gitIn(t, dir, "add", ".")
	gitIn(t, dir, "commit", "-qm", "First")
	gitIn(t, dir, "checkout", "-qb", "feature")
	gitIn(t, dir, "commit", "-qm", "Second", "--allow-empty")
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list := func(args ...string) []string {
		t.Helper()
		code, out, errs, _ := execFor(t, dir, append([]string{"--list", "--json"}, args...)...)
		var p ciyaml.Pipeline
		if err := json.Unmarshal([]byte(out), &p); err != nil || code != 0 {
			t.Fatalf("%d %v %s", code, err, errs)
		}
		var names []string
		for _, j := range p.Jobs {
			names = append(names, j.Name)
		}
		return names
	}
	// Nothing was pushed, so that it is not known what a push would change: but it is known what main has not.
	if got, want := list(), []string{"included", "docs", "deleted", "title", "branch"}; !slices.Equal(got, want) {
		t.Errorf("clean: %v, want %v", got, want)
	}
	write("new", "")
	write("ignored", "")
	write("src/y", "")
	if err := os.Remove(filepath.Join(dir, "deleted")); err != nil {
		t.Fatal(err)
	}
	if got, want := list(), []string{"included", "docs", "code", "new", "title", "branch"}; !slices.Equal(got, want) {
		t.Errorf("changed: %v, want %v", got, want)
	}
	if got, want := list("--committed"), []string{"included", "docs", "deleted", "title", "branch"}; !slices.Equal(got, want) {
		t.Errorf("committed: %v, want %v", got, want)
	}
	// From below, the project is the same.
	t.Chdir(filepath.Join(dir, "src"))
	code, out, errs, _ := execFor(t, filepath.Join(dir, "src"), "../.gitlab-ci.yml", "branch")
	if code != 0 || !strings.Contains(out, "branch | branch\n") {
		t.Errorf("%d %s%s", code, out, errs)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "runnerd-exec-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestExecSymlink reads nothing outside of the project.
func TestExecSymlink(t *testing.T) {
	outside := projectWith(t, map[string]string{"x.yml": "secret: {script: a}"})
	dir := projectWith(t, map[string]string{".gitlab-ci.yml": "include: link.yml\na: {script: a}"})
	if err := os.Symlink(filepath.Join(outside, "x.yml"), filepath.Join(dir, "link.yml")); err != nil {
		t.Fatal(err)
	}
	code, out, errs, _ := execFor(t, dir, "--list")
	if code != exitUsage || strings.Contains(out+errs, "secret") || !strings.Contains(errs, "link.yml") {
		t.Errorf("%d %s%s", code, out, errs)
	}
}
