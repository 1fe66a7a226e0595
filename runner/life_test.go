package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

var container = sandbox.Nesting{sandbox.Container}

// bench is a Runner with one job in front of it.
type bench struct {
	t      *testing.T
	config Config
	sb     *fakeSandbox
	job    Job
	rep    *fakeReporter
	cancel chan struct{}
}

func newBench(t *testing.T, steps ...Step) *bench {
	b := &bench{
		t: t, sb: &fakeSandbox{t: t, id: "job"}, rep: newReporter(t, "job"), cancel: make(chan struct{}),
		job: Job{Request: Request{ID: "job", Nesting: container, Limits: mem(1)}, Steps: steps},
	}
	b.config = Config{
		Open:      func(context.Context, Job) (sandbox.Sandbox, error) { return b.sb, nil },
		Policy:    sandbox.DefaultPolicy(),
		Admission: NewAdmission(Capacity{CPU: 1000, Memory: 4 * gib, Jobs: 10}),
	}
	return b
}

// run runs the job to its end and checks what must always hold.
func (b *bench) run() Result {
	b.t.Helper()
	src := newSource(1)
	src.c <- Assignment{Job: b.job, Reporter: b.rep, Cancel: b.cancel}
	close(src.c)
	r, err := New(b.config)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := r.Run(b.t.Context(), src); err != nil {
		b.t.Fatal(err)
	}
	return b.ended()
}

func (b *bench) ended() Result {
	b.t.Helper()
	if b.rep.result == nil {
		b.t.Fatal("the job is not finished")
	}
	if held := b.config.Admission.Held(); held != (Capacity{}) {
		b.t.Errorf("the job still holds %+v", held)
	}
	return *b.rep.result
}

func (b *bench) expect(r Result, o Outcome, reason string, message ...string) {
	b.t.Helper()
	if r.Outcome != o || r.Reason != reason {
		b.t.Errorf("%s (%s), want %s (%s): %s", r.Outcome, r.Reason, o, reason, r.Message)
	}
	for _, m := range message {
		if !strings.Contains(r.Message, m) {
			b.t.Errorf("the message %q does not say %q", r.Message, m)
		}
	}
}

func TestLifeSucceeded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, takes(time.Second), takes(2*time.Second))
		b.sb.usage = sandbox.Usage{CPU: time.Second, MemoryPeak: 42}
		b.sb.onClose = func(ctx context.Context) { _ = sleep(ctx, 3*time.Second) }
		start := time.Now()
		r := b.run()
		b.expect(r, Succeeded, "")
		if got := strings.Join(b.rep.states, " "); got != "opening running closing" {
			t.Errorf("states: %s", got)
		}
		if r.Usage.MemoryPeak != 42 || b.sb.closed != 1 {
			t.Errorf("usage %+v, closed %d times", r.Usage, b.sb.closed)
		}
		if tm := r.Times; tm.Opened.Sub(start) != 0 || tm.Ended.Sub(tm.Opened) != 3*time.Second || tm.Closed.Sub(tm.Ended) != 3*time.Second {
			t.Errorf("times: %+v", tm)
		}
	})
}

// TestLifeRoom has a job wait for room on the disk before its sandbox is opened.
func TestLifeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exits(0))
		b.config.Room = func(ctx context.Context, waiting func(string)) error {
			waiting("waiting for disk")
			return sleep(ctx, 5*time.Second)
		}
		start := time.Now()
		r := b.run()
		b.expect(r, Succeeded, "")
		if got := strings.Join(b.rep.states, " "); got != "waiting opening running closing" || r.Times.Opened.Sub(start) != 5*time.Second {
			t.Errorf("states: %s, opened after %s", got, r.Times.Opened.Sub(start))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exits(0))
		b.config.Room = func(context.Context, func(string)) error { return errors.New("no room") }
		b.expect(b.run(), Errored, "", "no room")
		if b.sb.closed != 0 {
			t.Error("a sandbox was opened")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exits(0))
		b.job.Timeout = Duration(time.Second)
		b.config.Room = func(ctx context.Context, _ func(string)) error { return sleep(ctx, time.Hour) }
		if r := b.run(); r.Outcome != TimedOut {
			t.Errorf("%+v", r)
		}
	})
}

func TestLifeOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		change          func(*bench)
		outcome         Outcome
		reason, message string
		code, closed    int
	}{
		"script fails":  {func(b *bench) { b.job.Steps = []Step{exits(3), exits(0)} }, Failed, "", "step test: exit code 3", 3, 1},
		"no steps":      {func(b *bench) { b.job.Steps = nil }, Succeeded, "", "", 0, 1},
		"policy":        {func(b *bench) { b.config.Policy = sandbox.Policy{} }, Rejected, ReasonPolicy, "denied by policy", 0, 0},
		"too big":       {func(b *bench) { b.job.Limits = mem(5) }, Rejected, ReasonTooBig, "capacity.memory", 0, 0},
		"open":          {openFails(errors.New("no cgroup")), Errored, "", "no cgroup", 0, 0},
		"image":         {openFails(fmt.Errorf("pull x: %w", sandbox.ErrUnknownImage)), Rejected, ReasonImage, "image not found", 0, 0},
		"driver denies": {openFails(fmt.Errorf("x: %w", sandbox.ErrDenied)), Rejected, ReasonPolicy, "denied", 0, 0},
		"open panics":   {func(b *bench) { b.config.Open = func(context.Context, Job) (sandbox.Sandbox, error) { panic("ouch") } }, Errored, ReasonPanic, "ouch", 0, 0},
		"open gives nil": {func(b *bench) {
			b.config.Open = func(context.Context, Job) (sandbox.Sandbox, error) { return nil, nil }
		}, Errored, "", "none", 0, 0},
		"step errs":   {func(b *bench) { b.job.Steps = []Step{stepErrs(errors.New("shim died"))} }, Errored, "", "step test: shim died", 0, 1},
		"step panics": {func(b *bench) { b.job.Steps = []Step{stepFunc(nil)} }, Errored, ReasonPanic, "panicked", 0, 1},
		"oom by exit": {func(b *bench) {
			b.job.Steps = []Step{stepFunc(func(context.Context, sandbox.Host, Output) (sandbox.Exit, error) {
				return sandbox.Exit{Code: 137, Signal: syscall.SIGKILL, OOM: true}, nil
			})}
		}, Failed, ReasonOOM, "out of memory", 137, 1},
		"oom by usage": {func(b *bench) {
			b.job.Steps = []Step{stepFunc(func(context.Context, sandbox.Host, Output) (sandbox.Exit, error) {
				b.sb.usage.OOMKills = 1
				return sandbox.Exit{Code: 2}, nil
			})}
		}, Failed, ReasonOOM, "more memory", 2, 1},
		"oom that an earlier step got over": {func(b *bench) {
			b.sb.usage.OOMKills = 1
			b.job.Steps = []Step{exits(0), exits(2)}
		}, Failed, "", "exit code 2", 2, 1},
		"oom and success": {func(b *bench) {
			b.job.Steps = []Step{stepFunc(func(context.Context, sandbox.Host, Output) (sandbox.Exit, error) {
				return sandbox.Exit{OOM: true}, nil
			})}
		}, Succeeded, "", "", 0, 1},
		"close fails":            {func(b *bench) { b.sb.closeErr = errors.New("mount is busy") }, Succeeded, "", "was not removed: mount is busy", 0, 1},
		"script and close fail":  {func(b *bench) { b.job.Steps = []Step{exits(3)}; b.sb.closeErr = errors.New("mount is busy") }, Failed, "", "exit code 3; the sandbox was not removed", 3, 1},
		"close panics":           {func(b *bench) { b.sb.onClose = func(context.Context) { panic("ouch") } }, Succeeded, "", "ouch", 0, 0},
		"the log cannot be kept": {func(b *bench) { b.rep.writeErr = syscall.ENOSPC; b.job.Steps = []Step{says("hello")} }, Succeeded, "", "no space left", 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, exits(0))
			c.change(b)
			r := b.run()
			b.expect(r, c.outcome, c.reason, c.message)
			if r.ExitCode != c.code || b.sb.closed != c.closed {
				t.Errorf("exit code %d, want %d; sandbox closed %d times, want %d", r.ExitCode, c.code, b.sb.closed, c.closed)
			}
		})
	}
}

func openFails(err error) func(*bench) {
	return func(b *bench) {
		b.config.Open = func(context.Context, Job) (sandbox.Sandbox, error) { return nil, err }
	}
}

