package gitlabtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Plan is what goes wrong. Of the faults that match a request the first counts.
type Plan struct {
	Seed   uint64  `json:"seed"` // of the probabilities
	Faults []Fault `json:"faults"`
}

// Fault is one thing that goes wrong with some requests.
type Fault struct {
	// On is the kind of request; empty: any. Job is a pattern (path.Match) of its job's name, State the state that an
	// update tells; empty: any.
	On    Endpoint `json:"on,omitempty"`
	Job   string   `json:"job,omitempty"`
	State string   `json:"state,omitempty"`

	// Skip lets so many of them pass first, Count is how many are then hit; 0: all. After and For say the same in time,
	// from when the plan was set. Probability is of each one; 0: certain.
	Skip        int      `json:"skip,omitempty"`
	Count       int      `json:"count,omitempty"`
	After       Duration `json:"after,omitempty"`
	For         Duration `json:"for,omitempty"`
	Probability float64  `json:"probability,omitempty"`

	// Delay is before the request is handled. Slow is between pieces of 1 KiB of the bodies, both ways.
	Delay Duration `json:"delay,omitempty"`
	Slow  Duration `json:"slow,omitempty"`
	// Drop closes the connection: before the request is handled, or after it, so that the answer is lost.
	Drop Drop `json:"drop,omitempty"`
	// Status answers in the request's stead, with these headers, and Body as it is or GitLab's message.
	Status int               `json:"status,omitempty"`
	Header map[string]string `json:"header,omitempty"`
	Body   string            `json:"body,omitempty"`
	// RetryAfter and ResetTime say, with Status, when to come again: in the header Retry-After in seconds, and in
	// RateLimit-ResetTime as a time.
	RetryAfter Duration `json:"retry_after,omitempty"`
	ResetTime  Duration `json:"reset_time,omitempty"`
	// Range is put into the header Range of the answer.
	Range string `json:"range,omitempty"`
	// Lose makes the server forget the job's trace first; Revoke, the runner's or job's token. LogLimit ends the job as
	// one whose trace is too large.
	Lose     bool `json:"lose,omitempty"`
	Revoke   bool `json:"revoke,omitempty"`
	LogLimit bool `json:"log_limit,omitempty"`
}

// Drop is when a connection is closed.
type Drop string

// The times.
const (
	Before Drop = "before"
	After  Drop = "after"
)

// Duration is a time.Duration that is text in JSON, such as 15m.
type Duration time.Duration

// UnmarshalText reads it.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}

// MarshalText writes it.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// ReadPlan reads a plan from a JSON file.
func ReadPlan(file string) (Plan, error) {
	var p Plan
	text, err := os.ReadFile(file)
	if err != nil {
		return p, err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&p); err != nil {
		return p, fmt.Errorf("read the faults in %s: %w", file, err)
	}
	return p, p.check()
}

func (p Plan) check() error {
	for i, f := range p.Faults {
		if f.On != "" && !slices.Contains(endpoints(), f.On) {
			return fmt.Errorf("fault %d: there is no %q: use one of %v", i+1, f.On, endpoints())
		}
		if f.Drop != "" && f.Drop != Before && f.Drop != After {
			return fmt.Errorf("fault %d: drop is %q: use before or after", i+1, f.Drop)
		}
		if _, err := path.Match(f.Job, ""); err != nil {
			return fmt.Errorf("fault %d: job %q: %w", i+1, f.Job, err)
		}
		if f.Status != 0 && (f.Status < 200 || f.Status > 599) {
			return fmt.Errorf("fault %d: status %d: use one from 200 to 599", i+1, f.Status)
		}
	}
	return nil
}

// faults is a plan at work.
type faults struct {
	mu    sync.Mutex
	plan  Plan
	seen  []int
	since time.Time
	rand  *rand.Rand
}

func newFaults(p Plan) (*faults, error) {
	f := &faults{}
	return f, f.set(p)
}

func (f *faults) set(p Plan) error {
	if err := p.check(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plan, f.seen, f.since = p, make([]int, len(p.Faults)), time.Now()
	f.rand = rand.New(rand.NewPCG(p.Seed, 0))
	return nil
}

// Faults sets the plan anew.
func (s *Server) Faults(p Plan) error { return s.faults.set(p) }

// find is the fault that hits a request.
func (f *faults) find(e Endpoint, job string, state func() string) *Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.plan.Faults {
		fault := &f.plan.Faults[i]
		passed := time.Since(f.since)
		if fault.On != "" && fault.On != e || fault.On == "" && e == Other ||
			passed < time.Duration(fault.After) ||
			fault.For > 0 && passed >= time.Duration(fault.After+fault.For) {
			continue
		}
		if fault.Job != "" {
			if ok, _ := path.Match(fault.Job, job); !ok {
				continue
			}
		}
		if fault.State != "" && fault.State != state() {
			continue
		}
		if fault.Probability > 0 && f.rand.Float64() >= fault.Probability {
			continue
		}
		f.seen[i]++
		if n := f.seen[i]; n <= fault.Skip || fault.Count > 0 && n > fault.Skip+fault.Count {
			continue
		}
		return fault
	}
	return nil
}

type lostKey struct{}

// answered runs f unless a fault is to lose the answer. The lock is held.
func (c *call) answered(f func()) {
	if c.r.Context().Value(lostKey{}) == nil {
		f()
	}
}

