package budget

import (
	"context"
	"fmt"
	"time"
)

// How often a job that waits looks for room, and after how long pruning that came to nothing is tried again.
const (
	lookEvery  = time.Second
	pruneAgain = 30 * time.Second
)

// MakeRoom returns when there is room for another job, before which it prunes if need be: to the low mark when the
// stores take more than the high one, and whatever can go when less than the floor is free. A job is started above
// the high mark when nothing else can be removed, but never below the floor: it waits until somebody makes room.
// waiting is told why, and again when the reason changes. The error wraps ErrFull after Limits.Wait, or is
// context.Cause(ctx).
//
// When there is room it asks the file system once, and nobody else.
func (b *Budget) MakeRoom(ctx context.Context, waiting func(reason string)) error {
	told := ""
	say := func(reason string) {
		if reason != told {
			waiting(reason)
		}
		told = reason
	}
	var until time.Time
	for {
		f, err := b.look()
		if err != nil {
			return err
		}
		m := b.marks(f)
		full := f.check(m.Floor)
		if full == nil && !b.over(f, m) {
			return nil
		}
		if full != nil && until.IsZero() {
			until = time.Now().Add(b.cfg.Limits.Wait)
		}
		if b.due() {
			if full != nil {
				say("waiting for disk: making room: " + lack(f, m))
			} else {
				say(fmt.Sprintf("waiting for disk: making room: %s of %s are in use", Text(b.estimate(f)), Text(m.Budget)))
			}
			if err := b.makeRoom(ctx); err != nil {
				return err
			}
			continue
		}
		if full == nil {
			return nil
		}
		if time.Now().After(until) {
			return fmt.Errorf("%w after %s (disk.wait): run 'runnerd cache du' to see what takes it, 'runnerd cache prune --all' to remove what can go", full, b.cfg.Limits.Wait)
		}
		say("waiting for disk: " + lack(f, m) + ", and nothing that is not in use can go: make room on the disk of " + f.Dir)
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// CheckRoom returns an error that wraps ErrFull if less than the floor is free.
func (b *Budget) CheckRoom() error {
	f, err := b.look()
	if err != nil {
		return err
	}
	return f.check(b.marks(f).Floor)
}

func lack(f FileSystem, m Marks) string {
	if f.Free < m.Floor {
		return fmt.Sprintf("%s free, %s are kept free", Text(f.Free), Text(m.Floor))
	}
	return fmt.Sprintf("%d inodes free, %d are kept free", f.FreeInodes, leastInodes)
}

// over reports whether the stores may be above the high mark. Before the first account nobody knows.
func (b *Budget) over(f FileSystem, m Marks) bool {
	b.mu.Lock()
	measured := b.measured
	b.mu.Unlock()
	return measured && b.estimate(f) > m.High
}

// due reports whether pruning may come to something.
func (b *Budget) due() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return time.Since(b.futile) >= pruneAgain
}

// makeRoom prunes by the policy, unless whoever it waited for has done so.
func (b *Budget) makeRoom(ctx context.Context) error {
	release, err := b.alone(ctx)
	if err != nil {
		return err
	}
	defer release()
	f, err := b.look()
	if err != nil {
		return err
	}
	m := b.marks(f)
	full := f.check(m.Floor) != nil
	if !full && !b.over(f, m) || !b.due() {
		return nil
	}
	r := Request{policy: true}
	if full {
		r.free = max(m.Floor-f.Free, 1)
	}
	report, err := b.pruneAlone(ctx, r)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b.logPrune(report, err)
	if f, err = b.look(); err != nil {
		return err
	}
	// Above the mark still: what is left is in use or young. Asking all stores again for every job would help nobody.
	if m = b.marks(f); f.check(m.Floor) != nil || b.over(f, m) {
		b.mu.Lock()
		b.futile = time.Now()
		b.mu.Unlock()
	}
	return nil
}
