package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
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
	// ImageDigest is the digest of the image that it was started with.
	ImageDigest() string
}

// PoolKind is a kind of sandbox that a Pool keeps ready.
type PoolKind struct {
	Nesting Nesting
	Spec    Spec // without an ID
	Size    int
}

// Spare says how a Pool learns from what jobs ask for: of a kind that is not among its own it keeps as many ready as were
// asked for within the last burst, one at least.
type Spare struct {
	Size int           // of all such sandboxes together; 0: none are kept
	Keep time.Duration // how long after a kind was last asked for
}

// burst is the time over which a Pool counts what is asked for.
const burst = 5 * time.Second

// lull is how long a Pool leaves the machine to a job that has taken a sandbox before it begins to replace it: the
// first things that a job does are what its owner waits for.
const lull = 200 * time.Millisecond

// poolRetry is how long a Pool waits after a start that failed.
const poolRetry = 5 * time.Second

// Pool keeps sandboxes ready that were started, with their engine, before a job asked for one. Each is used
// by one job, once.
type Pool struct {
	open  func(ctx context.Context, n Nesting, s Spec) (Sandbox, error)
	spare Spare
	log   *slog.Logger

	wake   chan struct{}
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	shelves []*shelf
	stale   []Sandbox // to be closed
	made    int       // for ids
}

// shelf holds the ready sandboxes of one kind. What can change is guarded by Pool.mu.
type shelf struct {
	PoolKind
	learned bool        // it is there because jobs asked for it
	asked   []time.Time // of a learned one: when, within the last burst, and the last time at least
	ready   []Sandbox
	resume  time.Time // when to begin to replace what was taken
	failed  time.Time // the last start
}

// NewPool returns a pool that is being filled. open starts a sandbox, as Open does.
func NewPool(kinds []PoolKind, spare Spare, open func(ctx context.Context, n Nesting, s Spec) (Sandbox, error), log *slog.Logger) *Pool {
	ctx, cancel := context.WithCancel(context.Background())
	p := &Pool{open: open, spare: spare, log: log, wake: make(chan struct{}, 1), cancel: cancel, done: make(chan struct{})}
	for _, k := range kinds {
		p.shelves = append(p.shelves, &shelf{PoolKind: k})
	}
	go func() {
		defer close(p.done)
		p.fill(ctx)
	}()
	return p
}

// Take returns a ready sandbox for a job that asks for what one of the kinds is, or false: then the job's
// sandbox has to be started. Its id is the pool's, not the Spec's.
func (p *Pool) Take(n Nesting, s Spec) (Sandbox, bool) {
	sb := p.take(n, s)
	p.ring()
	if sb == nil {
		return nil, false
	}
	adopter, _ := As[Adopter](sb)
	if err := adopter.Adopt(s); err != nil {
		p.log.Error("a sandbox of the pool cannot be used", "sandbox", sb.ID(), "error", err)
		p.discard(sb)
		return nil, false
	}
	return sb, true
}

// Forget gives up what the pool has learned, and the sandboxes that are ready because of it.
func (p *Pool) Forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.shelves = slices.DeleteFunc(p.shelves, func(s *shelf) bool {
		if s.learned {
			p.stale = append(p.stale, s.ready...)
			s.ready, s.asked = nil, nil
		}
		return s.learned
	})
	p.ring()
}

// ring makes the pool look what there should be.
func (p *Pool) ring() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// Learn notes that a job got a sandbox that the pool does not serve: the next one may ask for the same. A kind that
// cannot be started, such as one with an image that there is not, is so never learned.
func (p *Pool) Learn(n Nesting, s Spec) {
	if p.spare.Size == 0 || s.State != "" || s.Base != nil || s.Pull.Password != "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	place := p.shelf(n, s)
	if place == nil {
		kind := Spec{
			Image: s.Image, Volumes: s.Volumes, Toolbox: s.Toolbox, EngineArgs: s.EngineArgs,
			Limits: Limits{Disk: s.Limits.Disk, Inodes: s.Limits.Inodes},
		}
		place = &shelf{PoolKind: PoolKind{Nesting: n, Spec: kind}, learned: true}
		p.shelves = append(p.shelves, place)
	}
	place.note(time.Now())
	p.ring()
}

// shelf is the one that serves what is asked for, nil if there is none. p.mu is held.
func (p *Pool) shelf(n Nesting, s Spec) *shelf {
	if i := slices.IndexFunc(p.shelves, func(shelf *shelf) bool { return shelf.serves(n, s) }); i >= 0 {
		return p.shelves[i]
	}
	return nil
}

// note notes that the kind was asked for, if that is why the shelf is there.
func (s *shelf) note(now time.Time) {
	if s.learned {
		s.asked = append(s.asked, now)
	}
}

// take is the first part of Take; it notes what was asked for.
func (p *Pool) take(n Nesting, s Spec) Sandbox {
	p.mu.Lock()
	defer p.mu.Unlock()
	shelf, now := p.shelf(n, s), time.Now()
	if shelf == nil {
		return nil
	}
	shelf.note(now)
	for len(shelf.ready) > 0 {
		sb := shelf.ready[0]
		shelf.ready = shelf.ready[1:]
		if adopter, ok := As[Adopter](sb); ok && (s.Digest == "" || adopter.ImageDigest() == s.Digest) {
			if !shelf.resume.After(now) { // else takes that follow each other would put it off for ever
				shelf.resume = now.Add(lull)
			}
			return sb
		}
		p.stale = append(p.stale, sb)
	}
	return nil
}

