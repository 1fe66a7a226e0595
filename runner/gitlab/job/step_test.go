package job

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

func (b *bench) reason() spec.FailureReason {
	var d Detail
	if err := json.Unmarshal(b.step.Detail(), &d); err != nil {
		b.t.Fatal(err)
	}
	return d.FailureReason
}

// TestOutcomes has scripts that end in every way, and looks at what still runs, and what the forge is told.
func TestOutcomes(t *testing.T) {
	broken := errors.New("containerd is gone")
	for name, c := range map[string]struct {
		change func(*bench)
		ran    []string
		code   int
		err    error
		reason spec.FailureReason
		status string // that after_script sees
		says   []string
	}{
		"succeeds": {ran: []string{sources, script1, after}, status: "success"},
		"script fails": {
			change: func(b *bench) { b.on.does[script1] = exits(3) },
			ran:    []string{sources, script1, after}, code: 3, reason: spec.ScriptFailure, status: "failed",
		},
		"after_script fails": {
			change: func(b *bench) { b.on.does[after] = exits(4) },
			ran:    []string{sources, script1, after}, says: []string{"after_script failed, but job will continue unaffected: exit code 4"},
		},
		"after_script that counts fails": {
			change: func(b *bench) {
				b.on.does[after] = exits(4)
				b.set("AFTER_SCRIPT_IGNORE_ERRORS", "false")
			},
			ran: []string{sources, script1, after}, code: 4, reason: spec.ScriptFailure,
		},
		"sources fail": {
			change: func(b *bench) { b.on.does[sources] = exits(128) },
			ran:    []string{sources}, code: 128, reason: spec.ScriptFailure,
		},
		"no sources": {
			change: func(b *bench) {
				b.on.does["Skipping Git repository setup"] = exits(0)
				b.set("GIT_STRATEGY", "none")
			},
			ran: []string{"Skipping Git repository setup", script1, after},
		},
		"sandbox breaks": {
			change: func(b *bench) { b.on.does[script1] = breaks(broken) },
			ran:    []string{sources, script1, after}, err: broken, reason: spec.RunnerSystemFailure, status: "failed",
		},
		"no helper": {
			change: func(b *bench) { delete(b.on.images, helperImage) },
			err:    sandbox.ErrUnknownImage, reason: spec.ImagePullFailure,
		},
		"script timeout": {
			change: func(b *bench) {
				b.on.does[script1] = takes(time.Hour)
				b.set("RUNNER_SCRIPT_TIMEOUT", "1m")
			},
			ran: []string{sources, script1, after}, err: runner.ErrTimeout, reason: spec.JobExecutionTimeout, status: "timedout",
			says: []string{"step_script could not run to completion because the timeout was exceeded"},
		},
		"a step's own timeout": {
			change: func(b *bench) {
				b.on.does[script1] = takes(time.Hour)
				b.in.Job.Steps[0].Timeout = 60
			},
			ran: []string{sources, script1, after}, err: runner.ErrTimeout, reason: spec.JobExecutionTimeout, status: "timedout",
		},
		"after_script timeout": {
			change: func(b *bench) { b.on.does[after] = takes(time.Hour) },
			ran:    []string{sources, script1, after}, says: []string{"after_script took longer than 5m0s"},
		},
		"job timeout": {
			change: func(b *bench) { b.on.does[script1] = takes(2 * time.Hour) },
			ran:    []string{sources, script1}, err: runner.ErrTimeout, reason: spec.JobExecutionTimeout,
		},
		"job timeout in the sources": {
			change: func(b *bench) { b.on.does[sources] = takes(2 * time.Hour) },
			ran:    []string{sources}, err: runner.ErrTimeout, reason: spec.JobExecutionTimeout,
		},
		"further steps": {
			change: func(b *bench) {
				b.on.does[script1], b.on.does["the release"], b.on.does["the failure"], b.on.does["anyway"] = exits(1), exits(0), exits(0), exits(0)
				b.in.Job.Steps = append(b.in.Job.Steps,
					spec.Step{Name: "release", Script: []string{"the release"}, When: "on_success"},
					spec.Step{Name: "failed", Script: []string{"the failure"}, When: "on_failure"},
					spec.Step{Name: "more", Script: []string{"anyway"}, When: "always"})
			},
			ran: []string{sources, script1, "the failure", "anyway", after}, code: 1, reason: spec.ScriptFailure, status: "failed",
		},
		"a step may fail": {
			change: func(b *bench) {
				b.on.does[script1], b.on.does["the release"] = exits(1), exits(0)
				b.in.Job.Steps[0].AllowFailure = true
				b.in.Job.Steps = append(b.in.Job.Steps, spec.Step{Name: "release", Script: []string{"the release"}, When: "on_success"})
			},
			ran: []string{sources, script1, "the release", after}, status: "success", says: []string{"is allowed to"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				if c.change != nil {
					c.change(b)
				}
				ctx, cancel := context.WithTimeoutCause(t.Context(), time.Hour, runner.ErrTimeout)
				defer cancel()
				exit, err := b.run(ctx)
				if exit.Code != c.code || !errors.Is(err, c.err) || (err == nil) != (c.err == nil) {
					t.Errorf("got %v, %v; want %d, %v", exit, err, c.code, c.err)
				}
				if got := b.reason(); got != c.reason {
					t.Errorf("the reason is %q, want %q", got, c.reason)
				}
				if got := b.env(after, "CI_JOB_STATUS"); c.status != "" && got != c.status {
					t.Errorf("after_script sees %q, want %q", got, c.status)
				}
				b.wants(c.ran, c.says...)
			})
		})
	}
}

