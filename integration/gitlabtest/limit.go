package gitlabtest

import (
	"net/http"
	"strconv"
	"time"
)

// window counts a token's requests of one kind, and knows when it was told to come again.
type window struct {
	began time.Time
	n     int
	until time.Time
}

// window is that of a request's token and kind. The lock is held.
func (s *Server) window(r *http.Request, e Endpoint) *window {
	key := string(e) + " " + r.Header.Get(runnerToken) + r.Header.Get(jobToken)
	w := s.limits[key]
	if w == nil {
		w = &window{}
		s.limits[key] = w
	}
	return w
}

// early is how much before the time that was told a request may come: the header has whole seconds.
const early = time.Second

// allow counts a request, and answers it if there were too many.
func (s *Server) allow(rw http.ResponseWriter, r *http.Request, e Endpoint) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.window(r, e)
	c := &call{s: s, w: rw, r: r}
	now := time.Now()
	if wait := w.until.Sub(now); wait > early {
		c.note("again %v before the time that was told", wait.Round(time.Millisecond))
	}
	if now.After(w.until) {
		w.until = time.Time{}
	}
	if s.o.RateLimit.Requests == 0 {
		return true
	}
	if now.Sub(w.began) >= s.o.RateLimit.Window {
		w.began, w.n = now, 0
	}
	w.n++
	if w.n <= s.o.RateLimit.Requests {
		return true
	}
	reset := w.began.Add(s.o.RateLimit.Window)
	w.until = reset
	h := rw.Header()
	h.Set("RateLimit-Limit", strconv.Itoa(s.o.RateLimit.Requests))
	h.Set("RateLimit-Observed", strconv.Itoa(w.n))
	h.Set("RateLimit-Remaining", "0")
	h.Set("RateLimit-Reset", strconv.FormatInt(reset.Unix(), 10))
	h.Set("RateLimit-ResetTime", reset.UTC().Format(http.TimeFormat))
	h.Set("Retry-After", seconds(reset.Sub(now)))
	c.json(http.StatusTooManyRequests, map[string]any{
		"message": map[string]string{"error": "This endpoint has been requested too many times. Try again later."},
	})
	return false
}
