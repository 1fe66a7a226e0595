package gitlab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// says is a job that writes and then takes a while.
func says(text string, d time.Duration) func(context.Context, Assigned, runner.Output) (sandbox.Exit, error) {
	return func(ctx context.Context, _ Assigned, out runner.Output) (sandbox.Exit, error) {
		if text != "" {
			if _, err := io.WriteString(out.Stream(runner.Stdout), text); err != nil {
				return sandbox.Exit{}, err
			}
		}
		return sandbox.Exit{}, sleep(ctx, d)
	}
}

// TestTrace is about how a log is sent.
func TestTrace(t *testing.T) {
	t.Run("the first output goes at once", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.interval = 60
			var said time.Time
			w.run = func(ctx context.Context, _ Assigned, out runner.Output) (sandbox.Exit, error) {
				_ = sleep(ctx, 100*time.Second)
				said = time.Now()
				_, _ = io.WriteString(out.Stream(runner.Stdout), "ready\n")
				return sandbox.Exit{}, sleep(ctx, 100*time.Second)
			}
			id := w.fakeStart()
			w.wait(time.Second, "running", func() bool { return w.runs(id) == 1 })
			w.wait(101*time.Second, "output", func() bool { return strings.Contains(string(w.fake.job(id).trace), "ready\n") })
			if late := w.fake.job(id).patches[0].Sub(said); late != 0 {
				t.Errorf("output came %s late", late)
			}
		})
	})
	for _, interval := range []int{0, 3, 60} {
		t.Run(fmt.Sprintf("interval %d", interval), func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				w.fake.interval = interval
				w.run = func(ctx context.Context, _ Assigned, out runner.Output) (sandbox.Exit, error) {
					for i := range 3000 {
						if _, err := fmt.Fprintln(out.Stream(runner.Stdout), i); err != nil {
							return sandbox.Exit{}, err
						}
						if err := sleep(ctx, 100*time.Millisecond); err != nil {
							return sandbox.Exit{}, err
						}
					}
					return sandbox.Exit{}, nil
				}
				id := w.fakeStart()
				j := w.over(id, 6*time.Minute)
				want := max(interval, 3)
				gaps := w.fake.gaps("PATCH")
				// The second one comes soon, and then they come as the server wants.
				for i, gap := range gaps[:len(gaps)-1] {
					ideal := time.Duration(want) * time.Second
					if i == 0 {
						ideal = firstGap
					}
					if gap < ideal || gap > ideal+200*time.Millisecond {
						t.Errorf("patch %d came %s after the one before: %v", i+1, gap, gaps)
						break
					}
				}
				for _, gap := range w.fake.gaps("P") { // of any kind
					if gap > touchAfter+time.Second {
						t.Errorf("nothing for %s", gap)
					}
				}
				if strings.Count(string(j.trace), "\n") != 3001 {
					t.Error("lines are missing")
				}
			})
		})
	}
	t.Run("silence: no empty patches, touched after 30 s", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = says("", 15*time.Minute)
			id := w.fakeStart()
			w.over(id, 16*time.Minute)
			if n := w.fake.count(fmt.Sprintf("PUT jobs/%d running", id)); n < 29 || n > 31 {
				t.Errorf("told %d times in 15 minutes that it runs", n)
			}
			if n := w.fake.count("PATCH"); n != 1 {
				t.Errorf("%d patches", n)
			}
		})
	})
	t.Run("a big log in patches", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			text := strings.Repeat("0123456789abcde\n", 3<<20/16)
			w.run = says(text, time.Second)
			id := w.fakeStart()
			j := w.over(id, 3*time.Second)
			if !strings.HasPrefix(string(j.trace), text) || len(j.patches) > 8 {
				t.Errorf("%d bytes in %d patches", len(j.trace), len(j.patches))
			}
		})
	})
	t.Run("the limit of the runner's own", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			if err := w.config.Runners.(*Registrations).Update("r", func(r *Registration) { r.OutputLimit = 10 }); err != nil {
				t.Fatal(err)
			}
			w.run = says(strings.Repeat("a", 200), 0)
			if j := w.over(w.fakeStart(), time.Second); !strings.HasPrefix(string(j.trace), "aaaaaaaaaa\n") {
				t.Errorf("%q", j.trace)
			}
		})
	})
	t.Run("the limit", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.config.TraceLimit = 100
			w.run = says(strings.Repeat("ä", 200), 0) // the limit is in the midst of nothing
			id := w.fakeStart()
			j := w.over(id, time.Second)
			want := strings.Repeat("ä", 50) + "\n\x1b[33;1mJob's log exceeded limit of 100 bytes.\nJob execution will continue but no more output will be collected.\x1b[0;m\n"
			if string(j.trace) != want {
				t.Errorf("%q", j.trace)
			}
			if !strings.Contains(w.only().said(), strings.Repeat("ä", 200)) {
				t.Error("the machine's own log is not complete")
			}
		})
	})
	for name, c := range map[string]struct {
		fault func(r *http.Request, body []byte) (fault, bool)
		n     int
	}{
		"416: the server has less": {n: 1, fault: func(r *http.Request, _ []byte) (fault, bool) {
			return fault{status: 416, header: http.Header{"Range": {"0-0"}}}, isPatch(r)
		}},
		"416 again and again": {n: 20, fault: func(r *http.Request, _ []byte) (fault, bool) {
			return fault{status: 416, header: http.Header{"Range": {"0-0"}}}, isPatch(r)
		}},
		"416 without a range":  {n: 1, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{status: 416}, isPatch(r) }},
		"409: somebody writes": {n: 3, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{status: 409}, isPatch(r) }},
		"404 for a while":      {n: 3, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{status: 404}, isPatch(r) }},
		"500s":                 {n: 12, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{status: 500}, isPatch(r) }},
		"429": {n: 2, fault: func(r *http.Request, _ []byte) (fault, bool) {
			return fault{status: 429, header: http.Header{"Retry-After": {"2"}}}, isPatch(r)
		}},
		"broken before":      {n: 4, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{before: true}, isPatch(r) }},
		"broken after":       {n: 4, fault: func(r *http.Request, _ []byte) (fault, bool) { return fault{after: true}, isPatch(r) }},
		"end: broken before": {n: 3, fault: func(_ *http.Request, b []byte) (fault, bool) { return fault{before: true}, saysState(b, spec.Success) }},
		"end: broken after":  {n: 1, fault: func(_ *http.Request, b []byte) (fault, bool) { return fault{after: true}, saysState(b, spec.Success) }},
		"end: 412":           {n: 2, fault: func(_ *http.Request, b []byte) (fault, bool) { return fault{status: 412}, saysState(b, spec.Success) }},
		"end: 500s":          {n: 30, fault: func(_ *http.Request, b []byte) (fault, bool) { return fault{status: 502}, saysState(b, spec.Success) }},
	} {
		t.Run(name, func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				sum := sha256.New()
				w.run = func(ctx context.Context, _ Assigned, out runner.Output) (sandbox.Exit, error) {
					for i := range 200 {
						_, _ = fmt.Fprintf(io.MultiWriter(sum, out.Stream(runner.Stdout)), "line %d\n", i)
						if err := sleep(ctx, 100*time.Millisecond); err != nil {
							return sandbox.Exit{}, err
						}
					}
					return sandbox.Exit{}, nil
				}
				w.fake.fault = fewTimes(c.n, c.fault)
				id := w.fakeStart()
				j := w.over(id, 20*time.Minute)
				text, _, _ := strings.Cut(string(j.trace), "\x1b")
				if got := sha256.Sum256([]byte(text)); !slices.Equal(got[:], sum.Sum(nil)) || j.state != "success" || w.runs(id) != 1 {
					t.Errorf("%s, %d bytes", j.state, len(j.trace))
				}
				time.Sleep(time.Hour)
				w.nothingLeft()
			})
		})
	}
	t.Run("416: it goes on where the server says", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = says("0123456789\n", 10*time.Second)
			w.fake.fault = fewTimes(1, func(r *http.Request, _ []byte) (fault, bool) { // as if it had lost some of the log
				if !isPatch(r) || r.Header.Get("Content-Range") == "0-10" {
					return fault{}, false
				}
				for _, j := range w.fake.jobs {
					j.trace = j.trace[:4]
				}
				return fault{}, true
			})
			id := w.fakeStart()
			j := w.over(id, 20*time.Second)
			if !strings.HasPrefix(string(j.trace), "0123456789\n") || w.fake.count(fmt.Sprintf("PATCH jobs/%d/trace 4-", id)) != 1 {
				t.Errorf("%q %v", j.trace, w.fake.calls)
			}
		})
	})
	t.Run("412: all of it is sent again", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = says("0123456789\n", time.Second)
			w.fake.fault = fewTimes(1, func(_ *http.Request, body []byte) (fault, bool) {
				if saysState(body, spec.Success) {
					for _, j := range w.fake.jobs {
						j.trace[0] = 'X'
					}
					return fault{}, true
				}
				return fault{}, false
			})
			id := w.fakeStart()
			j := w.over(id, 10*time.Second)
			if !strings.HasPrefix(string(j.trace), "0123456789\n") || w.fake.count(fmt.Sprintf("PATCH jobs/%d/trace 0-", id)) != 2 {
				t.Errorf("%q %v", j.trace, w.fake.calls)
			}
		})
	})
	t.Run("202: the end is told again after the interval", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.finishing, w.fake.interval = 3, 7
			id := w.fakeStart()
			w.over(id, time.Minute)
			if gaps := w.fake.gaps(fmt.Sprintf("PUT jobs/%d success", id)); fmt.Sprint(gaps) != "[7s 7s 7s]" {
				t.Errorf("%v", gaps)
			}
		})
	})
	for name, c := range map[string]struct {
		status int
		state  string
	}{"403": {status: 403}, "canceled": {200, "canceled"}, "failed": {200, "failed"}} {
		for _, where := range []string{"patch", "touch"} {
			t.Run(name+" at a "+where+": it ends at once, and nothing more is sent", func(t *testing.T) {
				virtual(t, func(t *testing.T, w *world) {
					w.run = says("output\n", time.Hour)
					if where == "touch" {
						w.run = says("", time.Hour)
					}
					var at time.Time
					w.fake.fault = func(r *http.Request, body []byte) fault {
						if isPatch(r) != (where == "patch") || !isPatch(r) && (!saysState(body, spec.Running) || w.runs(101) == 0) {
							return fault{}
						}
						if !at.IsZero() {
							t.Errorf("%s %s after the job was over", r.Method, r.URL.Path)
						}
						at = time.Now()
						x := fault{status: c.status, header: http.Header{}}
						if where == "patch" && c.status == 200 {
							x.status = 202
						}
						if c.state != "" {
							x.header.Set("Job-Status", c.state)
						}
						return x
					}
					id := w.fakeStart()
					w.wait(time.Minute, "the end", func() bool {
						w.mu.Lock()
						defer w.mu.Unlock()
						for _, l := range w.local {
							if l.ended() != nil {
								return true
							}
						}
						return false
					})
					if late := time.Since(at); late > 100*time.Millisecond {
						t.Errorf("it ended %s later", late)
					}
					time.Sleep(2 * time.Hour)
					if n := w.fake.count(fmt.Sprintf("PUT jobs/%d failed", id)); n != 0 {
						t.Error("its end was told")
					}
					if p := w.phases(id); p != "assigned accepted lost" {
						t.Errorf("phases: %s", p)
					}
					w.nothingLeft()
				})
			})
		}
	}
	t.Run("the log is over the server's limit", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.maxTrace = 1000
			w.run = says(strings.Repeat("x", 2000), time.Hour)
			id := w.fakeStart()
			w.over(id, time.Second)
			time.Sleep(time.Second)
			if r := w.only().ended(); r == nil || r.Outcome != runner.Cancelled || !strings.Contains(r.Message, "its log is over the server's limit") {
				t.Errorf("%+v", r)
			}
		})
	})
	t.Run("canceling: the script stops, and what comes after it is done", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.run = func(ctx context.Context, a Assigned, out runner.Output) (sandbox.Exit, error) {
				select {
				case <-a.Stop:
				case <-ctx.Done():
					t.Error("it was ended at once")
				}
				_, _ = io.WriteString(out.Stream(runner.Stdout), "after_script\n")
				return sandbox.Exit{Code: 1}, nil
			}
			id := w.fakeStart()
			w.wait(time.Second, "running", func() bool { return w.runs(id) == 1 })
			w.fake.set(id, "canceling")
			j := w.over(id, 31*time.Second)
			if !strings.Contains(string(j.trace), "after_script\n") || j.final.State != spec.Failed || j.final.FailureReason != spec.UnknownFailure {
				t.Errorf("%+v %q", j.final, j.trace)
			}
			synctest.Wait()
			if p := w.phases(id); p != "assigned accepted canceling decided done" {
				t.Errorf("phases: %s", p)
			}
		})
	})
	for status, phase := range map[int]string{403: "lost", 404: "lost"} {
		t.Run(fmt.Sprintf("end: %d, and it is forgotten", status), func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				w.fake.fault = func(_ *http.Request, b []byte) fault {
					if saysState(b, spec.Success) {
						return fault{status: status}
					}
					return fault{}
				}
				id := w.fakeStart()
				time.Sleep(time.Minute)
				if n := w.fake.count(fmt.Sprintf("PUT jobs/%d success", id)); n != 1 {
					t.Errorf("told %d times", n)
				}
				if p := w.phases(id); p != "assigned accepted decided "+phase {
					t.Errorf("phases: %s", p)
				}
				w.nothingLeft()
			})
		})
	}
	t.Run("end: told for an hour", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.fault = func(_ *http.Request, b []byte) fault { return fault{before: saysState(b, spec.Success)} }
			id := w.fakeStart()
			time.Sleep(59 * time.Minute)
			if p := w.phases(id); p != "assigned accepted decided" {
				t.Errorf("phases: %s", p)
			}
			time.Sleep(2 * time.Minute)
			if p := w.phases(id); p != "assigned accepted decided untold" {
				t.Errorf("phases: %s", p)
			}
			w.nothingLeft()
		})
	})
	t.Run("an outage of 15 minutes", func(t *testing.T) {
		for _, when := range []string{"while it runs", "at its end"} {
			virtual(t, func(t *testing.T, w *world) {
				var from atomic.Pointer[time.Time]
				begin := func() { now := time.Now(); from.Store(&now) }
				w.fake.fault = func(*http.Request, []byte) fault {
					at := from.Load()
					down := at != nil && time.Since(*at) < 15*time.Minute
					return fault{before: down && rand.N(2) == 0, after: down && rand.N(20) == 0, status: map[bool]int{true: 503}[down]}
				}
				sum := sha256.New()
				w.run = func(ctx context.Context, _ Assigned, out runner.Output) (sandbox.Exit, error) {
					if when == "while it runs" {
						begin()
					}
					for i := range 20 * 60 {
						_, _ = fmt.Fprintf(io.MultiWriter(sum, out.Stream(runner.Stdout)), "line %d\n", i)
						if err := sleep(ctx, time.Second); err != nil {
							return sandbox.Exit{}, err
						}
					}
					if when != "while it runs" {
						begin()
					}
					return sandbox.Exit{}, nil
				}
				id := w.fakeStart()
				j := w.over(id, 40*time.Minute)
				text, _, _ := strings.Cut(string(j.trace), "\x1b")
				if got := sha256.Sum256([]byte(text)); !slices.Equal(got[:], sum.Sum(nil)) || j.state != "success" || w.runs(id) != 1 || j.assigned != 1 {
					t.Errorf("%s: %s, %d bytes", when, j.state, len(j.trace))
				}
				// Then all goes on as before.
				w.mu.Lock()
				w.run = nil
				w.mu.Unlock()
				w.over(w.fake.offer(nil), 3*time.Minute)
			})
		}
	})
	t.Run("debug traces are marked", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			var query string
			w.fake.fault = func(r *http.Request, _ []byte) fault {
				if isPatch(r) {
					query = r.URL.RawQuery
				}
				return fault{}
			}
			id := w.fake.offer(func(j *spec.Job) { j.Variables = []spec.Variable{{Key: "CI_DEBUG_TRACE", Value: "true"}} })
			w.start()
			w.over(id, time.Second)
			if query != "debug_trace=true" {
				t.Error(query)
			}
		})
	})
}