// Serves reports whether Take may return a sandbox for what is asked for.
func (p *Pool) Serves(n Nesting, s Spec) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.shelf(n, s) != nil
}

// serves reports whether a sandbox of this shelf is what n and s ask for.
func (s *shelf) serves(n Nesting, want Spec) bool {
	same := func(asked, has int64) bool { return asked == 0 || asked == has }
	return s.Nesting.String() == n.String() && s.Spec.Image == want.Image && want.State == "" &&
		same(want.Limits.Disk, s.Spec.Limits.Disk) && same(want.Limits.Inodes, s.Spec.Limits.Inodes) &&
		maps.Equal(s.Spec.Volumes, want.Volumes) && slices.Equal(s.Spec.EngineArgs, want.EngineArgs) &&
		(want.Toolbox == nil || reflect.DeepEqual(s.Spec.Toolbox, want.Toolbox))
}

// plan looks what there should be at now: which sandbox is to be started next, if any, and which are no longer wanted.
// A start that fails is tried again after poolRetry; again is when to look next, if it is not zero.
func (p *Pool) plan(now time.Time) (start *shelf, unwanted []Sandbox, again time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	unwanted, p.stale = p.stale, nil
	room := p.spare.Size
	look := func(at time.Time) {
		if again.IsZero() || at.Before(again) {
			again = at
		}
	}
	// Who was asked for last has the first claim on the room.
	slices.SortStableFunc(p.shelves, func(a, b *shelf) int { return b.last().Compare(a.last()) })
	for _, s := range p.shelves {
		if s.learned {
			s.Size = 0
			if left := s.last().Add(p.spare.Keep).Sub(now); left > 0 {
				for len(s.asked) > 1 && now.Sub(s.asked[0]) > burst {
					s.asked = s.asked[1:]
				}
				s.Size = min(room, len(s.asked))
				if len(s.asked) > 1 {
					left = min(left, s.asked[0].Add(burst).Sub(now)+time.Nanosecond)
				}
				look(now.Add(left))
			}
			room -= s.Size
		}
		for len(s.ready) > s.Size {
			unwanted, s.ready = append(unwanted, s.ready[0]), s.ready[1:]
		}
		if len(s.ready) < s.Size && start == nil {
			at := s.resume
			if !s.failed.IsZero() {
				at = s.failed.Add(poolRetry)
			}
			if at.After(now) {
				look(at)
			} else {
				start = s
			}
		}
	}
	p.shelves = slices.DeleteFunc(p.shelves, func(s *shelf) bool { return s.learned && !s.last().Add(p.spare.Keep).After(now) })
	return start, unwanted, again
}

// last is when the kind of a learned shelf was last asked for.
func (s *shelf) last() (at time.Time) {
	if len(s.asked) > 0 {
		at = s.asked[len(s.asked)-1]
	}
	return at
}

// Ready is how many sandboxes are ready, and how many there are to be.
func (p *Pool) Ready() (ready, size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.shelves {
		ready += len(s.ready)
		size += s.Size
	}
	return ready, size
}

// fill keeps the shelves full, one start at a time, so that jobs keep the machine.
func (p *Pool) fill(ctx context.Context) {
	for ctx.Err() == nil {
		s, unwanted, again := p.plan(time.Now())
		for _, sb := range unwanted {
			p.discard(sb)
		}
		if s != nil {
			p.refill(ctx, s)
			continue
		}
		var wait <-chan time.Time
		if !again.IsZero() {
			wait = time.After(time.Until(again))
		}
		select {
		case <-ctx.Done():
		case <-p.wake:
		case <-wait:
		}
	}
}

// refill starts one sandbox of a shelf.
func (p *Pool) refill(ctx context.Context, s *shelf) {
	p.mu.Lock()
	p.made++
	spec := s.Spec
	spec.ID = fmt.Sprintf("pool-%d", p.made)
	p.mu.Unlock()
	sb, err := p.start(ctx, s.Nesting, spec)
	if err == nil && ctx.Err() != nil {
		p.discard(sb)
	}
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	s.failed = time.Time{}
	switch {
	case err == nil:
		s.ready = append(s.ready, sb) // plan closes it should it no longer be wanted
		if !slices.Contains(p.shelves, s) {
			p.shelves = append(p.shelves, s)
		}
	case s.learned: // the job that asked for it has failed, too, and says why
		p.shelves = slices.DeleteFunc(p.shelves, func(other *shelf) bool { return other == s })
	default:
		s.failed = time.Now()
		p.log.Error("fill the pool", "sandbox", s.Nesting.String(), "image", spec.Image, "error", err)
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
	p.mu.Lock()
	shelves := append(p.shelves, &shelf{ready: p.stale})
	p.shelves, p.stale, p.spare = nil, nil, Spare{}
	p.mu.Unlock()
	for _, s := range shelves {
		for _, sb := range s.ready {
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