// serve handles a request as the plan will have it.
func (f *faults) serve(s *Server, e Endpoint, w http.ResponseWriter, r *http.Request) {
	name := s.jobName(r)
	fault := f.find(e, name, func() string { return stateOf(r) })
	if fault == nil {
		s.mux.ServeHTTP(w, r)
		return
	}
	s.o.Log("fault on %s %s", r.Method, r.URL.Path)
	pause(r.Context(), time.Duration(fault.Delay))
	s.spoil(r, fault)
	if fault.Slow > 0 {
		r.Body = slowBody{r.Context(), r.Body, time.Duration(fault.Slow)}
		slow := &slowWriter{ResponseWriter: w, ctx: r.Context(), d: time.Duration(fault.Slow)}
		w = slow
		if e != Download && e != Git && e != Store && fault.Drop == "" { // small answers, which are given with the lock held
			held := &held{ResponseWriter: slow, status: http.StatusOK}
			defer held.send()
			w = held
		}
	}
	switch {
	case fault.Drop == Before:
		panic(http.ErrAbortHandler)
	case fault.Drop == After:
		r = r.WithContext(context.WithValue(r.Context(), lostKey{}, true))
		s.mux.ServeHTTP(&deaf{header: http.Header{}}, r)
		panic(http.ErrAbortHandler)
	case fault.Status != 0:
		s.refuse(fault, w, r)
	case fault.Range != "":
		s.mux.ServeHTTP(&rangeWriter{ResponseWriter: w, value: fault.Range}, r)
	default:
		s.mux.ServeHTTP(w, r)
	}
}

// refuse answers in the request's stead. What is left of a small body is read, so that the connection can be kept.
func (s *Server) refuse(fault *Fault, w http.ResponseWriter, r *http.Request) {
	_, _ = io.CopyN(io.Discard, r.Body, patchLimit)
	c := &call{s: s, w: w, r: r}
	for k, v := range fault.Header {
		w.Header().Set(k, v)
	}
	var wait time.Duration
	if fault.RetryAfter > 0 {
		wait = time.Duration(fault.RetryAfter)
		w.Header().Set("Retry-After", seconds(wait))
	}
	if fault.ResetTime > 0 {
		wait = time.Duration(fault.ResetTime)
		w.Header().Set("RateLimit-ResetTime", time.Now().Add(wait).UTC().Format(http.TimeFormat))
	}
	if fault.Range != "" {
		w.Header().Set("Range", fault.Range)
	}
	if wait > 0 {
		s.mu.Lock()
		s.window(r, s.endpointOf(r)).until = time.Now().Add(wait)
		s.mu.Unlock()
	}
	if fault.Body == "" {
		c.message(fault.Status)
		return
	}
	if w.Header().Get("Content-Type") == "" {
		w.Header().Set("Content-Type", "text/plain")
	}
	w.WriteHeader(fault.Status)
	_, _ = io.WriteString(w, fault.Body)
}

// spoil does what a fault does to the state of the server.
func (s *Server) spoil(r *http.Request, fault *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.jobOf(r)
	if fault.Lose && j != nil {
		j.lose()
	}
	if fault.LogLimit && j != nil && !j.Status.Ended() {
		s.end(j, Failed, traceTooLarge, 0)
	}
	if !fault.Revoke {
		return
	}
	if j != nil {
		j.token = random(12)
	}
	for _, ru := range s.runners {
		if ru.token == r.Header.Get(runnerToken) {
			ru.revoked = true
		}
	}
}

// jobOf is the job of a request, if its path has one.
func (s *Server) jobOf(r *http.Request) *job {
	rest, ok := strings.CutPrefix(r.URL.Path, "/api/v4/jobs/")
	if !ok {
		return nil
	}
	id, _, _ := strings.Cut(rest, "/")
	n, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		return nil
	}
	return s.job(n)
}

func (s *Server) jobName(r *http.Request) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if j := s.jobOf(r); j != nil {
		return j.Name
	}
	return ""
}

// stateOf reads the state of an update, and puts the body back.
func stateOf(r *http.Request) string {
	if r.Method != http.MethodPut {
		return ""
	}
	body, _ := io.ReadAll(io.LimitReader(r.Body, bodyLimit))
	rest := r.Body
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), rest), rest}
	var v struct{ State string }
	_ = json.Unmarshal(body, &v) // what is no JSON has no state; the handler says so
	return v.State
}

// held keeps an answer until the handler is done.
type held struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (h *held) WriteHeader(status int)      { h.status = status }
func (h *held) Write(p []byte) (int, error) { return h.body.Write(p) }

func (h *held) send() {
	h.ResponseWriter.WriteHeader(h.status)
	_, _ = h.ResponseWriter.Write(h.body.Bytes()) // a client that is gone hears nothing
}

// deaf takes an answer that nobody will get.
type deaf struct{ header http.Header }

func (d *deaf) Header() http.Header         { return d.header }
func (d *deaf) Write(p []byte) (int, error) { return len(p), nil }
func (d *deaf) WriteHeader(int)             {}

// rangeWriter changes the header Range.
type rangeWriter struct {
	http.ResponseWriter
	value string
}

func (w *rangeWriter) WriteHeader(status int) {
	w.Header().Set("Range", w.value)
	w.ResponseWriter.WriteHeader(status)
}

// slowPiece is how much of a slow body goes at once, in bytes.
const slowPiece = 1024

type slowBody struct {
	ctx context.Context
	io.ReadCloser
	d time.Duration
}

func (b slowBody) Read(p []byte) (int, error) {
	pause(b.ctx, b.d)
	return b.ReadCloser.Read(p[:min(len(p), slowPiece)])
}

type slowWriter struct {
	http.ResponseWriter
	ctx context.Context
	d   time.Duration
}

func (w *slowWriter) Write(p []byte) (int, error) {
	n := 0
	for piece := range slices.Chunk(p, slowPiece) {
		pause(w.ctx, w.d)
		m, err := w.ResponseWriter.Write(piece)
		n += m
		if err != nil {
			return n, err
		}
		if f, ok := w.ResponseWriter.(http.Flusher); ok {
			f.Flush()
		}
	}
	return n, nil
}
