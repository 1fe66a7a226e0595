package api

import (
	"context"
	"sync"
)

// Hold keeps a workspace after its jobs have finished, until release is called, which is safe to call twice. It is to
// be called while one of the jobs runs.
func (ws *Workspaces) Hold(id string) (release func()) { return ws.holds.hold(id) }

// holds counts who holds what.
type holds struct {
	mu   sync.Mutex
	held map[string]*held
}

type held struct {
	n    int
	free chan struct{} // closed when n is 0
}

func (h *holds) hold(id string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		h.held = map[string]*held{}
	}
	one := h.held[id]
	if one == nil {
		one = &held{free: make(chan struct{})}
		h.held[id] = one
	}
	one.n++
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if one.n--; one.n == 0 {
			delete(h.held, id)
			close(one.free)
		}
	})
}

// wait waits until nobody holds id.
func (h *holds) wait(ctx context.Context, id string) error {
	h.mu.Lock()
	one := h.held[id]
	h.mu.Unlock()
	if one == nil {
		return nil
	}
	select {
	case <-one.free:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
