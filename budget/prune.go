package budget

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// Request says what to prune. The zero Request prunes to the low mark.
type Request struct {
	Store     string        // only this one's entries; "": all
	Scope     string        // only entries of this scope or project, as scope.Scope.String has it; "": all
	OlderThan time.Duration // only entries that were not used for so long
	// To is how many bytes all stores together may go on to take. 0: the low mark or, if OlderThan or All is set, as
	// little as can be.
	To     int64
	All    bool // whatever is not in use
	DryRun bool // only say what would be removed

	policy bool  // nobody has asked: spare what was used lately, unless free says otherwise
	free   int64 // bytes that must become free in any case
}

// Report is what was removed, or would be.
type Report struct {
	Removed []Listed   `json:"removed"`
	Freed   int64      `json:"freed"` // bytes, as the stores say; of a dry run, what the entries say
	Before  FileSystem `json:"before"`
	After   FileSystem `json:"after"`
	DryRun  bool       `json:"dry_run,omitempty"`
	// Remaining is how many bytes more than was asked for the stores still take, since nothing else can be removed.
	Remaining int64 `json:"remaining,omitempty"`
}

// Prune removes entries, the least valuable first, until the stores take as little as asked for. Never more is
// removed than that takes, but for a part of the last entry. One prunes at a time; who comes meanwhile waits. What
// is in use stays, and so does what it needs. An error of one store does not keep the others from being pruned.
func (b *Budget) Prune(ctx context.Context, r Request) (Report, error) {
	if err := b.known(r.Store); err != nil {
		return Report{}, err
	}
	return b.prune(ctx, r)
}

func (b *Budget) prune(ctx context.Context, r Request) (Report, error) {
	release, err := b.alone(ctx)
	if err != nil {
		return Report{}, err
	}
	defer release()
	return b.pruneAlone(ctx, r)
}

// alone waits until nobody else prunes.
func (b *Budget) alone(ctx context.Context) (release func(), err error) {
	select {
	case b.pruning <- struct{}{}:
		return func() { <-b.pruning }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (b *Budget) pruneAlone(ctx context.Context, r Request) (Report, error) {
	f, err := b.measureFor(ctx, r.policy)
	report := Report{Before: f, After: f, DryRun: r.DryRun, Removed: []Listed{}}
	if f.Size == 0 {
		return report, err
	}
	need := b.excess(f, r)
	tried := map[key]bool{}
	var errs []error
	if err != nil && !errors.Is(err, context.DeadlineExceeded) { // then the last figures are good enough
		errs = append(errs, err)
	}
	for need > 0 && ctx.Err() == nil {
		stores, err := b.list(ctx, r)
		if err != nil {
			errs = append(errs, err)
		}
		picked := pick(stores, need, time.Now(), func(store string, e Entry) bool { return b.may(r, e) && !tried[key{store, e.ID}] })
		if len(picked) == 0 {
			break
		}
		var freed int64
		for _, c := range picked {
			tried[key{c.store, c.ID}] = true
			if r.DryRun {
				freed += c.Bytes
			}
			report.Removed = append(report.Removed, Listed{c.store, c.Entry})
		}
		if r.DryRun {
			need -= freed
			report.Freed += freed
			break
		}
		for _, g := range b.gauges {
			var ids []string
			for _, c := range picked {
				if c.store == g.store.Name() {
					ids = append(ids, c.ID)
				}
			}
			if len(ids) == 0 {
				continue
			}
			n, err := g.store.Remove(ctx, ids)
			if err != nil {
				errs = append(errs, fmt.Errorf("remove from %s: %w", g.store.Name(), err))
			}
			freed += n
		}
		b.shrunk(freed)
		report.Freed += freed
		if need != math.MaxInt64 {
			need -= freed
		}
	}
	if need > 0 && need != math.MaxInt64 {
		report.Remaining = need
	}
	if !r.DryRun && len(report.Removed) > 0 {
		report.After, err = b.measureFor(ctx, r.policy)
		if err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
		report.Removed = b.gone(ctx, report.Removed)
	}
	if ctx.Err() != nil {
		errs = append(errs, context.Cause(ctx))
	}
	return report, errors.Join(errs...)
}

// shrunk notes what was removed, until the next account.
func (b *Budget) shrunk(freed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last.sum -= freed
	b.last.used -= freed
}

// gone are those of the entries that are no longer there: a store keeps what has come into use.
func (b *Budget) gone(ctx context.Context, removed []Listed) []Listed {
	there := map[key]bool{}
	for _, g := range b.gauges {
		if !slices.ContainsFunc(removed, func(l Listed) bool { return l.Store == g.store.Name() }) {
			continue
		}
		entries, _ := g.store.Entries(ctx)
		for _, e := range entries {
			there[key{g.store.Name(), e.ID}] = true
		}
	}
	return slices.DeleteFunc(removed, func(l Listed) bool { return there[key{l.Store, l.ID}] })
}

// measureFor takes the account; for a job it waits only so long, and takes older figures then.
func (b *Budget) measureFor(ctx context.Context, job bool) (FileSystem, error) {
	if !job {
		return b.measure(ctx)
	}
	short, cancel := context.WithTimeout(ctx, accountWait)
	defer cancel()
	return b.measure(short)
}

// excess is how many bytes must go.
func (b *Budget) excess(f FileSystem, r Request) int64 {
	switch {
	case r.To > 0:
		return b.estimate(f) - r.To
	case r.All || r.OlderThan > 0:
		return math.MaxInt64
	case r.policy && r.free <= 0 && !b.over(f, b.marks(f)):
		return 0 // the file system had grown, and the stores had not
	}
	return max(b.estimate(f)-b.marks(f).Low, r.free)
}

// list asks all stores for their entries. Errors do not keep the others from being asked.
func (b *Budget) list(ctx context.Context, r Request) (map[string][]Entry, error) {
	stores := map[string][]Entry{}
	var errs []error
	for _, g := range b.gauges {
		name := g.store.Name()
		if r.Store != "" && r.Store != name {
			continue
		}
		entries, err := g.store.Entries(ctx)
		if err != nil {
			errs = append(errs, fmt.Errorf("list the entries of %s: %w", name, err))
			continue
		}
		stores[name] = entries
	}
	return stores, errors.Join(errs...)
}

// may reports whether the request is about an entry.
func (b *Budget) may(r Request, e Entry) bool {
	idle := time.Since(e.LastUse())
	if r.policy && r.free <= 0 && idle < b.cfg.Limits.MinAge {
		return false
	}
	return inScope(r.Scope, e) && idle >= r.OlderThan
}

// pick takes entries, the least valuable first, until they free need bytes by what they say of themselves.
func pick(stores map[string][]Entry, need int64, now time.Time, may func(store string, e Entry) bool) (picked []candidate) {
	o := newOrder(stores, now, may)
	for need > 0 {
		c, ok := o.next()
		if !ok {
			break
		}
		picked = append(picked, c)
		if need != math.MaxInt64 {
			need -= c.Bytes
		}
	}
	return picked
}

func (b *Budget) logPrune(r Report, err error) {
	if err != nil {
		b.cfg.Log.Error("not all was pruned", "error", err)
	}
	if len(r.Removed) > 0 {
		b.cfg.Log.Info("pruned the disk", "entries", len(r.Removed), "freed", r.Freed, "free", r.After.Free)
	}
}
