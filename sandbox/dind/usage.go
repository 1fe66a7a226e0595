package dind

import (
	"context"
	"slices"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// Usage is the sandbox's, with what became of the engine. See sandbox.Sandbox.
func (e *engine) Usage(ctx context.Context) (sandbox.Usage, error) {
	u, err := e.host.Usage(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	u.Engine = &sandbox.EngineUse{Started: e.starts > 0, Ready: e.ready}
	if e.ready > 0 {
		u.SetUp = append(slices.Clone(u.SetUp), sandbox.Stage{Name: sandbox.StageDockerd, Took: e.ready})
	}
	if e.ended > 0 {
		u.TearDown = append(slices.Clone(u.TearDown), sandbox.Stage{Name: sandbox.StageDockerd, Took: e.ended})
	}
	return u, err
}

// time notes how long it takes, from began on, until an engine that is being started answers.
func (e *engine) time(ctx context.Context, began time.Time) {
	if e.EngineReady(ctx) != nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready == 0 {
		e.ready = time.Since(began)
	}
}

// Close ends the engine. The sandbox it ran in is closed by whoever opened it.
func (e *engine) Close(ctx context.Context) error {
	began := time.Now()
	err := e.close(ctx)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.starts > 0 && e.ended == 0 {
		e.ended = time.Since(began)
	}
	return err
}
