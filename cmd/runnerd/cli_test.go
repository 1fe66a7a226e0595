package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/sandbox"
)

// hostFunc is a sandbox.Host.
type hostFunc func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error)

func (f hostFunc) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	return f(ctx, p)
}

type logOutput func(runner.Stream, string)

func (l logOutput) Stream(s runner.Stream) io.Writer { return logWriter{l, s} }

type logWriter struct {
	log logOutput
	s   runner.Stream
}

func (w logWriter) Write(p []byte) (int, error) { w.log(w.s, string(p)); return len(p), nil }

// daemonFor runs the scripts of the command line by exec.
func daemonFor(t *testing.T, exec hostFunc, more func(*api.Config, *apitest.Backend)) *apitest.Server {
	return apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		sessions := c.Attachments
		b.Run = func(ctx context.Context, r runner.Request, secrets []string, log func(runner.Stream, string)) runner.Result {
			step := scriptStep{id: r.ID, attach: r.Attach, sessions: sessions}
			if err := json.Unmarshal(r.Payload, &step.script); err != nil {
				return runner.Result{Outcome: runner.Errored, Message: err.Error()}
			}
			exit, err := step.Run(ctx, exec, logOutput(log))
			switch {
			case err != nil:
				return runner.Result{Outcome: runner.Errored, Message: err.Error()}
			case exit.Success():
				return runner.Result{Outcome: runner.Succeeded}
			case exit.OOM:
				return runner.Result{Outcome: runner.Failed, Reason: runner.ReasonOOM, ExitCode: exit.Code}
			}
			return runner.Result{Outcome: runner.Failed, ExitCode: exit.Code, Message: exit.String()}
		}
		if more != nil {
			more(c, b)
		}
	})
}

// buffer is a bytes.Buffer that may be looked at while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// command runs a command line and returns its exit code and what it has printed.
func runnerd(t *testing.T, socket, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs}
	code = a.execute(t.Context(), append([]string{"--config", emptyConfig(t), "--socket", socket}, args...))
	return code, out.String(), errs.String()
}

func emptyConfig(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "runnerd.yaml")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func expect(t *testing.T, what string, code, wantCode int, text string, wants ...string) {
	t.Helper()
	if code != wantCode {
		t.Errorf("%s: exit code %d, want %d: %s", what, code, wantCode, text)
	}
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("%s: %q is missing in %q", what, want, text)
		}
	}
	if strings.Contains(text, "\x1b") || strings.Contains(text, "\r") {
		t.Errorf("%s: not clean: %q", what, text)
	}
}

