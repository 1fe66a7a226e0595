package gitlabtest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

const lastUpdate = "X-GitLab-Last-Update"

// request hands out a job. A request that knows the queue as it is waits for a change, as GitLab's front does.
func (c *call) request() {
	var in spec.JobRequest
	if !c.read(&in) {
		return
	}
	c.token(runnerToken, in.Token)
	c.info(&in.Info)
	c.system(in.SystemID)
	c.session(in.Session, in.Info.Features)
	r := c.authenticate(in.Token)
	if r == nil {
		return
	}
	s := c.s
	s.mu.Lock()
	m := r.seen(in.SystemID, &in.Info)
	if in.LastUpdate != "" && !s.issued(in.LastUpdate) {
		c.note("last_update is %q, which no answer had", in.LastUpdate)
	}
	s.mu.Unlock()
	if s.o.LongPoll > 0 && !s.hold(c.r.Context(), in.LastUpdate) {
		return
	}

	s.mu.Lock()
	value := s.queueValue()
	m.update = value
	var j *job
	if in.LastUpdate != value && !r.Paused {
		j = s.pick(r)
	}
	if j == nil || s.closed {
		s.mu.Unlock()
		c.w.Header().Set(lastUpdate, value)
		c.w.WriteHeader(http.StatusNoContent)
		return
	}
	s.assign(j, r, in.SystemID, in.Info.Features)
	j.session = in.Session
	j.payload = s.fill(j, r)
	payload := j.payload
	s.mu.Unlock()
	c.json(http.StatusCreated, payload)
}

// hold waits while the queue is as the runner knows it. It returns false if the runner is gone.
func (s *Server) hold(ctx context.Context, knows string) bool {
	t := time.NewTimer(s.o.LongPoll)
	defer t.Stop()
	for {
		s.mu.Lock()
		same, changed := s.queueValue() == knows && !s.closed, s.changed
		s.mu.Unlock()
		if !same {
			return ctx.Err() == nil
		}
		select {
		case <-changed:
		case <-t.C:
			return true
		case <-ctx.Done():
			return false
		}
	}
}

// queueValue changes with the queue. The lock is held.
func (s *Server) queueValue() string { return fmt.Sprintf("%s-%d", s.salt, s.queue) }

// issued says whether a value was one of the queue's.
func (s *Server) issued(value string) bool {
	var n int
	_, err := fmt.Sscanf(value, s.salt+"-%d", &n)
	return err == nil && n >= 0 && n <= s.queue
}

// pick is the oldest job that the runner may have.
func (s *Server) pick(r *runner) *job {
	for _, j := range s.jobs {
		if j.Status == Pending && !j.waitsForAck && s.fits(j, r) {
			return j
		}
	}
	return nil
}

func (s *Server) fits(j *job, r *runner) bool {
	if r.Protected && (j.spec.GitInfo.Protected == nil || !*j.spec.GitInfo.Protected) {
		return false
	}
	if s.o.IgnoreTags {
		return true
	}
	if len(j.Tags) == 0 {
		return r.RunUntagged
	}
	return !slices.ContainsFunc(j.Tags, func(tag string) bool { return !slices.Contains(r.Tags, tag) })
}
