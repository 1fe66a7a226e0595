package gitlab

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// TestPoll is about how jobs are asked for.
func TestPoll(t *testing.T) {
	// answers makes requests for a job end with a status, and returns how often it did.
	answers := func(w *world, status int, h http.Header) (times func() int64) {
		var n atomic.Int64
		w.fake.fault = func(r *http.Request, _ []byte) fault {
			if !isRequest(r) {
				return fault{}
			}
			n.Add(1)
			return fault{status: status, header: h}
		}
		return n.Load
	}
	t.Run("last_update goes back, and the server paces us", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.start()
			time.Sleep(501 * time.Second)
			synctest.Wait()
			w.fake.mu.Lock()
			calls := fmt.Sprint(w.fake.calls)
			w.fake.mu.Unlock()
			if n := w.fake.count("POST"); n != 12 || !strings.Contains(calls, "last_update= POST jobs/request last_update=0 POST") {
				t.Errorf("%d requests in 500 s: %s", n, calls)
			}
		})
	})
	t.Run("a job is taken at once, however many came before", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.start()
			for range 5 {
				time.Sleep(400 * time.Millisecond)
				w.over(w.fake.offer(nil), 50*time.Millisecond)
			}
		})
	})
	t.Run("a server that does not hold requests", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			times := answers(w, http.StatusNoContent, nil)
			w.start()
			time.Sleep(10 * time.Minute)
			if n := times(); n < 200 || n > 400 {
				t.Errorf("%d requests in 600 s", n)
			}
		})
	})
	t.Run("409: again at once", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			n := 0
			w.fake.fault = fewTimes(10, func(r *http.Request, _ []byte) (fault, bool) {
				n++
				return fault{status: http.StatusConflict}, isRequest(r)
			})
			w.over(w.fakeStart(), 10*time.Millisecond)
			if n < 10 {
				t.Error(n)
			}
		})
	})
	t.Run("409 for ever", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			times := answers(w, http.StatusConflict, nil)
			w.start()
			time.Sleep(time.Minute)
			if n := times(); n > 60 {
				t.Errorf("%d requests in a minute", n)
			}
		})
	})
	for _, status := range []int{401, 403, 410, 422, 404, 301} {
		t.Run(fmt.Sprintf("%d: told once, and asked ever more seldom", status), func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				times := answers(w, status, nil)
				w.config.Asked = func(_ Registration, _ bool, err error) string {
					var e *StatusError
					if !errors.As(err, &e) {
						return ""
					}
					return fmt.Sprintf("mend %d", e.Status)
				}
				w.start()
				time.Sleep(24 * time.Hour)
				if n := times(); n < 24 || n > 60 {
					t.Errorf("%d requests in a day", n)
				}
				if log := w.log.String(); strings.Count(log, "level=ERROR") != 1 || !strings.Contains(log, fmt.Sprintf("mend %d", status)) {
					t.Errorf("log:\n%s", log)
				}
				if strings.Contains(w.log.String(), fakeToken) {
					t.Error("the log shows the token")
				}
				// Somebody mends it: a change of the registration is heeded at once.
				w.fake.mu.Lock()
				w.fake.fault = nil
				w.fake.mu.Unlock()
				if err := w.config.Runners.(*Registrations).Update("r", func(r *Registration) { r.Description = "new" }); err != nil {
					t.Fatal(err)
				}
				w.over(w.fake.offer(nil), time.Second)
			})
		})
	}
	t.Run("429 and 503: as the server says", func(t *testing.T) {
		for name, h := range map[string]func() http.Header{
			"Retry-After": func() http.Header { return http.Header{"Retry-After": {"100"}} },
			"both": func() http.Header {
				return http.Header{"Retry-After": {"1"}, "Ratelimit-Resettime": {time.Now().Add(100 * time.Second).UTC().Format(http.TimeFormat)}}
			},
			"date": func() http.Header {
				return http.Header{"Retry-After": {time.Now().Add(100 * time.Second).UTC().Format(http.TimeFormat)}}
			},
		} {
			for _, status := range []int{429, 503} {
				virtual(t, func(t *testing.T, w *world) {
					w.fake.fault = fewTimes(1, func(r *http.Request, _ []byte) (fault, bool) { return fault{status: status, header: h()}, isRequest(r) })
					began := time.Now()
					w.over(w.fakeStart(), 200*time.Second)
					if took := time.Since(began); took < 99*time.Second || took > 101*time.Second {
						t.Errorf("%s, %d: it took %s", name, status, took)
					}
				})
			}
		}
	})
	for _, status := range []int{408, 429, 500, 502, 503, 504, 512, 599} {
		t.Run(fmt.Sprintf("%d: tried again", status), func(t *testing.T) {
			virtual(t, func(t *testing.T, w *world) {
				times := answers(w, status, nil)
				w.start()
				time.Sleep(time.Hour)
				// Five tries a request, and a minute at most between requests.
				if n := times(); n < 5*60 || n > 5*150 {
					t.Errorf("%d requests in an hour", n)
				}
				if log := w.log.String(); strings.Count(log, "level=ERROR") != 1 {
					t.Errorf("log:\n%s", log)
				}
			})
		})
	}
	t.Run("an answer that is none of GitLab's", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			answers(w, http.StatusCreated, http.Header{"Content-Type": {"text/html"}})
			w.start()
			time.Sleep(time.Hour)
			if log := w.log.String(); !strings.Contains(log, "is the URL that of a GitLab?") {
				t.Error(log)
			}
		})
	})
	t.Run("a runner that is added, and one that is removed", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			rs := w.config.Runners.(*Registrations)
			w.run = says("", time.Minute)
			if err := rs.Remove("r"); err != nil {
				t.Fatal(err)
			}
			id := w.fakeStart()
			time.Sleep(time.Minute)
			if w.fake.count("POST") != 0 {
				t.Error("asked without a runner")
			}
			if err := rs.Add(Registration{Name: "r2", URL: "https://gitlab.example.com", Token: fakeToken}); err != nil {
				t.Fatal(err)
			}
			w.wait(time.Second, "running", func() bool { return w.runs(id) == 1 })
			if err := rs.Remove("r2"); err != nil {
				t.Fatal(err)
			}
			w.over(id, 2*time.Minute) // what it has it brings to its end
			n := w.fake.count("POST")
			time.Sleep(10 * time.Minute)
			if w.fake.count("POST") != n {
				t.Error("asked without a runner")
			}
		})
	})
	t.Run("jobs of one request are not mixed", func(t *testing.T) {
		virtual(t, func(t *testing.T, w *world) {
			w.fake.offer(func(j *spec.Job) { j.JobInfo.Name = "a" })
			id := w.fakeStart()
			w.over(id, time.Second)
			if w.runs(id) != 1 || w.runs(id-1) != 1 {
				t.Error("not each once")
			}
		})
	})
}
