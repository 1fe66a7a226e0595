package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Adopter is a Sandbox that can be started before it is known for which job, and become that job's later.
type Adopter interface {
	// Adopt gives a sandbox that nobody has used yet the environment and the limits of s. Those of the
	// disk, the image and the volumes are what they were at its start.
	Adopt(s Spec) error
}

// PoolKind is a kind of sandbox that a Pool keeps ready.
type PoolKind struct {
	Nesting Nesting
	Spec    Spec // without an ID
	Size    int
}

// poolRetry is how long a Pool waits after a start that failed.
const poolRetry = 5 * time.Second

// Pool keeps sandboxes ready that were started, with their engine, before a job asked for one. Each is used
// by one job, once. An image whose tag moves is seen when the pool is next refilled.
type Pool struct {
	open func(ctx context.Context, n Nesting, s Spec) (Sandbox, error)
	log  *slog.Logger

	shelves []*shelf
	wake    chan struct{}
	cancel  context.CancelFunc
	done    chan struct{}
}

// shelf holds the ready sandboxes of one kind.
type shelf struct {
	PoolKind
	mu    sync.Mutex
	ready []Sandbox
	made  int // for ids
}

// NewPool returns a pool that is being filled. open starts a sandbox, as Open does.
func NewPool(kinds []PoolKind, open func(ctx context.Context, n Nesting, s Spec) (Sandbox, error), log *slog.Logger) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{open: open, log: log, wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	for _, k := range kinds {
		p.shelves = append(p.shelves, &shelf{PoolKind: k})
	}
	go func() {
		defer close(p.done)
		p.fill(ctx)
	}()
	return p
}

// Take returns a ready sandbox for a job that asks for what one of the kinds is, and for nothing that has to be there
// from the start, or false: then the job's sandbox has to be started. Its id is the pool's, not the Spec's.
func (p *Pool) Take(n Nesting, s Spec) (Sandbox, bool) {
	for _, shelf := range p.shelves {
		if !shelf.serves(n, s) {
			continue
		}
		sb := shelf.take()
		if sb == nil {
			return nil, false
		}
		select {
		case p.wake <- struct{}{}:
		default:
		}
		adopter, ok := As[Adopter](sb)
		if !ok {
			return nil, false
		}
		if err := adopter.Adopt(s); err != nil {
			p.log.Error("a sandbox of the pool cannot be used", "sandbox", sb.ID(), "error", err)
			p.discard(sb)
			return nil, false
		}
		return sb, true
	}
	return nil, false
}

// Serves reports whether Take may return a sandbox for what is asked for.
func (p *Pool) Serves(n Nesting, s Spec) bool {
	return slices.ContainsFunc(p.shelves, func(shelf *shelf) bool { return shelf.serves(n, s) })
}

// serves reports whether a sandbox of this shelf is what n and s ask for.
func (s *shelf) serves(n Nesting, want Spec) bool {
	same := func(asked, has int64) bool { return asked == 0 || asked == has }
	return s.Nesting.String() == n.String() && s.Spec.Image == want.Image && want.State == "" &&
		len(want.Volumes) == 0 && len(want.EngineArgs) == 0 &&
		same(want.Limits.Disk, s.Spec.Limits.Disk) && same(want.Limits.Inodes, s.Spec.Limits.Inodes)
}

func (s *shelf) take() Sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) == 0 {
		return nil
	}
	sb := s.ready[0]
	s.ready = s.ready[1:]
	return sb
}

// missing returns the Spec of the next sandbox to start, if the shelf is not full.
func (s *shelf) missing(number int) (Spec, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.ready) >= s.Size {
		return Spec{}, false
	}
	s.made++
	spec := s.Spec
	spec.ID = fmt.Sprintf("pool-%d-%d", number, s.made)
	return spec, true
}

// Ready is how many sandboxes are ready, and how many there are to be.
func (p *Pool) Ready() (ready, size int) {
	for _, s := range p.shelves {
		s.mu.Lock()
		ready += len(s.ready)
		s.mu.Unlock()
		size += s.Size
	}
	return ready, size
}

// fill keeps the shelves full, one start at a time, so that jobs keep the machine.
func (p *Pool) fill(ctx context.Context) {
	for {
		wait := (<-chan time.Time)(nil)
		for number, s := range p.shelves {
			for {
				spec, missing := s.missing(number)
				if !missing {
					break
				}
				sb, err := p.start(ctx, s.Nesting, spec)
				if ctx.Err() != nil {
					if err == nil {
						p.discard(sb)
					}
					return
				}
				if err != nil {
					p.log.Error("fill the pool", "sandbox", s.Nesting.String(), "image", spec.Image, "error", err)
					wait = time.After(poolRetry)
					break
				}
				s.mu.Lock()
				s.ready = append(s.ready, sb)
				s.mu.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.wake:
		case <-wait:
		}
	}
}

// start starts a sandbox, with its engine if it has one.
func (p *Pool) start(ctx context.Context, n Nesting, s Spec) (Sandbox, error) {
	sb, err := p.open(ctx, n, s)
	if err != nil {
		return nil, err
	}
	if docker, ok := As[DockerHost](sb); ok {
		if err := docker.EngineReady(ctx); err != nil {
			p.discard(sb)
			return nil, err
		}
	}
	return sb, nil
}

func (p *Pool) discard(sb Sandbox) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := sb.Close(ctx); err != nil {
		p.log.Error("close a sandbox of the pool", "sandbox", sb.ID(), "error", err)
	}
}

// closeParallel is how many sandboxes are closed at once.
const closeParallel = 16

// Close closes all sandboxes that no job has taken.
func (p *Pool) Close(ctx context.Context) error {
	p.cancel()
	<-p.done
	var closing errgroup.Group
	closing.SetLimit(closeParallel)
	var mu sync.Mutex
	var errs []error
	for _, s := range p.shelves {
		for sb := s.take(); sb != nil; sb = s.take() {
			closing.Go(func() error {
				if err := sb.Close(ctx); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
				return nil
			})
		}
	}
	_ = closing.Wait()
	return errors.Join(errs...)
}