func TestRun(t *testing.T) {
	s := daemonFor(t, func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
		switch p.Args[0] {
		case "cat":
			_, err := io.Copy(p.Stdout, p.Stdin)
			_, _ = io.WriteString(p.Stderr, "to stderr\n")
			return sandbox.Exit{}, err
		case "exit":
			var code int
			_, err := fmt.Sscan(p.Args[1], &code)
			return sandbox.Exit{Code: code}, err
		case "oom":
			return sandbox.Exit{Code: 137, Signal: syscall.SIGKILL, OOM: true}, nil
		}
		return sandbox.Exit{}, fmt.Errorf("the disk is on fire")
	}, func(c *api.Config, _ *apitest.Backend) {
		c.Prepare = func(r *runner.Request) error {
			if r.Limits.Memory == 0 {
				r.Limits.Memory = 1 << 30
			}
			return sandbox.DefaultPolicy().Allow(r.Nesting)
		}
	})
	code, out, errs := runnerd(t, s.Socket, "through and back\n", "run", "--", "cat")
	if expect(t, "cat", code, 0, out+errs); out != "through and back\n" || errs != "to stderr\n" {
		t.Errorf("%q %q", out, errs)
	}
	code, out, errs = runnerd(t, s.Socket, "", "run", "exit", "3")
	if expect(t, "exit 3", code, 3, out+errs); out+errs != "" {
		t.Errorf("%q %q", out, errs)
	}
	for _, n := range []int{1, 126, 127, 255} {
		code, _, errs = runnerd(t, s.Socket, "", "run", "exit", fmt.Sprint(n))
		expect(t, "exit", code, n, errs)
	}
	code, _, errs = runnerd(t, s.Socket, "", "run", "oom")
	expect(t, "oom", code, 137, errs, "killed: out of memory: raise --memory (it was 1GiB)")
	code, _, errs = runnerd(t, s.Socket, "", "run", "explode")
	expect(t, "errored", code, 125, errs, "the disk is on fire")
	code, _, errs = runnerd(t, s.Socket, "", "run", "--sandbox", "container/dind/container", "true")
	expect(t, "rejected", code, 3, errs, "3 layers deep")
	code, _, errs = runnerd(t, s.Socket, "", "run", "--sandbox", "moon", "true")
	expect(t, "unknown layer", code, 2, errs, "unknown layer")
	code, _, errs = runnerd(t, s.Socket, "", "run")
	expect(t, "no command", code, 2, errs, "--help")
	code, _, errs = runnerd(t, s.Socket, "", "run", "-t", "sh")
	expect(t, "no terminal", code, 2, errs, "needs a terminal")
	code, _, errs = runnerd(t, s.Socket, "", "run", "--cpu", "many", "sh")
	expect(t, "bad flag", code, 2, errs, "not a number of processors")
	code, out, errs = runnerd(t, s.Socket, "", "run", "-d", "exit", "7")
	expect(t, "detach", code, 0, out+errs)
	id := strings.TrimSpace(out)
	code, out, _ = runnerd(t, s.Socket, "", "jobs", "--all", "--json")
	var jobs []api.Job
	if err := json.Unmarshal([]byte(out), &jobs); err != nil || code != 0 || len(jobs) != 9 || jobs[0].ID != id {
		t.Errorf("%v: %d jobs", err, len(jobs))
	}
}

func TestRunEnvironmentAndLimits(t *testing.T) {
	t.Setenv("FROM_HERE", "here")
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\nA=file\nB=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var got runner.Request
	s := daemonFor(t, nil, func(c *api.Config, b *apitest.Backend) {
		c.Prepare = func(r *runner.Request) error { got = *r; return nil }
		b.Run = func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
			return runner.Result{Outcome: runner.Succeeded}
		}
	})
	code, _, errs := runnerd(t, s.Socket, "", "run", "-e", "A=1", "-e", "FROM_HERE", "-e", "NOT_HERE", "--env-file", file, "--memory", "64m", "--cpu", "500m", "--disk", "1GiB",
		"--pids", "7", "--timeout", "90s", "--image", "x", "-u", "nobody", "-w", "/w", "--name", "n", "--project", "p", "echo", "-n", "--", "x")
	expect(t, "run", code, 0, errs)
	var script api.Script
	if err := json.Unmarshal(got.Payload, &script); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(script.Command, []string{"echo", "-n", "--", "x"}) || script.User != "nobody" || script.Dir != "/w" || !script.Stdin || script.TTY {
		t.Errorf("%+v", script)
	}
	if got.Limits != (sandbox.Limits{CPU: 500, Memory: 64 << 20, PIDs: 7, Disk: 1 << 30}) || time.Duration(got.Timeout) != 90*time.Second ||
		got.Image != "x" || got.Name != "n" || got.Scope.Project != "p" || !got.Attach {
		t.Errorf("%+v", got)
	}
	last := map[string]string{}
	for _, e := range got.Env {
		k, v, _ := strings.Cut(e, "=")
		last[k] = v
	}
	if len(last) != 3 || last["A"] != "1" || last["B"] != "file" || last["FROM_HERE"] != "here" {
		t.Error(got.Env)
	}
}