func stepErrs(err error) stepFunc {
	return func(context.Context, sandbox.Host, Output) (sandbox.Exit, error) { return sandbox.Exit{}, err }
}

func says(text string) stepFunc {
	return func(_ context.Context, _ sandbox.Host, out Output) (sandbox.Exit, error) {
		_, err := io.WriteString(out.Stream(Stdout), text)
		return sandbox.Exit{}, err
	}
}

func TestLifeTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		asked, byDefault, limit, want time.Duration
	}{
		"asked":      {asked: time.Minute, byDefault: time.Hour, want: time.Minute},
		"by default": {byDefault: time.Hour, want: time.Hour},
		"clamped":    {asked: 10 * time.Hour, limit: 2 * time.Hour, want: 2 * time.Hour},
		"only limit": {limit: 2 * time.Hour, want: 2 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, takes(100*time.Hour))
				b.config.DefaultTimeout, b.config.MaxTimeout, b.job.Timeout = c.byDefault, c.limit, Duration(c.asked)
				r := b.run()
				b.expect(r, TimedOut, "", "timeout of "+c.want.String())
				if took := r.Times.Ended.Sub(r.Times.Admitted); took != c.want || b.sb.closed != 1 {
					t.Errorf("took %s, closed %d times", took, b.sb.closed)
				}
				if clamped := strings.Contains(b.rep.said(Notice), "longer than the limit"); clamped != (name == "clamped") {
					t.Errorf("notices: %q", b.rep.said(Notice))
				}
			})
		})
	}
}

// TestLifeCancel cancels a job at every place of its life.
func TestLifeCancel(t *testing.T) {
	const moment = time.Second
	for _, c := range []struct {
		when    State
		change  func(*bench)
		outcome Outcome
		closed  int
	}{
		{Waiting, func(b *bench) {
			if _, err := b.config.Admission.Admit(b.t.Context(), "other", mem(4), nil); err != nil {
				b.t.Fatal(err)
			}
		}, Cancelled, 0},
		{Opening, func(b *bench) {
			b.config.Open = func(ctx context.Context, _ Job) (sandbox.Sandbox, error) {
				return nil, fmt.Errorf("open: %w", sleep(ctx, 2*moment))
			}
		}, Cancelled, 0},
		{Opening, func(b *bench) { // a driver that does not look at its context
			b.config.Open = func(context.Context, Job) (sandbox.Sandbox, error) {
				<-time.After(2 * moment)
				return b.sb, nil
			}
		}, Cancelled, 1},
		{Running, func(b *bench) { b.job.Steps = []Step{takes(2 * moment)} }, Cancelled, 1},
		{Running, func(b *bench) { // a step that tells its end by a signal
			b.job.Steps = []Step{stepFunc(func(ctx context.Context, _ sandbox.Host, _ Output) (sandbox.Exit, error) {
				_ = sleep(ctx, 2*moment)
				return sandbox.Exit{Code: 137, Signal: syscall.SIGKILL}, nil
			})}
		}, Cancelled, 1},
		{Closing, func(b *bench) {
			b.sb.onClose = func(ctx context.Context) {
				if err := sleep(ctx, 2*moment); err != nil {
					b.t.Errorf("closing is cancelled: %v", err)
				}
			}
		}, Succeeded, 1},
	} {
		t.Run(string(c.when), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, exits(0))
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				c.change(b)
				time.AfterFunc(moment, func() {
					b.rep.mu.Lock()
					defer b.rep.mu.Unlock()
					if n := len(b.rep.states); n == 0 || b.rep.states[n-1] != string(c.when) {
						t.Errorf("states %v, want to cancel while %s", b.rep.states, c.when)
					}
					close(b.cancel)
				})
				r, err := New(b.config)
				if err != nil {
					t.Fatal(err)
				}
				src := newSource(1)
				src.c <- Assignment{Job: b.job, Reporter: b.rep, Cancel: b.cancel}
				close(src.c)
				if err := r.Run(ctx, src); err != nil {
					t.Fatal(err)
				}
				b.expect(*b.rep.result, c.outcome, "")
				if b.sb.closed != c.closed {
					t.Errorf("closed %d times, want %d", b.sb.closed, c.closed)
				}
			})
		})
	}
}

func TestLifeCloseHasADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, exits(0))
		b.config.CleanupTimeout = time.Minute
		b.sb.onClose = func(ctx context.Context) { _ = sleep(ctx, time.Hour) }
		start := time.Now()
		b.expect(b.run(), Succeeded, "", "not removed", "deadline")
		if took := time.Since(start); took != time.Minute {
			t.Errorf("took %s", took)
		}
	})
}

func TestLifeMasks(t *testing.T) {
	b := newBench(t,
		stepFunc(func(_ context.Context, _ sandbox.Host, out Output) (sandbox.Exit, error) {
			for _, part := range []string{"a hun", "ter", "22 b hun"} {
				_, _ = io.WriteString(out.Stream(Stdout), part)
			}
			_, _ = io.WriteString(out.Stream(Progress), `{"name":"hunter22"}`)
			return sandbox.Exit{}, nil
		}),
		stepErrs(errors.New("no such user: hunter22")))
	b.job.Secrets = []string{"hunter22", "abc"}
	b.expect(b.run(), Errored, "", "no such user: [MASKED]")
	if got := b.rep.said(Stdout); got != "a [MASKED] b hun" {
		t.Errorf("stdout: %q", got)
	}
	if got := b.rep.said(Progress); got != `{"name":"[MASKED]"}` {
		t.Errorf("progress: %q", got)
	}
	if got := b.rep.said(Notice); !strings.Contains(got, "1 secrets are shorter than 4") || strings.Contains(got, "hunter22") {
		t.Errorf("notices: %q", got)
	}
}

type detailed struct{ stepFunc }

func (detailed) Detail() json.RawMessage { return json.RawMessage(`{"digest":"sha256:0"}`) }

func TestLifeDetail(t *testing.T) {
	b := newBench(t, detailed{exits(0)}, exits(1))
	if r := b.run(); string(r.Detail) != `{"digest":"sha256:0"}` {
		t.Errorf("detail: %s", r.Detail)
	}
}

func TestRunDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.config.Drain = time.Minute
		sandboxes := map[string]*fakeSandbox{"short": {t: t, id: "short"}, "long": {t: t, id: "long"}}
		b.config.Open = func(_ context.Context, j Job) (sandbox.Sandbox, error) { return sandboxes[j.ID], nil }
		src := newSource(2)
		reps := map[string]*fakeReporter{}
		for id, d := range map[string]time.Duration{"short": 30 * time.Second, "long": time.Hour} {
			reps[id] = newReporter(t, id)
			src.c <- Assignment{Job: Job{Request: Request{ID: id, Nesting: container}, Steps: []Step{takes(d)}}, Reporter: reps[id]}
		}
		r, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		told := errors.New("SIGTERM")
		time.AfterFunc(10*time.Second, func() { cancel(told) })
		start := time.Now()
		if err := r.Run(ctx, src); !errors.Is(err, told) {
			t.Errorf("Run returns %v", err)
		}
		if took := time.Since(start); took != 70*time.Second {
			t.Errorf("took %s", took)
		}
		b.expect(*reps["short"].result, Succeeded, "")
		b.expect(*reps["long"].result, Cancelled, ReasonShutdown, "runnerd was stopped")
	})
}

func TestRunAsksOnlyWhenThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.config.MaxLive = 3
		b.config.Open = func(_ context.Context, j Job) (sandbox.Sandbox, error) { return &fakeSandbox{t: t, id: j.ID}, nil }
		var live, most atomic.Int32
		b.config.Observe = func(_ Job, s State, _ *Result) {
			switch s {
			case Opening:
				most.Store(max(most.Load(), live.Add(1)))
			case Finished:
				live.Add(-1)
			}
		}
		src := newSource(10)
		for i := range 10 {
			id := fmt.Sprint("job-", i)
			src.c <- Assignment{Job: Job{Request: Request{ID: id, Nesting: container}, Steps: []Step{takes(time.Second)}}, Reporter: newReporter(t, id)}
		}
		close(src.c)
		r, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := r.Run(t.Context(), src); err != nil {
			t.Fatal(err)
		}
		if most.Load() != 3 || time.Since(start) != 4*time.Second {
			t.Errorf("%d jobs at once, %s for all", most.Load(), time.Since(start))
		}
	})
}

