package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/runnerd/runnerd/scope"
)

// Lookup returns owner's entry of a key, nil if there is none. A damaged one is dropped, and an error that wraps
// ErrDamaged.
func (s *Store) Lookup(ctx context.Context, by, owner scope.Scope, key string) (*Entry, error) {
	if err := CheckKey(key); err != nil {
		return nil, err
	}
	if !by.MayRead(owner) {
		return nil, fmt.Errorf("%w: a job of %s may not read a cache of %s", ErrDenied, by, owner)
	}
	return s.read(ctx, entryPath(owner, key))
}

// Find returns the entry of the first of keys that there is, for each in the job's own scope and then in the one
// above it, which it may read; nil if there is none. Damaged ones are passed over, and dropped.
func (s *Store) Find(ctx context.Context, by scope.Scope, keys ...string) (*Entry, error) {
	owners := []scope.Scope{by}
	if above, ok := by.Above(); ok {
		owners = append(owners, above)
	}
	for _, key := range keys {
		for _, owner := range owners {
			e, err := s.Lookup(ctx, by, owner, key)
			if errors.Is(err, ErrDamaged) {
				s.log.Warn("a damaged cache entry was dropped", "scope", owner.String(), "key", key, "error", err)
				continue
			}
			if e != nil || err != nil {
				return e, err
			}
		}
	}
	return nil, nil
}

// Reader reads an entry. Its Read returns only bytes that are what was saved; when those that follow are not, it
// returns an error that wraps ErrDamaged, and the entry is dropped.
type Reader struct {
	store  *Store
	entry  *Entry
	pinned []chunk

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	ahead  chan chan fetched // in the order of the entry
	spare  chan *buffers
	done   sync.WaitGroup

	rest []byte
	held *buffers // of which rest is
	err  error
}

type fetched struct {
	*buffers
	err error
}

// Open opens an entry that Find or Lookup has returned. The caller closes the reader.
func (s *Store) Open(ctx context.Context, e *Entry) *Reader {
	r := &Reader{store: s, entry: e, ahead: make(chan chan fetched, s.workers+1), spare: make(chan *buffers, s.workers+1)}
	r.ctx, r.cancel = context.WithCancel(ctx)
	r.pinned = e.chunks()
	for _, c := range r.pinned {
		s.pins.pin(c)
	}
	s.mu.Lock()
	s.inUse[e.path]++
	s.mu.Unlock()
	for range s.workers + 1 {
		r.spare <- &buffers{}
	}
	r.done.Go(r.fetch)
	return r
}

// fetch reads ahead, as far as there are buffers.
func (r *Reader) fetch() {
	defer close(r.ahead)
	for i, p := range r.entry.Chunks {
		var b *buffers
		select {
		case b = <-r.spare:
		case <-r.ctx.Done():
			return
		}
		if cap(b.plain) < p.Bytes+slack {
			b.plain = make([]byte, 0, max(p.Bytes, meanChunk)+slack)
		}
		future := make(chan fetched, 1)
		r.ahead <- future // has room for as many as there are buffers
		r.done.Go(func() {
			future <- fetched{b, r.store.get(r.ctx, r.pinned[i], p.Bytes, b)}
		})
	}
}

func (r *Reader) Read(p []byte) (int, error) {
	if !r.more() {
		return 0, r.err
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// more reports whether there is a rest, which it fetches if need be.
func (r *Reader) more() bool {
	for len(r.rest) == 0 && r.err == nil {
		if r.held != nil {
			r.spare <- r.held
			r.held = nil
		}
		r.next()
	}
	return len(r.rest) > 0
}

// WriteTo writes all that Read would return.
func (r *Reader) WriteTo(w io.Writer) (total int64, err error) {
	for {
		n, err := w.Write(r.rest)
		total += int64(n)
		r.rest = r.rest[n:]
		if err != nil {
			return total, err
		}
		if !r.more() {
			return total, r.Err()
		}
	}
}

func (r *Reader) next() {
	future, ok := <-r.ahead
	if !ok {
		if r.err = io.EOF; r.ctx.Err() != nil {
			r.err = context.Cause(r.ctx)
		}
		return
	}
	got := <-future
	if got.err == nil {
		r.held, r.rest = got.buffers, got.plain
		return
	}
	if r.err = got.err; r.ctx.Err() != nil {
		r.err = context.Cause(r.ctx)
	}
	if errors.Is(r.err, ErrDamaged) {
		r.err = errors.Join(r.err, r.store.drop(r.ctx, r.entry))
	}
}

// Err is the error that Read has returned, nil for io.EOF.
func (r *Reader) Err() error {
	if errors.Is(r.err, io.EOF) {
		return nil
	}
	return r.err
}

// Close ends reading and waits until nothing of it is left.
func (r *Reader) Close() error {
	r.cancel()
	r.done.Wait()
	r.store.pins.unpin(r.pinned)
	s := r.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse[r.entry.path]--; s.inUse[r.entry.path] == 0 {
		delete(s.inUse, r.entry.path)
	}
	return nil
}