func TestRunSignals(t *testing.T) {
	started := make(chan struct{}, 1)
	s := daemonFor(t, func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
		started <- struct{}{}
		for {
			select {
			case sig := <-p.Signals:
				_, _ = fmt.Fprintf(p.Stdout, "got %s\n", sig)
				if p.Args[0] == "obeys" {
					return sandbox.Exit{Code: 128 + int(sig), Signal: sig}, nil
				}
			case <-ctx.Done():
				return sandbox.Exit{}, context.Cause(ctx)
			}
		}
	}, nil)
	for _, x := range []struct {
		command string
		signals []syscall.Signal
		code    int
		out     string
	}{
		{"obeys", []syscall.Signal{syscall.SIGUSR1}, 138, "got user defined signal 1\n"},
		{"obeys", []syscall.Signal{syscall.SIGTERM}, 143, "got terminated\n"},
		{"ignores", []syscall.Signal{syscall.SIGINT, syscall.SIGINT}, 130, "got interrupt\n"},
	} {
		var out, errs buffer
		a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: &errs}
		code := make(chan int, 1)
		go func() {
			code <- a.execute(t.Context(), []string{"--config", emptyConfig(t), "--socket", s.Socket, "run", x.command})
		}()
		<-started
		for i, sig := range x.signals {
			time.Sleep(50 * time.Millisecond) // the state has come over
			if i > 0 {
				for !strings.Contains(out.String(), "got") {
					time.Sleep(time.Millisecond)
				}
			}
			if err := syscall.Kill(os.Getpid(), sig); err != nil {
				t.Fatal(err)
			}
		}
		if got := <-code; got != x.code || out.String() != x.out {
			t.Errorf("%s: %d %q %q", x.command, got, out.String(), errs.String())
		}
	}
}

func TestOutcomes(t *testing.T) {
	results := map[string]runner.Result{
		"slow":    {Outcome: runner.TimedOut, Message: "the job ran into its timeout of 1m0s"},
		"nothing": {Outcome: runner.Rejected, Reason: "image", Message: "nothing:latest: image not found"},
		"stopped": {Outcome: runner.Cancelled, Message: "runnerd was stopped"},
	}
	s := daemonFor(t, nil, func(_ *api.Config, b *apitest.Backend) {
		b.Run = func(_ context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			return results[r.Name]
		}
	})
	for name, want := range map[string]int{"slow": 124, "nothing": 3, "stopped": 130} {
		code, out, errs := runnerd(t, s.Socket, "", "run", name)
		if expect(t, name, code, want, errs, results[name].Message); out != "" {
			t.Errorf("%q", out)
		}
	}
	code, out, _ := runnerd(t, s.Socket, "", "jobs", "-a")
	expect(t, "jobs", code, 0, out, "JOB ", "timed_out", "rejected (image)", "cancelled", "container")
	code, out, _ = runnerd(t, s.Socket, "", "jobs")
	if expect(t, "jobs", code, 0, out); strings.Count(out, "\n") != 1 {
		t.Errorf("%q", out)
	}
}

func TestLogsAndCancel(t *testing.T) {
	s := daemonFor(t, func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
		_, _ = io.WriteString(p.Stdout, "out\n")
		_, _ = io.WriteString(p.Stderr, "err\n")
		<-ctx.Done()
		return sandbox.Exit{}, context.Cause(ctx)
	}, nil)
	_, out, _ := runnerd(t, s.Socket, "", "run", "-d", "x")
	id := strings.TrimSpace(out)
	code, out, errs := runnerd(t, s.Socket, "", "__complete", "cancel", id[:2])
	expect(t, "completion", code, 0, out, id+"\t")
	_ = errs
	code, out, errs = runnerd(t, s.Socket, "", "cancel", id[:5], "nope")
	expect(t, "cancel", code, 1, out+errs, id, `there is no job "nope"`)
	code, out, errs = runnerd(t, s.Socket, "", "logs", "-f", id[:6])
	if expect(t, "logs", code, 0, out+errs); out != "out\n" || errs != "err\n" {
		t.Errorf("%q %q", out, errs)
	}
	code, _, errs = runnerd(t, s.Socket, "", "cancel", id)
	expect(t, "cancel again", code, 1, errs, "finished")
	code, _, errs = runnerd(t, s.Socket, "", "logs", "nope")
	expect(t, "logs of nothing", code, 1, errs, "runnerd jobs --all")
	for _, args := range [][]string{{"logs"}, {"cancel"}, {"jobs", "x"}, {"frob"}, {"jobs", "--frob"}, {"config", "frob"}} {
		code, _, errs = runnerd(t, s.Socket, "", args...)
		expect(t, fmt.Sprint(args), code, 2, errs, "--help")
	}
}

