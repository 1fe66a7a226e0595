package gitlab

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// fake is a GitLab that is strict: what a server would not forgive, or should not have to, fails the test.
type fake struct {
	t         *testing.T
	onePhase  bool          // like a GitLab without the second phase
	longPoll  time.Duration // how long a request for a job is held
	ack       time.Duration // after which a job that is not accepted goes to another
	interval  int           // seconds, for X-GitLab-Trace-Update-Interval; 0: none
	finishing int           // how often the end of a job is answered by 202
	maxTrace  int           // bytes; 0: no limit
	// fault, when not nil, may answer in the fake's place (status), or break the connection before or after the call.
	fault func(r *http.Request, body []byte) fault

	mu      sync.Mutex
	jobs    map[int64]*fakeJob
	waiting []int64
	version int
	changed chan struct{}
	polls   int
	calls   []string // method, path and what matters
	times   []time.Time
	nextID  int64
}

type fault struct {
	status        int
	header        http.Header
	before, after bool
}

type fakeJob struct {
	spec     spec.Job
	state    string // waiting, assigned, running, canceling, or how it ended
	trace    []byte
	touched  time.Time
	assigned int
	accepted int
	final    spec.Update
	patches  []time.Time
}

const fakeToken = "glrt-0123456789abcdefghij"

func newFake(t *testing.T) *fake {
	return &fake{t: t, longPoll: 50 * time.Second, ack: 2 * time.Minute, jobs: map[int64]*fakeJob{}, changed: make(chan struct{}), nextID: 100}
}

// offer makes a job wait for a runner.
func (f *fake) offer(change func(*spec.Job)) int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nextID++
	id := f.nextID
	j := &fakeJob{state: "waiting", spec: spec.Job{
		ID: id, JobInfo: spec.JobInfo{Name: "test", Stage: "test", PipelineID: 7, ProjectFullPath: "group/project"},
		Steps: []spec.Step{{Name: spec.StepScript, Script: []string{"true"}}},
	}}
	if change != nil {
		change(&j.spec)
	}
	f.jobs[id] = j
	f.waiting = append(f.waiting, id)
	f.wake()
	return id
}

func (f *fake) wake() {
	f.version++
	close(f.changed)
	f.changed = make(chan struct{})
}

// set changes a job's state from outside.
func (f *fake) set(id int64, state string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.jobs[id].state = state
}

// job is a copy.
func (f *fake) job(id int64) fakeJob {
	f.mu.Lock()
	defer f.mu.Unlock()
	j := *f.jobs[id]
	j.trace = slices.Clone(j.trace)
	return j
}

// count tells how many calls begin so.
func (f *fake) count(prefix string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if strings.HasPrefix(c, prefix) {
			n++
		}
	}
	return n
}

// gaps are the times between calls that begin so.
func (f *fake) gaps(prefix string) (gaps []time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var last time.Time
	for i, c := range f.calls {
		if !strings.HasPrefix(c, prefix) {
			continue
		}
		if !last.IsZero() {
			gaps = append(gaps, f.times[i].Sub(last))
		}
		last = f.times[i]
	}
	return gaps
}

var errBroken = errors.New("the connection is broken")

