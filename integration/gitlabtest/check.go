package gitlabtest

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Violation is a breach of the protocol by a runner.
type Violation struct {
	At        time.Time `json:"at"`
	Request   string    `json:"request"` // method and path
	RequestID string    `json:"request_id,omitempty"`
	Job       int64     `json:"job,omitempty"`
	Breach    string    `json:"breach"`
}

func (v Violation) String() string { return v.Request + ": " + v.Breach }

// Violations are the breaches so far, in order. A test ends with none.
func (s *Server) Violations() []string {
	var out []string
	for _, v := range s.Breaches() {
		out = append(out, v.String())
	}
	return out
}

// Breaches are the violations with all that is known of them.
func (s *Server) Breaches() []Violation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// call is one request and its answer.
type call struct {
	s        *Server
	w        http.ResponseWriter
	r        *http.Request
	endpoint Endpoint
	job      *job
}

// breach notes a violation. The lock is not held.
func (c *call) breach(format string, args ...any) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.note(format, args...)
}

// note is breach with the lock held.
func (c *call) note(format string, args ...any) {
	v := Violation{
		At: time.Now(), Request: c.r.Method + " " + c.r.URL.Path, RequestID: c.r.Header.Get("X-Request-Id"),
		Breach: fmt.Sprintf(format, args...),
	}
	if c.job != nil {
		v.Job = c.job.ID
	}
	c.s.violations = append(c.s.violations, v)
	c.s.o.Log("VIOLATION %s", v)
}

// The headers that carry tokens.
const (
	runnerToken  = "Runner-Token"
	jobToken     = "Job-Token"
	privateToken = "Private-Token"
)

var requestID = regexp.MustCompile(`^[0-9a-f]{32}$`)

// headers checks those that all requests of the API have.
func (c *call) headers() {
	if id := c.r.Header.Get("X-Request-Id"); !requestID.MatchString(id) {
		c.breach("X-Request-Id is %q, not a UUID without dashes", id)
	}
	switch c.endpoint {
	case Register, Verify, ResetToken, Discovery, Request: // whose answers a runner reads
		if accept := c.r.Header.Get("Accept"); !strings.Contains(accept, "application/json") {
			c.breach("Accept is %q, not application/json", accept)
		}
	}
}

// token checks that the body's token is that of the header, and that there is no other.
func (c *call) token(header, body string) {
	if got := c.r.Header.Get(header); got != body {
		c.breach("the header %s is not the token of the body", strings.ToUpper(header))
	}
	c.only(header)
}

// only checks that no token goes where it is not wanted.
func (c *call) only(headers ...string) {
	for _, h := range []string{runnerToken, jobToken, privateToken, "Authorization"} {
		if !slices.Contains(headers, h) && c.r.Header.Get(h) != "" {
			c.breach("the header %s has no business here", strings.ToUpper(h))
		}
	}
}

// bodyLimit is how large a JSON body may be, in bytes.
const bodyLimit = 1 << 20

// read reads a JSON body; if it cannot, it answers.
func (c *call) read(v any) bool {
	if t := c.r.Header.Get("Content-Type"); !strings.HasPrefix(t, "application/json") {
		c.breach("Content-Type is %q, not application/json", t)
	}
	body, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, bodyLimit))
	if err == nil {
		err = json.Unmarshal(body, v)
	}
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		c.message(http.StatusRequestEntityTooLarge)
	case err != nil:
		if c.r.Context().Err() == nil {
			c.breach("the body is not the JSON that it should be: %v", err)
		}
		c.error(http.StatusBadRequest, "Invalid JSON")
	}
	return err == nil
}

// json answers with a body.
func (c *call) json(status int, v any) {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	_ = json.NewEncoder(c.w).Encode(v) // a client that is gone hears nothing
}

// message answers as GitLab's render_api_error does.
func (c *call) message(status int, reason ...string) {
	text := fmt.Sprintf("%d %s", status, http.StatusText(status))
	if len(reason) > 0 {
		text += " - " + strings.Join(reason, ", ")
	}
	c.json(status, map[string]string{"message": text})
}

// error answers as Grape's error! does.
func (c *call) error(status int, text string) { c.json(status, map[string]string{"error": text}) }

// info checks what a runner says of itself.
func (c *call) info(i *spec.Info) {
	if i == nil {
		c.breach("there is no info: GitLab would know no features of this runner for 40 minutes")
		return
	}
	for name, value := range map[string]string{
		"name": i.Name, "version": i.Version, "platform": i.Platform, "architecture": i.Architecture,
	} {
		if value == "" {
			c.breach("info has no %s", name)
		}
	}
	if i.Features == (spec.Features{}) {
		c.breach("info has no features")
	}
}

var systemID = regexp.MustCompile(`^[sr]_[0-9A-Za-z]{12}$`)

// system checks a system's id.
func (c *call) system(id string) {
	if !systemID.MatchString(id) {
		c.breach("system_id is %q, not s_ or r_ and 12 characters", id)
	}
}

// known are the reasons that every GitLab understands.
var known = []spec.FailureReason{spec.ScriptFailure, spec.RunnerSystemFailure, spec.JobExecutionTimeout}

// knownReasons are all that a runner may ever send.
func knownReasons() []string {
	return []string{
		string(spec.ImagePullFailure), string(spec.UnknownFailure), string(spec.ConfigurationError),
		string(spec.ExternalDependencyFailure), string(spec.RunnerInterrupted), string(spec.JobCanceled),
	}
}