func TestUnreachable(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "nothing")
	for _, args := range [][]string{{"jobs"}, {"run", "x"}, {"build", t.TempDir()}, {"logs", "x"}, {"cancel", "x"}} {
		code, out, errs := runnerd(t, socket, "", args...)
		expect(t, fmt.Sprint(args), code, 4, out+errs, "cannot reach runnerd at "+socket, "runnerd serve")
	}
}

func TestConfigCommands(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "c.yaml")
	if err := os.WriteFile(file, []byte("limits:\n  default: {memroy: 1GiB}\njob_image: 'A B'\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runnerd(t, "/x", "", "config", "check", file)
	expect(t, "check", code, 2, out+errs, file+`:2:13: unknown key "limits.default.memroy": do you mean "memory"?`, file+":3:12: job_image")
	code, _, errs = runnerd(t, "/x", "", "--config", file, "jobs")
	expect(t, "jobs", code, 2, errs, "2 problems")
	code, _, errs = runnerd(t, "/x", "", "config", "check", filepath.Join(dir, "none"))
	expect(t, "no file", code, 2, errs, "no such file")
	code, out, _ = runnerd(t, "/x", "", "config", "check")
	expect(t, "check", code, 0, out, "ok")
	code, out, _ = runnerd(t, "/x.sock", "", "--state-dir", dir, "config", "show")
	expect(t, "show", code, 0, out, "state_dir: "+dir, "run_dir: "+dir+"/run", "path: /x.sock")
	code, out, _ = runnerd(t, "/x", "", "config", "schema")
	expect(t, "schema", code, 0, out, `"$schema"`)
	code, out, _ = runnerd(t, "/x", "", "version", "--json")
	expect(t, "version", code, 0, out, `"api": "1.0.0"`)
	code, out, _ = runnerd(t, "/x", "", "--help")
	expect(t, "help", code, 0, out, "124  timeout", "serve", "doctor", "completion")
	code, out, _ = runnerd(t, "/x", "", "completion", "bash")
	expect(t, "completion", code, 0, out, "bash completion")
}

// TestRunOrigin holds that a job's scope is computed from what is said of where it comes from.
func TestRunOrigin(t *testing.T) {
	var got runner.Request
	s := daemonFor(t, nil, func(c *api.Config, b *apitest.Backend) {
		c.Prepare = func(r *runner.Request) error { got = *r; return nil }
		b.Run = func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
			return runner.Result{Outcome: runner.Succeeded}
		}
	})
	for _, c := range []struct {
		args []string
		want string // the scope, or part of the error
		code int
	}{
		{nil, "default", 0},
		{[]string{"--untrusted"}, "default (untrusted)", 0},
		{[]string{"--project", "p", "--untrusted"}, "p (untrusted)", 0},
		{[]string{"--origin", "forge=f.test,project=g/p,kind=branch,ref=main,protected"}, "f.test/g/p", 0},
		{[]string{"--origin", "forge=f.test,project=g/p,kind=merge_request,protected,fork"}, "f.test/g/p (untrusted)", 0},
		{[]string{"--origin", "forge=f.test"}, "the project is missing", exitUsage},
		{[]string{"--origin", "forge=f.test,project=p,kind=hope"}, "kind", exitUsage},
		{[]string{"--origin", "project=p,trusted"}, `"trusted" is not known`, exitUsage},
		{[]string{"--origin", "project=p", "--project", "q"}, "excludes", exitUsage},
	} {
		got = runner.Request{}
		code, _, errs := runnerd(t, s.Socket, "", append(append([]string{"run"}, c.args...), "--", "true")...)
		if code != c.code || code == 0 && got.Scope.String() != c.want || code != 0 && !strings.Contains(errs, c.want) {
			t.Errorf("%v: exit code %d, scope %s: %s", c.args, code, got.Scope, errs)
		}
	}
}
