package gitlab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// TestJob runs jobs to their ends.
func TestJob(t *testing.T) {
	t.Run("a job that succeeds", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			id := w.fake.offer(nil)
			w.start()
			j := w.over(id, time.Second)
			if j.state != "success" || j.accepted != 1 || w.runs(id) != 1 {
				t.Errorf("%+v", j)
			}
			if text := string(j.trace); !strings.Contains(text, fmt.Sprintf("hello from job %d\n", id)) || !strings.HasSuffix(text, "Job succeeded\x1b[0;m\n") {
				t.Errorf("trace %q", text)
			}
			synctest.Wait()
			if p := w.phases(id); p != "assigned accepted decided done" {
				t.Errorf("phases: %s", p)
			}
			w.nothingLeft()
		})
	})
	t.Run("a script that fails", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(context.Context, Assigned, runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{Code: 42}, nil
			}
			id := w.fake.offer(nil)
			w.start()
			j := w.over(id, time.Second)
			if j.final.FailureReason != spec.ScriptFailure || j.final.ExitCode != 42 || !strings.Contains(string(j.trace), "ERROR: Job failed: exit code 42") {
				t.Errorf("%+v %q", j.final, j.trace)
			}
		})
	})
	t.Run("an error of ours", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(context.Context, Assigned, runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{}, errors.New("no more loop devices")
			}
			id := w.fake.offer(nil)
			w.start()
			j := w.over(id, time.Second)
			if j.final.FailureReason != spec.RunnerSystemFailure || !strings.Contains(string(j.trace), "(system failure): no more loop devices") {
				t.Errorf("%+v %q", j.final, j.trace)
			}
		})
	})
	t.Run("a job that cannot be made ready", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			id := w.fake.offer(func(j *spec.Job) {
				j.Variables = []spec.Variable{{Key: "PREPARE", Value: "the image is no image: secret-word"}, {Key: "S", Value: "secret-word", Masked: true}}
			})
			w.start()
			j := w.over(id, time.Second)
			if j.final.FailureReason != spec.RunnerSystemFailure || !strings.Contains(string(j.trace), "the image is no image: [MASKED]") || j.accepted != 1 {
				t.Errorf("%+v %q", j, j.trace)
			}
		})
	})
	t.Run("a job that is too big", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			prepare := w.config.Prepare
			w.config.Prepare = func(ctx context.Context, a Assigned) (runner.Job, error) {
				j, err := prepare(ctx, a)
				j.Limits.CPU = 1e6
				return j, err
			}
			id := w.fake.offer(nil)
			w.start()
			if j := w.over(id, time.Second); j.final.FailureReason != spec.ScriptFailure || j.accepted != 1 {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("one after the other", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(ctx context.Context, _ Assigned, _ runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{}, sleep(ctx, 10*time.Second)
			}
			var ids []int64
			for range 12 {
				ids = append(ids, w.fake.offer(nil))
			}
			w.start()
			time.Sleep(time.Second)
			synctest.Wait()
			if n := w.fake.count("POST jobs/request"); n != 4 { // as many as there is room for
				t.Errorf("%d requests for 4 jobs", n)
			}
			for _, id := range ids {
				w.over(id, time.Minute)
			}
		})
	})
	t.Run("its own limit", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			if err := w.config.Runners.(*Registrations).Update("r", func(r *Registration) { r.Concurrent = 1 }); err != nil {
				t.Fatal(err)
			}
			w.run = func(ctx context.Context, _ Assigned, _ runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{}, sleep(ctx, 10*time.Second)
			}
			first, second := w.fake.offer(nil), w.fake.offer(nil)
			w.start()
			w.over(first, 11*time.Second)
			if w.fake.job(second).state == "success" {
				t.Error("both ran at once")
			}
			w.over(second, 11*time.Second)
		})
	})
	t.Run("the operator cancels it", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(ctx context.Context, _ Assigned, _ runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{}, sleep(ctx, time.Hour)
			}
			id := w.fake.offer(nil)
			w.start()
			w.wait(time.Second, "running", func() bool { return w.runs(id) == 1 })
			close(w.only().cancel)
			if j := w.over(id, 5*time.Second); j.final.FailureReason != spec.UnknownFailure {
				t.Errorf("%+v", j.final)
			}
		})
	})
	t.Run("shutdown", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(ctx context.Context, _ Assigned, _ runner.Output) (sandbox.Exit, error) {
				return sandbox.Exit{}, sleep(ctx, time.Hour)
			}
			id := w.fake.offer(nil)
			w.start()
			w.wait(time.Second, "running", func() bool { return w.runs(id) == 1 })
			w.end()
			j := w.fake.job(id)
			if j.final.FailureReason != spec.RunnerSystemFailure || !strings.Contains(string(j.trace), "(system failure): runnerd was stopped") {
				t.Errorf("%+v %q", j.final, j.trace)
			}
			w.nothingLeft()
		})
	})
	t.Run("panic while it is made ready", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.config.Prepare = func(context.Context, Assigned) (runner.Job, error) { panic("oh") }
			id := w.fake.offer(nil)
			w.start()
			if j := w.over(id, time.Second); j.final.FailureReason != spec.RunnerSystemFailure {
				t.Errorf("%+v", j.final)
			}
		})
	})
}

