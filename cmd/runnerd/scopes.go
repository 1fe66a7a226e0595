package main

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/scope"
)

// scopes are whose the sandboxes are, by id. A sandbox of the pool is nobody's until a job takes it.
type scopes struct {
	all    sync.Map
	driver atomic.Pointer[container.Driver] // nil before it has started
}

func (s *scopes) set(id string, of scope.Scope) { s.all.Store(id, of) }

func (s *scopes) forget(id string) { s.all.Delete(id) }

// owned makes a sandbox a scope's for as long as it lives.
func (s *scopes) owned(sb sandbox.Sandbox, of scope.Scope) sandbox.Sandbox {
	s.set(sb.ID(), of)
	return ownedSandbox{sb, s}
}

type ownedSandbox struct {
	sandbox.Sandbox
	scopes *scopes
}

func (o ownedSandbox) Unwrap() sandbox.Sandbox { return o.Sandbox }

func (o ownedSandbox) Close(ctx context.Context) error {
	defer o.scopes.forget(o.ID())
	return o.Sandbox.Close(ctx)
}

// sandboxAt is the id of the sandbox that has an address.
func (s *scopes) sandboxAt(addr netip.Addr) (id string, ok bool) {
	if driver := s.driver.Load(); driver != nil {
		return driver.SandboxAt(addr)
	}
	return "", false
}

// who tells whose job sends from an address.
func (s *scopes) who(addr netip.Addr) (scope.Scope, bool) {
	id, ok := s.sandboxAt(addr)
	if !ok {
		return scope.Scope{}, false
	}
	of, ok := s.all.Load(id)
	if !ok {
		return scope.Scope{}, false
	}
	return of.(scope.Scope), true
}
