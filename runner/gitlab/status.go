package gitlab

import (
	"errors"
	"fmt"
	"maps"
	"time"
)

// Status is how a registration does.
type Status struct {
	// Contact is when the server has last answered a request for a job as it should; zero: never.
	Contact time.Time `json:"contact,omitzero"`
	// Problem is what is wrong since Since, with how to mend it; empty: nothing.
	Problem string    `json:"problem,omitempty"`
	Since   time.Time `json:"since,omitzero"`
	Jobs    int       `json:"jobs"` // that run or wait, with a request for one
}

// Status tells how the registrations do, by their names.
func (m *Manager) Status() map[string]Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := maps.Clone(m.status)
	for name, n := range m.live {
		s := all[name]
		s.Jobs = n
		all[name] = s
	}
	return all
}

// forget removes the status of registrations that are no more.
func (m *Manager) forget(wanted map[string]Registration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.status, func(name string, _ Status) bool { _, ok := wanted[name]; return !ok })
}

// healthy takes down that a registration's server has answered as it should.
func (m *Manager) healthy(r Registration) {
	m.mu.Lock()
	before := m.status[r.Name]
	m.status[r.Name] = Status{Contact: time.Now()}
	m.mu.Unlock()
	if before.Problem != "" {
		m.cfg.Log.Info("the runner gets jobs again", "runner", r, "after", time.Since(before.Since).Round(time.Second))
	}
}

// unhealthy takes down what is wrong, and tells the operator once.
func (m *Manager) unhealthy(r Registration, err error) {
	problem := mending(r, err)
	m.mu.Lock()
	s := m.status[r.Name]
	told := s.Problem == problem
	if s.Problem == "" {
		s.Since = time.Now()
	}
	s.Problem = problem
	m.status[r.Name] = s
	m.mu.Unlock()
	if !told {
		m.cfg.Log.Error("the runner gets no jobs", "runner", r, "problem", problem, "error", err)
	}
}

// mending says what an error means, and what to do.
func mending(r Registration, err error) string {
	switch {
	case errors.Is(err, ErrForbidden), errors.Is(err, ErrUnauthorized):
		return fmt.Sprintf("%s does not accept the token: the runner was removed there, its token was reset or has expired: register it again", r.URL)
	case errors.Is(err, ErrGone):
		return fmt.Sprintf("%s has no runners with such a token any more: create a runner there and register with its glrt- token", r.URL)
	case errors.Is(err, ErrUnprocessable):
		return fmt.Sprintf("%s refuses the runner: its group or project is gone, or it is disabled there: look at it in GitLab's runners", r.URL)
	case errors.Is(err, ErrNotFound), errors.Is(err, errNotJSON):
		return fmt.Sprintf("%s does not answer as a GitLab: check the URL", r.URL)
	case errors.Is(err, ErrRateLimited):
		return fmt.Sprintf("%s is asked too often, and wants to be left alone for a while", r.URL)
	}
	return fmt.Sprintf("%s does not answer: it will be asked again", r.URL)
}