// TestTwoPhases is about jobs that were given and not accepted.
func TestTwoPhases(t *testing.T) {
	// full takes all the room there is.
	full := func(w *world) (release func()) {
		release, err := w.runner.Admission.Admit(context.Background(), "other", sandbox.Limits{CPU: 4000}, nil)
		if err != nil {
			w.t.Fatal(err)
		}
		return release
	}
	t.Run("nothing begins before the server knows", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			var states []string
			w.run = func(_ context.Context, a Assigned, _ runner.Output) (sandbox.Exit, error) {
				states = append(states, w.fake.job(a.Job.ID).state)
				return sandbox.Exit{}, nil
			}
			w.over(w.fakeStart(), time.Second)
			if fmt.Sprint(states) != "[running]" {
				t.Errorf("the job ran while the server had %v", states)
			}
		})
	})
	t.Run("no request without room", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			release := full(w)
			id := w.fakeStart()
			time.Sleep(time.Hour)
			if w.fake.count("POST") != 0 {
				t.Error("a job was asked for without room for it")
			}
			release()
			w.over(id, time.Second)
		})
	})
	t.Run("kept while it waits", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			var release func()
			prepare := w.config.Prepare
			w.config.Prepare = func(ctx context.Context, a Assigned) (runner.Job, error) {
				release = full(w) // somebody was faster
				return prepare(ctx, a)
			}
			id := w.fakeStart()
			time.Sleep(15 * time.Minute)
			if n := w.fake.count(fmt.Sprintf("PUT jobs/%d pending", id)); n < 25 || n > 30 {
				t.Errorf("told %d times in 15 minutes that it waits", n)
			}
			if j := w.fake.job(id); j.state != "assigned" || j.assigned != 1 || w.runs(id) != 0 {
				t.Errorf("%+v", j)
			}
			release()
			j := w.over(id, time.Second)
			if !strings.Contains(string(j.trace), "waiting for") {
				t.Errorf("trace %q", j.trace)
			}
		})
	})
	t.Run("a server without the second phase", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.onePhase = true
			var release func()
			prepare := w.config.Prepare
			w.config.Prepare = func(ctx context.Context, a Assigned) (runner.Job, error) {
				release = full(w)
				return prepare(ctx, a)
			}
			id := w.fakeStart()
			time.Sleep(10 * time.Minute)
			if n := w.fake.count(fmt.Sprintf("PUT jobs/%d pending", id)); n != 1 {
				t.Errorf("%d times pending", n)
			}
			if n := w.fake.count(fmt.Sprintf("PUT jobs/%d running", id)); n < 15 {
				t.Errorf("%d times running", n)
			}
			release()
			if j := w.over(id, time.Second); j.state != "success" || w.runs(id) != 1 {
				t.Errorf("%+v", j)
			}
		})
	})
	for name, c := range map[string]struct {
		fault   fault
		state   string
		updates string
	}{
		"409: another has it":   {fault: fault{status: http.StatusConflict}},
		"404: it is gone":       {fault: fault{status: http.StatusNotFound}},
		"403: it is over":       {fault: fault{status: http.StatusForbidden}},
		"canceled":              {fault: fault{status: http.StatusOK, header: http.Header{"Job-Status": {"canceled"}}}},
		"canceling":             {state: "canceling", updates: "running failed job_canceled"},
		"500, and then it's ok": {fault: fault{status: http.StatusInternalServerError}, updates: "ok"},
	} {
		t.Run("accepting: "+name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				w.fake.fault = fewTimes(1, func(r *http.Request, body []byte) (fault, bool) {
					if c.state != "" && saysState(body, spec.Running) {
						for id := range w.fake.jobs {
							w.fake.set(id, c.state)
						}
					}
					return c.fault, saysState(body, spec.Running)
				})
				id := w.fakeStart()
				time.Sleep(20 * time.Second)
				if c.updates == "ok" {
					w.over(id, time.Second)
					return
				}
				if w.runs(id) != 0 || w.opened != 0 {
					t.Errorf("%d runs, %d sandboxes", w.runs(id), w.opened)
				}
				if c.state == "canceling" {
					if j := w.fake.job(id); j.final.FailureReason != spec.JobCanceled {
						t.Errorf("%+v", j.final)
					}
				} else if n := w.fake.count(fmt.Sprintf("PUT jobs/%d", id)); n != 1 {
					t.Errorf("%d updates", n)
				}
				w.nothingLeft()
			})
		})
	}
	t.Run("accepting: the answer is lost", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.fault = fewTimes(1, func(_ *http.Request, body []byte) (fault, bool) {
				return fault{after: true}, saysState(body, spec.Running)
			})
			id := w.fakeStart()
			if j := w.over(id, 10*time.Second); j.accepted != 1 || w.runs(id) != 1 {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("accepting: the server is down for too long", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			var down atomic.Bool
			down.Store(true)
			w.fake.fault = func(r *http.Request, body []byte) fault { return fault{before: down.Load() && !isRequest(r)} }
			id := w.fakeStart()
			time.Sleep(15 * time.Minute)
			if w.runs(id) != 0 || w.opened != 0 {
				t.Error("it was begun")
			}
			down.Store(false)
			// It went to the next who asked: that is us, and it runs once.
			if j := w.over(id, 10*time.Minute); j.state != "success" || j.assigned < 2 || w.runs(id) != 1 {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("canceling while it waits", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			prepare := w.config.Prepare
			w.config.Prepare = func(ctx context.Context, a Assigned) (runner.Job, error) {
				full(w)
				return prepare(ctx, a)
			}
			w.fake.fault = func(_ *http.Request, body []byte) fault {
				if saysState(body, spec.Pending) {
					for id := range w.fake.jobs {
						w.fake.set(id, "canceling")
					}
					return fault{status: 200, header: http.Header{"Job-Status": {"canceling"}}}
				}
				return fault{}
			}
			id := w.fakeStart()
			if j := w.over(id, 2*time.Minute); j.final.FailureReason != spec.JobCanceled || w.runs(id) != 0 {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("the answer that gives the job is lost", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.fault = fewTimes(1, func(r *http.Request, _ []byte) (fault, bool) { return fault{after: true}, isRequest(r) })
			id := w.fakeStart()
			if j := w.over(id, 10*time.Minute); j.assigned != 2 || w.runs(id) != 1 {
				t.Errorf("%+v", j)
			}
		})
	})
	t.Run("a job that comes while runnerd stops", func(t *testing.T) {
		for _, onePhase := range []bool{false, true} {
			virtual(t, func(t *testing.T, w *world) {
				w.fake.onePhase = onePhase
				w.start()
				time.Sleep(time.Minute)
				stopped := make(chan struct{})
				go func() { defer close(stopped); w.end() }()
				synctest.Wait()
				id := w.fake.offer(nil) // into the request that is still under way
				time.Sleep(time.Minute)
				<-stopped
				j := w.fake.job(id)
				if j.assigned != 1 || w.runs(id) != 0 {
					t.Errorf("%+v", j)
				}
				if onePhase && j.final.FailureReason != spec.RunnerSystemFailure || !onePhase && j.state != "assigned" {
					t.Errorf("%+v", j)
				}
				w.nothingLeft()
			})
		}
	})
}

// fakeStart offers a job and starts.
func (w *world) fakeStart() int64 {
	id := w.fake.offer(nil)
	w.start()
	return id
}
