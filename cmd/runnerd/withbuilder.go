package main

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/proxy"
	"github.com/runnerd/runnerd/sandbox"
)

// jobBuilds are the leases of its project's builder that a job has had by its sandbox, the current one last.
type jobBuilds struct {
	mu     sync.Mutex
	leases []*buildkit.Lease
}

func (b *jobBuilds) add(l *buildkit.Lease) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases = append(b.leases, l)
}

func (b *jobBuilds) all() []*buildkit.Lease {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.leases)
}

// working is a proxy.Config.Working.
func (b *jobBuilds) working() (done func()) {
	all := b.all()
	if len(all) == 0 {
		return func() {}
	}
	return all[len(all)-1].Working()
}

// withBuilder is a sandbox whose job reaches its project's builder.
type withBuilder struct {
	sandbox.Sandbox
	proxy   *proxy.Proxy
	builds  *jobBuilds
	offered time.Duration // how long it took to offer it

	mu    sync.Mutex
	ended time.Duration // how long it took to end the builds
}

// Unwrap returns the sandbox, for its further abilities.
func (s *withBuilder) Unwrap() sandbox.Sandbox { return s.Sandbox }

// Usage is the sandbox's together with the job's share of the builder's processor time and disk. The builder's memory
// is not the job's.
func (s *withBuilder) Usage(ctx context.Context) (sandbox.Usage, error) {
	u, err := s.Sandbox.Usage(ctx)
	u.SetUp = append(slices.Clone(u.SetUp), sandbox.Stage{Name: sandbox.StageBuilder, Took: s.offered})
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended > 0 {
		u.TearDown = append(slices.Clone(u.TearDown), sandbox.Stage{Name: sandbox.StageBuilder, Took: s.ended})
	}
	u.Parts = slices.Clone(u.Parts)
	for _, lease := range s.builds.all() {
		share, _ := lease.Usage(ctx) // of a builder that is gone, its last word
		u.CPU, u.Read, u.Written = u.CPU+share.CPU, u.Read+share.Read, u.Written+share.Written
		for _, p := range share.Parts {
			p.MemoryAverage, p.MemoryPeak = 0, 0
			u.AddPart(p)
		}
		if u.Engine != nil {
			u.Engine.Built = true
		}
	}
	u.AddCopied(sandbox.CopyContext, s.proxy.Uploaded())
	return u, err
}

// Close ends the job's builds, then the sandbox.
func (s *withBuilder) Close(ctx context.Context) error {
	began := time.Now()
	err := s.proxy.Close(ctx)
	s.mu.Lock()
	s.ended = max(s.ended, time.Since(began))
	s.mu.Unlock()
	return errors.Join(err, s.Sandbox.Close(ctx))
}
