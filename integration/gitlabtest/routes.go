package gitlabtest

import (
	"context"
	"net/http"
	"strconv"
	"time"
)

// Endpoint names a part of the API, for faults and counts.
type Endpoint string

// The endpoints.
const (
	Register    Endpoint = "register"
	Verify      Endpoint = "verify"
	Unregister  Endpoint = "unregister" // of a runner or one of its managers
	ResetToken  Endpoint = "reset_token"
	Discovery   Endpoint = "discovery"
	Request     Endpoint = "request" // for a job
	UpdateJob   Endpoint = "update"
	PatchTrace  Endpoint = "trace"
	Upload      Endpoint = "upload"
	Download    Endpoint = "download"
	Environment Endpoint = "environment" // jobs/:id/runtime_environment_key
	Git         Endpoint = "git"
	Store       Endpoint = "store" // the object store
	Other       Endpoint = "other"
)

// endpoints are all that a fault may name.
func endpoints() []Endpoint {
	return []Endpoint{
		Register, Verify, Unregister, ResetToken, Discovery, Request, UpdateJob, PatchTrace, Upload, Download, Environment,
		Git, Store,
	}
}

func (s *Server) route() {
	mux := http.NewServeMux()
	s.mux, s.patterns = mux, map[string]Endpoint{"/objects/{id}": Store}
	api := func(pattern string, e Endpoint, f func(*call)) {
		s.patterns[pattern] = e
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c := &call{s: s, w: w, r: r, endpoint: e}
			w.Header().Set("X-Request-Id", r.Header.Get("X-Request-Id"))
			c.headers()
			if id, err := strconv.ParseInt(r.PathValue("id"), 10, 64); err == nil && e != ResetToken {
				s.mu.Lock()
				c.job = s.job(id)
				s.mu.Unlock()
			}
			f(c)
		})
	}
	api("POST /api/v4/runners", Register, (*call).register)
	api("DELETE /api/v4/runners", Unregister, (*call).unregister)
	api("DELETE /api/v4/runners/managers", Unregister, (*call).unregisterManager)
	api("POST /api/v4/runners/verify", Verify, (*call).verify)
	api("POST /api/v4/runners/reset_authentication_token", ResetToken, (*call).resetToken)
	api("POST /api/v4/runners/{id}/reset_authentication_token", ResetToken, (*call).resetTokenOf)
	api("GET /api/v4/runners/router/discovery", Discovery, (*call).discover)
	api("POST /api/v4/jobs/request", Request, (*call).request)
	api("PUT /api/v4/jobs/{id}", UpdateJob, (*call).update)
	api("PATCH /api/v4/jobs/{id}/trace", PatchTrace, (*call).patchTrace)
	api("POST /api/v4/jobs/{id}/artifacts", Upload, (*call).upload)
	api("GET /api/v4/jobs/{id}/artifacts", Download, (*call).download)
	api("GET /api/v4/jobs/{id}/runtime_environment_key", Environment, func(c *call) {
		c.only(jobToken)
		c.message(http.StatusNotFound) // behind a feature flag that is off
	})
	api("/api/v4/", Other, func(c *call) {
		c.breach("there is no such call")
		c.error(http.StatusNotFound, "404 Not Found")
	})
	mux.HandleFunc("/objects/{id}", s.store)
	pages := s.pages()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if project, rest, ok := repositoryPath(r.URL.Path); ok {
			s.git(w, r, project, rest)
			return
		}
		pages.ServeHTTP(w, r)
	})
}

// endpointOf tells the endpoint of a request before it is handled.
func (s *Server) endpointOf(r *http.Request) Endpoint {
	_, pattern := s.mux.Handler(r)
	if e, ok := s.patterns[pattern]; ok {
		return e
	}
	if _, _, ok := repositoryPath(r.URL.Path); ok {
		return Git
	}
	return Other
}

// ServeHTTP answers a request, by way of the limits and faults.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := s.endpointOf(r)
	s.mu.Lock()
	s.requests[e]++
	closed := s.closed
	s.mu.Unlock()
	if closed {
		panic(http.ErrAbortHandler)
	}
	if s.o.Verbose {
		s.o.Log("%s %s", r.Method, r.URL.Path)
	}
	if e != Other && e != Git && e != Store && !s.allow(w, r, e) {
		return
	}
	s.faults.serve(s, e, w, r)
}

// Requests is how many of each kind came.
func (s *Server) Requests() map[Endpoint]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[Endpoint]int{}
	for e, n := range s.requests {
		out[e] = n
	}
	return out
}

// pause waits unless the request ends before.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
