package gitlabtest

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// newServer is a server in memory, at http://gitlab.test.
func newServer(t *testing.T, o Options) *Server {
	t.Helper()
	o.URL, o.Dir = "http://gitlab.test", t.TempDir()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// agent is a runner that does as it is told.
type agent struct {
	t          *testing.T
	s          *Server
	http       *http.Client
	token      string
	lastUpdate string
	features   spec.Features
}

const testSystem = "s_0123456789ab"

func newAgent(t *testing.T, s *Server, tags ...string) *agent {
	t.Helper()
	a := &agent{t: t, s: s, http: s.Client(), token: s.AddRunner(tags...), features: spec.Features{
		Variables: true, TraceReset: true, Cancelable: true, CancelGracefully: true, TwoPhaseJobCommit: true,
	}}
	a.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	t.Cleanup(a.http.CloseIdleConnections)
	return a
}

func (a *agent) info() spec.Info {
	return spec.Info{
		Name: "agent", Version: "1.0", Platform: "linux", Architecture: "amd64", Executor: "test", Features: a.features,
	}
}

// answer is a response that was read.
type answer struct {
	*http.Response
	body []byte
	err  error
}

// change changes a request before it is sent, to make it wrong.
type change func(*http.Request)

func header(key, value string) change {
	return func(r *http.Request) {
		if value == "" {
			r.Header.Del(key)
		} else {
			r.Header.Set(key, value)
		}
	}
}

func (a *agent) do(method, path string, header http.Header, body io.Reader, changes ...change) answer {
	a.t.Helper()
	target := path
	if !strings.HasPrefix(path, "http") {
		target = a.s.URL + "/api/v4/" + path
	}
	r, err := http.NewRequestWithContext(a.t.Context(), method, target, body)
	if err != nil {
		a.t.Fatal(err)
	}
	r.Header.Set("Accept", "application/json")
	r.Header.Set("X-Request-Id", random(16))
	for k := range header {
		r.Header.Set(k, header.Get(k))
	}
	for _, c := range changes {
		c(r)
	}
	res, err := a.http.Do(r)
	if err != nil {
		return answer{Response: &http.Response{Header: http.Header{}}, err: err}
	}
	defer func() { _ = res.Body.Close() }()
	text, err := io.ReadAll(res.Body)
	return answer{res, text, err}
}

func (a *agent) json(method, path, tokenHeader, token string, v any, changes ...change) answer {
	a.t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		a.t.Fatal(err)
	}
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	h.Set(tokenHeader, token)
	return a.do(method, path, h, bytes.NewReader(text), changes...)
}

// request asks for a job; the status says whether there was one.
func (a *agent) request(changes ...change) (spec.Job, answer) {
	a.t.Helper()
	r := a.json("POST", "jobs/request", runnerToken, a.token, spec.JobRequest{
		Info: a.info(), Token: a.token, SystemID: testSystem, LastUpdate: a.lastUpdate,
	}, changes...)
	if v := r.Header.Get(lastUpdate); v != "" {
		a.lastUpdate = v
	}
	var j spec.Job
	if r.StatusCode == http.StatusCreated {
		if err := json.Unmarshal(r.body, &j); err != nil {
			a.t.Fatal(err)
		}
	}
	return j, r
}

// take asks for a job and accepts it.
func (a *agent) take() spec.Job {
	a.t.Helper()
	j, r := a.request()
	if r.StatusCode != http.StatusCreated {
		a.t.Fatalf("no job: %d %v", r.StatusCode, r.err)
	}
	want(a.t, a.update(j, spec.Update{State: spec.Running}), http.StatusOK)
	return j
}

func (a *agent) update(j spec.Job, u spec.Update, changes ...change) answer {
	a.t.Helper()
	u.Token, u.Info = j.Token, a.info()
	return a.json("PUT", fmt.Sprintf("jobs/%d", j.ID), jobToken, j.Token, u, changes...)
}

func (a *agent) patch(j spec.Job, from int, text string, changes ...change) answer {
	a.t.Helper()
	h := http.Header{}
	h.Set("Content-Type", "text/plain")
	h.Set("Content-Range", fmt.Sprintf("%d-%d", from, from+len(text)-1))
	h.Set(jobToken, j.Token)
	return a.do("PATCH", fmt.Sprintf("jobs/%d/trace?debug_trace=false", j.ID), h, strings.NewReader(text), changes...)
}

// final tells a final state for a trace.
func (a *agent) final(j spec.Job, u spec.Update, trace string) answer {
	a.t.Helper()
	u.Output = spec.Output{Checksum: checksum(crc32.ChecksumIEEE([]byte(trace))), Bytesize: len(trace)}
	u.Checksum = u.Output.Checksum
	return a.update(j, u)
}

// succeed runs a job that is taken: some output, and success.
func (a *agent) succeed(j spec.Job) {
	a.t.Helper()
	text := "output of " + j.JobInfo.Name + "\n"
	want(a.t, a.patch(j, 0, text), http.StatusAccepted)
	want(a.t, a.final(j, spec.Update{State: spec.Success}, text), http.StatusOK)
}

func (a *agent) fail(j spec.Job, code int) {
	a.t.Helper()
	want(a.t, a.patch(j, 0, "boom\n"), http.StatusAccepted)
	want(a.t, a.final(j, spec.Update{State: spec.Failed, FailureReason: spec.ScriptFailure, ExitCode: code}, "boom\n"), http.StatusOK)
}

func form(name string, content []byte) (contentType string, body []byte) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	f, _ := w.CreateFormFile("file", name)
	_, _ = f.Write(content)
	_ = w.Close()
	return w.FormDataContentType(), b.Bytes()
}

func (a *agent) upload(j spec.Job, typ, format, expire, name string, content []byte, changes ...change) answer {
	a.t.Helper()
	contentType, body := form(name, content)
	h := http.Header{}
	h.Set("Content-Type", contentType)
	h.Set(jobToken, j.Token)
	q := url.Values{"artifact_type": {typ}, "artifact_format": {format}}
	if expire != "" {
		q.Set("expire_in", expire)
	}
	return a.do("POST", fmt.Sprintf("jobs/%d/artifacts?%s", j.ID, q.Encode()), h, bytes.NewReader(body), changes...)
}

func zipOf(name, content string) []byte {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	f, _ := w.Create(name)
	_, _ = io.WriteString(f, content)
	_ = w.Close()
	return b.Bytes()
}

func gzipOf(content string) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = io.WriteString(w, content)
	_ = w.Close()
	return b.Bytes()
}

func want(t *testing.T, r answer, status int) {
	t.Helper()
	if r.StatusCode != status {
		t.Fatalf("%d, not %d: %s %v", r.StatusCode, status, r.body, r.err)
	}
}

// clean fails if there are violations.
func clean(t *testing.T, s *Server) {
	t.Helper()
	for _, v := range s.Violations() {
		t.Errorf("violation: %s", v)
	}
}

// breach fails unless there is exactly one violation more, and it has the text; then it forgets it.
func breach(t *testing.T, s *Server, text string) {
	t.Helper()
	got := s.Violations()
	s.mu.Lock()
	s.violations = nil
	s.mu.Unlock()
	for _, v := range got {
		if strings.Contains(v, text) {
			return
		}
	}
	t.Errorf("no violation has %q; there are %q", text, got)
}
