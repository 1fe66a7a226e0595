package gitlabtest

import (
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Runner is what is known of a runner.
type Runner struct {
	ID          int64    `json:"id"`
	UUID        string   `json:"uuid"`
	Description string   `json:"description,omitempty"`
	Tags        []string `json:"tags,omitempty"`
	RunUntagged bool     `json:"run_untagged"`
	Paused      bool     `json:"paused,omitempty"`
	Protected   bool     `json:"protected,omitempty"` // only jobs of protected refs
	// MaximumTimeout caps those of its jobs, in seconds; 0: no cap.
	MaximumTimeout int                 `json:"maximum_timeout,omitempty"`
	Expires        time.Time           `json:"token_expires_at,omitzero"`
	Managers       map[string]*Manager `json:"managers,omitempty"` // by system id
}

// Manager is one machine's part of a runner.
type Manager struct {
	Info    spec.Info `json:"info"`
	Contact time.Time `json:"contacted_at"`
	update  string    // the last value of X-GitLab-Last-Update that it was given
}

type runner struct {
	Runner
	token    string
	created  bool // in the UI or by the API, rather than by a registration token
	revoked  bool
	orphaned bool
}

// AddRunner makes a runner, as the UI does, and returns its authentication token. It takes untagged jobs, and those
// with the tags.
func (s *Server) AddRunner(tags ...string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &runner{token: s.newRunnerToken(true), created: true, Runner: Runner{Tags: tags, RunUntagged: true}}
	s.addRunner(r)
	return r.token
}

func (s *Server) addRunner(r *runner) {
	r.ID, r.UUID, r.Managers = int64(len(s.runners)+1), newUUID(), map[string]*Manager{}
	r.Expires = s.expiry()
	s.runners = append(s.runners, r)
}

// newRunnerToken has the prefix that tells runners made in the UI from registered ones.
func (s *Server) newRunnerToken(created bool) string {
	if created {
		return "glrt-" + random(10)
	}
	return "glrtr-" + random(10)
}

// newUUID is a random one, RFC 9562.
func newUUID() string {
	id := random(16)
	return fmt.Sprintf("%s-%s-4%s-8%s-%s", id[:8], id[8:12], id[13:16], id[17:20], id[20:])
}

func (s *Server) expiry() time.Time {
	if s.o.TokenLifetime == 0 {
		return time.Time{}
	}
	return time.Now().Add(s.o.TokenLifetime)
}

// Revoke makes a runner's token one that is not valid: it gets 403 from now on.
func (s *Server) Revoke(token string) error {
	return s.changeRunner(token, func(r *runner) { r.revoked = true })
}

// Orphan makes a runner one whose project is gone: it gets 422 from now on.
func (s *Server) Orphan(token string) error {
	return s.changeRunner(token, func(r *runner) { r.orphaned = true })
}

// SetRunner changes a runner's settings: its tags, whether it is paused, and so on. It may set no other fields.
func (s *Server) SetRunner(token string, set func(*Runner)) error {
	return s.changeRunner(token, func(r *runner) { set(&r.Runner) })
}

func (s *Server) changeRunner(token string, change func(*runner)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.runners {
		if r.token == token {
			change(r)
			s.queue++
			s.notify()
			return nil
		}
	}
	return fmt.Errorf("no runner has this token: %w", ErrUnknown)
}

// Runners are all that there are.
func (s *Server) Runners() []Runner {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Runner
	for _, r := range s.runners {
		v := r.Runner
		v.Managers = map[string]*Manager{}
		for id, m := range r.Managers {
			seen := *m
			v.Managers[id] = &seen
		}
		out = append(out, v)
	}
	return out
}

// authenticate finds the runner of a token, or answers.
func (c *call) authenticate(token string) *runner {
	if token == "" {
		c.error(http.StatusBadRequest, "token is missing")
		c.breach("the token is missing")
		return nil
	}
	c.s.mu.Lock()
	i := slices.IndexFunc(c.s.runners, func(r *runner) bool { return r.token == token && !r.revoked })
	var r *runner
	var expired, orphaned bool
	if i >= 0 {
		r = c.s.runners[i]
		expired, orphaned = !r.Expires.IsZero() && time.Now().After(r.Expires), r.orphaned
	}
	c.s.mu.Unlock()
	switch {
	case r == nil || expired:
		c.message(http.StatusForbidden)
	case orphaned:
		c.message(http.StatusUnprocessableEntity, "Runner is orphaned")
	default:
		return r
	}
	return nil
}

// seen notes a manager of a runner. The lock is held.
func (r *runner) seen(system string, i *spec.Info) *Manager {
	m := r.Managers[system]
	if m == nil {
		m = &Manager{}
		r.Managers[system] = m
	}
	m.Contact = time.Now()
	if i != nil {
		m.Info = *i
	}
	return m
}

// registered is the answer to all that hands out a token; expiry is null for never.
type registered struct {
	ID      int64   `json:"id,omitempty"`
	Token   string  `json:"token"`
	Expires *string `json:"token_expires_at"`
}

func (r *runner) answer() registered {
	a := registered{ID: r.ID, Token: r.token}
	if !r.Expires.IsZero() {
		text := r.Expires.UTC().Format(time.RFC3339)
		a.Expires = &text
	}
	return a
}

// register is for legacy registration tokens.
func (c *call) register() {
	var in spec.RegisterRequest
	if !c.read(&in) {
		return
	}
	c.token(runnerToken, in.Token)
	c.info(&in.Info)
	switch {
	case strings.HasPrefix(in.Token, "glrt-"):
		c.breach("a token that begins with glrt- is verified, never registered")
		c.message(http.StatusForbidden)
		return
	case c.s.o.RegistrationToken == "":
		c.message(http.StatusGone, "Runner registration disallowed")
		return
	case in.Token != c.s.o.RegistrationToken:
		c.message(http.StatusForbidden, "invalid token supplied")
		return
	case in.AccessLevel != "" && in.AccessLevel != "not_protected" && in.AccessLevel != "ref_protected":
		c.breach("access_level is %q", in.AccessLevel)
		c.error(http.StatusBadRequest, "access_level does not have a valid value")
		return
	case in.MaximumTimeout != 0 && in.MaximumTimeout < 600:
		c.json(http.StatusBadRequest, map[string]any{"message": map[string][]string{
			"maximum_timeout": {"needs to be at least 10 minutes"},
		}})
		return
	}
	var tags []string
	for tag := range strings.SplitSeq(in.TagList, ",") {
		if tag = strings.TrimSpace(tag); tag != "" {
			tags = append(tags, tag)
		}
	}
	if len(tags) == 0 && !in.RunUntagged {
		c.json(http.StatusBadRequest, map[string]any{"message": map[string][]string{
			"tags_list": {"can not be empty when runner is not allowed to pick untagged jobs"},
		}})
		return
	}
	c.s.mu.Lock()
	r := &runner{token: c.s.newRunnerToken(false), Runner: Runner{
		Description: in.Description, Tags: tags, RunUntagged: in.RunUntagged, Paused: in.Paused,
		Protected: in.AccessLevel == "ref_protected", MaximumTimeout: in.MaximumTimeout,
	}}
	c.s.addRunner(r)
	answer := r.answer()
	c.s.mu.Unlock()
	c.json(http.StatusCreated, answer)
}

func (c *call) verify() {
	var in spec.VerifyRequest
	if !c.read(&in) {
		return
	}
	c.token(runnerToken, in.Token)
	c.info(in.Info)
	c.system(in.SystemID)
	r := c.authenticate(in.Token)
	if r == nil {
		return
	}
	c.s.mu.Lock()
	r.seen(in.SystemID, in.Info)
	answer := r.answer()
	c.s.mu.Unlock()
	c.json(http.StatusOK, answer)
}

func (c *call) unregister() {
	var in spec.VerifyRequest
	if !c.read(&in) {
		return
	}
	c.token(runnerToken, in.Token)
	r := c.authenticate(in.Token)
	if r == nil {
		return
	}
	if r.created {
		// GitLab obeys, and the runner is gone for every machine that has its token.
		c.breach("a runner made in GitLab is deleted there: a machine removes its manager")
	}
	c.s.mu.Lock()
	r.revoked = true
	c.s.mu.Unlock()
	c.w.WriteHeader(http.StatusNoContent)
}

func (c *call) unregisterManager() {
	var in spec.VerifyRequest
	if !c.read(&in) {
		return
	}
	c.token(runnerToken, in.Token)
	c.system(in.SystemID)
	r := c.authenticate(in.Token)
	if r == nil {
		return
	}
	c.s.mu.Lock()
	_, ok := r.Managers[in.SystemID]
	delete(r.Managers, in.SystemID)
	c.s.mu.Unlock()
	if !ok {
		c.message(http.StatusNotFound)
		return
	}
	c.w.WriteHeader(http.StatusNoContent)
}

func (c *call) resetToken() {
	var in spec.VerifyRequest
	if !c.read(&in) {
		return
	}
	if c.r.Header.Get(runnerToken) == "" { // gitlab-runner has it in the body only
		c.only()
	} else {
		c.token(runnerToken, in.Token)
	}
	if r := c.authenticate(in.Token); r != nil {
		c.reset(r)
	}
}

// resetTokenOf is for a user's access token.
func (c *call) resetTokenOf() {
	c.only(privateToken, runnerToken)
	if want := c.s.o.AccessToken; want == "" || c.r.Header.Get(privateToken) != want {
		c.message(http.StatusUnauthorized)
		return
	}
	id, _ := strconv.ParseInt(c.r.PathValue("id"), 10, 64)
	c.s.mu.Lock()
	var found *runner
	for _, r := range c.s.runners {
		if r.ID == id {
			found = r
		}
	}
	c.s.mu.Unlock()
	if found == nil {
		c.error(http.StatusNotFound, "404 Not Found")
		return
	}
	c.reset(found)
}

func (c *call) reset(r *runner) {
	c.s.mu.Lock()
	r.token, r.Expires, r.revoked = c.s.newRunnerToken(r.created), c.s.expiry(), false
	answer := r.answer()
	c.s.mu.Unlock()
	answer.ID = 0
	c.json(http.StatusCreated, answer)
}

func (c *call) discover() {
	c.only(runnerToken)
	if r := c.authenticate(c.r.Header.Get(runnerToken)); r != nil {
		c.message(http.StatusNotImplemented, "Job Router is not available. Please contact your administrator.")
	}
}
