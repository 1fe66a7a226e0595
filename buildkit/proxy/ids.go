package proxy

import (
	"context"
	"sync"
	"time"
)

// ids are names that belong to the job. The zero value is empty.
type ids struct {
	mu      sync.Mutex
	known   map[string]bool
	changed chan struct{} // closed with the next add
}

// add makes id the job's, unless the job has too many.
func (s *ids) add(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]bool{}
	}
	if id == "" || len(id) > 256 || len(s.known) >= maxIDs && !s.known[id] {
		return false
	}
	s.known[id] = true
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
	return true
}

func (s *ids) has(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known[id]
}

// openTimeout is how long BuildKit waits for a session that a build names (session/manager.go).
const openTimeout = 5 * time.Second

// await waits for id to become the job's: a client opens its session and starts its build at the same time.
func (s *ids) await(ctx context.Context, id string, patience time.Duration) bool {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		s.mu.Lock()
		if s.known[id] {
			s.mu.Unlock()
			return true
		}
		if s.changed == nil {
			s.changed = make(chan struct{})
		}
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-timeout.C:
			return false
		case <-ctx.Done():
			return false
		}
	}
}