// RoundTrip makes the fake an http.Client's transport, so that time can be virtual.
func (f *fake) RoundTrip(r *http.Request) (*http.Response, error) {
	var body []byte
	if r.Body != nil {
		var err error
		body, err = io.ReadAll(r.Body)
		_ = r.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	if r.Context().Err() != nil {
		return nil, r.Context().Err()
	}
	var x fault
	f.mu.Lock()
	hook := f.fault
	f.mu.Unlock()
	if hook != nil {
		x = hook(r, body)
	}
	if x.before {
		return nil, errBroken
	}
	w := httptest.NewRecorder()
	if x.status != 0 {
		var u spec.Update
		_ = json.Unmarshal(body, &u)
		f.note(r, fmt.Sprintf("%s !%d", u.State, x.status))
		for k, v := range x.header {
			w.Header()[k] = v
		}
		w.WriteHeader(x.status)
	} else {
		done := make(chan struct{})
		go func() {
			defer close(done)
			f.serve(w, r, body)
		}()
		select {
		case <-done:
		case <-r.Context().Done():
			<-done
			return nil, r.Context().Err()
		}
	}
	if x.after {
		return nil, errBroken
	}
	res := w.Result()
	res.Request = r
	return res, nil
}

func (f *fake) note(r *http.Request, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, strings.TrimSpace(r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api/v4/")+" "+what))
	f.times = append(f.times, time.Now())
}

var (
	requestIDForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
	jobPath       = regexp.MustCompile(`^/api/v4/jobs/(\d+)(/trace)?$`)
)

func (f *fake) serve(w http.ResponseWriter, r *http.Request, body []byte) {
	if !requestIDForm.MatchString(r.Header.Get("X-Request-Id")) || r.Header.Get("Accept") != "application/json" {
		f.t.Errorf("%s %s: headers %v", r.Method, r.URL, r.Header)
	}
	w.Header().Set("X-Request-Id", "server-"+r.Header.Get("X-Request-Id"))
	switch m := jobPath.FindStringSubmatch(r.URL.Path); {
	case r.URL.Path == "/api/v4/jobs/request" && r.Method == http.MethodPost:
		f.request(w, r, body)
	case m != nil && m[2] == "" && r.Method == http.MethodPut:
		f.update(w, r, m[1], body)
	case m != nil && m[2] != "" && r.Method == http.MethodPatch:
		f.patch(w, r, m[1], body)
	default:
		f.t.Errorf("%s %s: no such call", r.Method, r.URL)
		w.WriteHeader(http.StatusNotFound)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

func (f *fake) request(w http.ResponseWriter, r *http.Request, body []byte) {
	var req spec.JobRequest
	if json.Unmarshal(body, &req) != nil || req.Token != fakeToken || r.Header.Get("RUNNER-TOKEN") != fakeToken || req.SystemID == "" ||
		!strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		f.t.Errorf("request for a job: %s %v", body, r.Header)
	}
	f.note(r, "last_update="+req.LastUpdate)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.polls++
	if f.polls > 1 {
		f.t.Error("two requests for a job at once")
	}
	defer func() { f.polls-- }()
	f.requeue()
	for end := time.Now().Add(f.longPoll); len(f.waiting) == 0; f.requeue() {
		left := time.Until(end)
		if req.LastUpdate != strconv.Itoa(f.version) || left <= 0 || r.Context().Err() != nil {
			w.Header().Set("X-GitLab-Last-Update", strconv.Itoa(f.version))
			w.WriteHeader(http.StatusNoContent)
			return
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-time.After(min(left, time.Second)): // jobs come back by themselves
		case <-r.Context().Done():
		}
		f.mu.Lock()
	}
	j := f.jobs[f.waiting[0]]
	f.waiting = f.waiting[1:]
	j.assigned++
	j.touched = time.Now()
	j.state = "assigned"
	if f.onePhase {
		j.state = "running"
	}
	j.spec.Token = fmt.Sprintf("glcbt-job%d-%d-abcdefgh", j.spec.ID, j.assigned)
	// An answer with a job has no X-GitLab-Last-Update (lib/api/ci/runner.rb).
	answer(w, http.StatusCreated, j.spec)
}

// requeue gives back what was not accepted in time.
func (f *fake) requeue() {
	for id, j := range f.jobs {
		if j.state == "assigned" && time.Since(j.touched) > f.ack {
			j.state = "waiting"
			f.waiting = append(f.waiting, id)
		}
	}
}

// find checks who calls, and finds the job. f.mu is held.
func (f *fake) find(w http.ResponseWriter, r *http.Request, id, token string) *fakeJob {
	n, _ := strconv.ParseInt(id, 10, 64)
	j := f.jobs[n]
	if j == nil {
		w.WriteHeader(http.StatusNotFound)
		return nil
	}
	if h := r.Header.Get("JOB-TOKEN"); h != token {
		f.t.Errorf("%s %s: the tokens in the header and body differ: %q, %q", r.Method, r.URL, h, token)
	}
	if token != j.spec.Token {
		answer(w, http.StatusForbidden, map[string]string{"message": "403 Forbidden"})
		return nil
	}
	if j.state == "canceling" || j.state == "canceled" || j.state == "failed" || j.state == "running" {
		w.Header().Set("Job-Status", j.state)
	}
	if f.interval > 0 {
		w.Header().Set("X-GitLab-Trace-Update-Interval", strconv.Itoa(f.interval))
	}
	return j
}

func (f *fake) update(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	var u spec.Update
	if err := json.Unmarshal(body, &u); err != nil {
		f.t.Errorf("update: %s: %v", body, err)
	}
	f.note(r, strings.TrimSpace(string(u.State)+" "+string(u.FailureReason)))
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.find(w, r, id, u.Token)
	if j == nil {
		return
	}
	wrong := func(status int) { answer(w, status, map[string]string{"message": "no"}) }
	alive := j.state == "running" || j.state == "canceling"
	switch u.State {
	case spec.Pending:
		switch {
		case j.state == "assigned":
			j.touched = time.Now()
			answer(w, http.StatusOK, "200")
		case alive:
			wrong(http.StatusBadRequest)
		default:
			wrong(http.StatusForbidden)
		}
	case spec.Running:
		switch {
		case j.state == "assigned" && time.Since(j.touched) <= f.ack:
			j.state = "running"
			j.accepted++
			answer(w, http.StatusOK, "200")
		case alive:
			answer(w, http.StatusOK, "200")
		case j.state == "waiting" || j.state == "assigned":
			wrong(http.StatusConflict)
		default:
			wrong(http.StatusForbidden)
		}
	case spec.Success, spec.Failed:
		if j.state == "assigned" {
			f.t.Errorf("job %s ends as %s before it was accepted", id, u.State)
		}
		if !alive {
			wrong(http.StatusForbidden)
			return
		}
		if u.Checksum != u.Output.Checksum {
			f.t.Errorf("two checksums: %s", body)
		}
		if sum := fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE(j.trace)); sum != u.Checksum || u.Output.Bytesize != len(j.trace) {
			j.trace = nil // to be sent anew
			wrong(http.StatusPreconditionFailed)
			return
		}
		if f.finishing > 0 {
			f.finishing--
			w.WriteHeader(http.StatusAccepted)
			return
		}
		j.state, j.final = string(u.State), u
		w.Header().Set("Job-Status", j.state)
		answer(w, http.StatusOK, "200")
	default:
		f.t.Errorf("job %s: state %q", id, u.State)
	}
}

func (f *fake) patch(w http.ResponseWriter, r *http.Request, id string, body []byte) {
	contentRange := r.Header.Get("Content-Range")
	f.note(r, contentRange)
	f.mu.Lock()
	defer f.mu.Unlock()
	j := f.find(w, r, id, r.Header.Get("JOB-TOKEN"))
	if j == nil {
		return
	}
	var start, end int
	if n, err := fmt.Sscanf(contentRange, "%d-%d", &start, &end); n != 2 || err != nil || end-start+1 != len(body) || len(body) == 0 ||
		r.Header.Get("Content-Type") != "text/plain" || r.URL.Query().Get("debug_trace") == "" {
		f.t.Errorf("patch of %d bytes: %v", len(body), r.Header)
	}
	j.patches = append(j.patches, time.Now())
	switch {
	case j.state != "running" && j.state != "canceling":
		w.WriteHeader(http.StatusForbidden)
	case f.maxTrace > 0 && start+len(body) > f.maxTrace:
		j.state = "failed"
		w.WriteHeader(http.StatusForbidden)
	case start != len(j.trace) && end+1 != len(j.trace): // what it has already is as good
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(j.trace)))
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
	default:
		if start == len(j.trace) {
			j.trace = append(j.trace, body...)
		}
		w.Header().Set("Range", fmt.Sprintf("0-%d", len(j.trace)))
		w.WriteHeader(http.StatusAccepted)
	}
}

// isPatch and the like are for faults.
func isPatch(r *http.Request) bool   { return r.Method == http.MethodPatch }
func isRequest(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, "/jobs/request") }

func saysState(body []byte, s spec.State) bool {
	return bytes.Contains(body, []byte(`"state":"`+string(s)+`"`))
}

// fewTimes lets a fault happen the first n times that it may.
func fewTimes(n int, f func(r *http.Request, body []byte) (fault, bool)) func(*http.Request, []byte) fault {
	var mu sync.Mutex
	return func(r *http.Request, body []byte) fault {
		mu.Lock()
		defer mu.Unlock()
		if n == 0 {
			return fault{}
		}
		x, yes := f(r, body)
		if !yes {
			return fault{}
		}
		n--
		return x
	}
}