func (b *bench) set(key, value string) {
	b.in.Job.Variables = append(b.in.Job.Variables, spec.Variable{Key: key, Value: value, Public: true})
}

// TestCanceling has the forge cancel a job at each of its stages: the script is stopped, and after_script runs if the
// script had begun.
func TestCanceling(t *testing.T) {
	for piece, ran := range map[string][]string{
		sources: {sources},
		script1: {sources, script1, after},
		after:   {sources, script1, after},
	} {
		t.Run(piece, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				stop := make(chan struct{})
				b.in.Stop = stop
				b.on.does[piece] = func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
					close(stop)
					return takes(time.Minute)(ctx, p)
				}
				began := time.Now()
				_, err := b.run(t.Context())
				b.wants(ran)
				if piece == after { // the script had succeeded, so the job has
					if err != nil || b.reason() != "" || time.Since(began) != time.Minute {
						t.Errorf("got %v after %s", err, time.Since(began))
					}
					return
				}
				if !errors.Is(err, runner.ErrCancelled) || b.reason() != "" || time.Since(began) != 0 {
					t.Errorf("got %v after %s, reason %q", err, time.Since(began), b.reason())
				}
				if piece == script1 && b.env(after, "CI_JOB_STATUS") != "canceled" {
					t.Errorf("after_script sees %q", b.env(after, "CI_JOB_STATUS"))
				}
				b.wants(ran)
			})
		})
	}
}

// TestCanceled has the forge want the job no longer, while its after_script runs: that is ended, too.
func TestCanceled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ctx, cancel := context.WithCancelCause(t.Context())
		b.on.does[after] = func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
			cancel(runner.ErrCancelled)
			return takes(time.Minute)(ctx, p)
		}
		if _, err := b.run(ctx); !errors.Is(err, runner.ErrCancelled) {
			t.Errorf("got %v", err)
		}
		b.wants([]string{sources, script1, after})
	})
}

// TestEnvironment looks at what processes are given.
func TestEnvironment(t *testing.T) {
	b := newBench(t)
	b.on.image.User, b.on.image.Entrypoint = "app", nil
	b.set("GREETING", "hello $CI_PROJECT_DIR")
	b.on.does[script1] = func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
		if p.Dir != "/builds/group/app" {
			t.Errorf("the script runs in %q", p.Dir)
		}
		_, err := io.WriteString(p.Stdout, "from the script\n")
		return sandbox.Exit{}, err
	}
	if _, err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"PATH": "/bin", "OF": "image", "GREETING": "hello /builds/group/app", "CI_JOB_STATUS": "running"} {
		if got := b.env(script1, key); got != want {
			t.Errorf("%s is %q, want %q", key, got, want)
		}
	}
	if b.on.users[sources] != rootUser || b.on.users[script1] != "" {
		t.Errorf("users: %v", b.on.users)
	}
	if !strings.Contains(b.out.String(), "from the script\n") {
		t.Error("the script's output is lost")
	}
}
