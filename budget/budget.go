package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// Config is what a Budget needs to know.
type Config struct {
	Dir    string // the state directory; what lies on another file system is not counted
	Stores []Store
	Limits Limits
	// Idle reports whether no job runs, so that the stores may be pruned without one that waits; nil: never.
	Idle func() bool
	Log  *slog.Logger // nil: nothing is logged
}

// Budget keeps the stores within their limits. It is safe for concurrent use.
type Budget struct {
	cfg    Config
	gauges []*gauge
	look   func() (FileSystem, error) // of cfg.Dir

	ctx        context.Context // of what goes on in the background
	stop       context.CancelFunc
	background sync.WaitGroup

	pruning chan struct{} // holds one while somebody prunes

	mu       sync.Mutex
	base     *snapshot // the first account, that the gap counts from
	last     snapshot
	measured bool      // last was taken
	futile   time.Time // when pruning came to nothing
	warned   bool      // of the gap
}

// snapshot is what the account and df said at one time.
type snapshot struct {
	at   time.Time
	sum  int64 // bytes of all stores
	used int64 // bytes of the file system, by whomever
}

// How often the account is taken in the background, and how long a job's start waits for it: a walk over millions
// of files goes on without the job, which takes the last figures.
const (
	accountEvery = 10 * time.Minute
	accountWait  = 3 * time.Second
)

// New returns a Budget and takes its first account in the background. Close it.
func New(c Config) *Budget {
	return newBudget(c, func() (FileSystem, error) { return Look(c.Dir) })
}

func newBudget(c Config, look func() (FileSystem, error)) *Budget {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	b := &Budget{cfg: c, pruning: make(chan struct{}, 1), look: look}
	b.ctx, b.stop = context.WithCancel(context.Background())
	for _, s := range c.Stores {
		b.gauges = append(b.gauges, &gauge{store: s})
	}
	b.background.Go(b.tend)
	return b
}

// Close ends what goes on in the background.
func (b *Budget) Close() {
	b.stop()
	b.background.Wait()
	for _, g := range b.gauges {
		g.walks.Wait()
	}
}

// tend takes the account now and then, says when df and it drift apart, and prunes while no job runs.
func (b *Budget) tend() {
	tick := time.NewTicker(accountEvery)
	defer tick.Stop()
	for {
		f, err := b.measure(b.ctx)
		if b.ctx.Err() != nil {
			return
		}
		if err != nil {
			b.cfg.Log.Error("the disk's account is not complete", "error", err)
		}
		if b.cfg.Idle != nil && b.cfg.Idle() && b.estimate(f) > b.marks(f).High {
			b.logPrune(b.prune(b.ctx, Request{policy: true}))
		}
		b.warnOfGap(f)
		select {
		case <-tick.C:
		case <-b.ctx.Done():
			return
		}
	}
}

func (b *Budget) warnOfGap(f FileSystem) {
	gap := b.gap(f)
	b.mu.Lock()
	warn := gap.Large && !b.warned
	b.warned = gap.Large
	b.mu.Unlock()
	if warn {
		b.cfg.Log.Warn("more of the disk is in use than the account explains: see 'runnerd cache du'", "bytes", gap.Bytes, "dir", b.cfg.Dir)
	}
}

// measure asks every store for its usage and notes the sum beside what df says. When ctx ends first, the last
// figures stand and the stores' own work goes on.
func (b *Budget) measure(ctx context.Context) (FileSystem, error) {
	before, err := b.look()
	if err != nil {
		return before, err
	}
	var all sync.WaitGroup
	errs := make([]error, len(b.gauges))
	for i, g := range b.gauges {
		all.Go(func() { errs[i] = g.measure(ctx, b.ctx) })
	}
	all.Wait()
	after, err := b.look()
	if err != nil || ctx.Err() != nil {
		return after, errors.Join(append(errs, err)...)
	}
	now := snapshot{at: time.Now(), used: before.Used + (after.Used-before.Used)/2} // the stores were asked between
	for _, g := range b.gauges {
		bytes, _, _ := g.read()
		now.sum += bytes
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last, b.measured = now, true
	if b.base == nil {
		b.base = &now
	}
	return after, errors.Join(errs...) // of a store that fails, the last figure stands
}

// estimate is what the stores take at most now: their last account, and all that the file system grew by since.
func (b *Budget) estimate(f FileSystem) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.last.sum + max(0, f.Used-b.last.used)
}

func (b *Budget) marks(f FileSystem) Marks { return b.cfg.Limits.marks(f, b.estimate(f)) }

// gauge is a store's usage as it was measured last.
type gauge struct {
	store Store
	walks sync.WaitGroup

	mu      sync.Mutex
	bytes   int64
	at      time.Time
	err     error
	running chan struct{} // closed when the measurement that goes on ends; nil: none does
}

// measure measures, in life, or waits for who does already. It returns early when ctx ends.
func (g *gauge) measure(ctx, life context.Context) error {
	g.mu.Lock()
	done := g.running
	if done == nil {
		done = make(chan struct{})
		g.running = done
		g.walks.Go(func() {
			bytes, err := g.store.Usage(life)
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.err = err; err == nil {
				g.bytes, g.at = bytes, time.Now()
			}
			g.running = nil
			close(done)
		})
	}
	g.mu.Unlock()
	select {
	case <-done:
		if _, _, err := g.read(); err != nil {
			return fmt.Errorf("measure %s: %w", g.store.Name(), err)
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g *gauge) read() (bytes int64, at time.Time, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.bytes, g.at, g.err
}