type flaky struct {
	Source
	fail int
}

func (f *flaky) Next(ctx context.Context) (Assignment, error) {
	if f.fail--; f.fail >= 0 {
		return Assignment{}, errors.New("the forge is down")
	}
	return f.Source.Next(ctx)
}

func TestRunAsksAgainAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		src := newSource(1)
		src.c <- Assignment{Job: Job{Request: Request{ID: "job", Nesting: container}}, Reporter: b.rep}
		close(src.c)
		r, err := New(b.config)
		if err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		if err := r.Run(t.Context(), &flaky{Source: src, fail: 3}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took != 7*time.Second {
			t.Errorf("took %s, want 1+2+4 s", took)
		}
		b.expect(*b.rep.result, Succeeded, "")
	})
}

// TestRunFinishesEachJobOnce lets random jobs meet random faults, cancels and a shutdown. The fakes fail
// the test when anything happens twice or too late.
func TestRunFinishesEachJobOnce(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			rnd := rand.New(rand.NewPCG(seed, 9))
			const n = 60
			var opened, closed atomic.Int32
			b := newBench(t)
			b.config.Drain, b.config.MaxLive, b.config.CleanupTimeout = time.Duration(rnd.IntN(60))*time.Second, 1+rnd.IntN(20), time.Minute
			src := newSource(n)
			reps := make([]*fakeReporter, n)
			opens := map[string]func(context.Context) (sandbox.Sandbox, error){}
			for i := range n {
				id := fmt.Sprint("job-", i)
				reps[i] = newReporter(t, id)
				sb := &fakeSandbox{t: t, id: id}
				delay := func() time.Duration { return time.Duration(rnd.IntN(30)) * time.Second }
				onClose, openTime, stepTime, fault, stepFault := delay(), delay(), delay(), rnd.IntN(8), rnd.IntN(6)
				sb.onClose = func(ctx context.Context) { _ = sleep(ctx, onClose); closed.Add(1) }
				if rnd.IntN(5) == 0 {
					sb.closeErr = errors.New("busy")
				}
				opens[id] = func(ctx context.Context) (sandbox.Sandbox, error) {
					if err := sleep(ctx, openTime); err != nil {
						return nil, err
					}
					switch fault {
					case 0:
						return nil, errors.New("no")
					case 1:
						panic("open")
					}
					opened.Add(1)
					return sb, nil
				}
				step := stepFunc(func(ctx context.Context, _ sandbox.Host, out Output) (sandbox.Exit, error) {
					_, _ = io.WriteString(out.Stream(Stdout), "hello")
					if err := sleep(ctx, stepTime); err != nil {
						return sandbox.Exit{}, err
					}
					switch stepFault {
					case 0:
						panic("step")
					case 1:
						return sandbox.Exit{}, errors.New("no")
					case 2:
						return sandbox.Exit{Code: 1}, nil
					}
					return sandbox.Exit{}, nil
				})
				cancel := make(chan struct{})
				if rnd.IntN(3) == 0 {
					time.AfterFunc(time.Duration(rnd.IntN(300))*time.Second, func() { close(cancel) })
				}
				src.c <- Assignment{
					Job:      Job{Request: Request{ID: id, Nesting: container, Limits: mem(5 * rnd.Float64()), Timeout: Duration(delay() + time.Second)}, Steps: []Step{step, step}},
					Reporter: reps[i], Cancel: cancel,
				}
			}
			b.config.Open = func(ctx context.Context, j Job) (sandbox.Sandbox, error) { return opens[j.ID](ctx) }
			r, err := New(b.config)
			if err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Duration(rnd.IntN(600))*time.Second)
			defer stop()
			_ = r.Run(ctx, src)
			given := n - len(src.c)
			for i, rep := range reps {
				if (rep.result != nil) != (i < given) {
					t.Errorf("job %d of %d given: result %+v", i, given, rep.result)
				}
			}
			if opened.Load() != closed.Load() || b.config.Admission.Held() != (Capacity{}) {
				t.Errorf("%d sandboxes opened, %d closed, held %+v", opened.Load(), closed.Load(), b.config.Admission.Held())
			}
		})
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	if _, err := New(Config{}); err == nil {
		t.Error("a Runner that can open no sandbox")
	}
}
