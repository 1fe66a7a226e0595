package cache

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// Saved says what a save has done.
type Saved struct {
	ID       string // of the entry
	Bytes    int64  // of the stream
	NewBytes int64  // of it, in chunks that were not there
	Written  int64  // what these take, compressed
}

// Save stores a stream as owner's entry of a key, in the place of the one that there may be. There is no entry
// unless r ends with io.EOF and Save returns without an error. by is the scope of the job that asks.
func (s *Store) Save(ctx context.Context, by, owner scope.Scope, key, job string, r io.Reader) (Saved, error) {
	if err := CheckKey(key); err != nil {
		return Saved{}, err
	}
	if !by.MayWrite(owner) {
		return Saved{}, fmt.Errorf("%w: a job of %s may not write a cache of %s", ErrDenied, by, owner)
	}
	return s.save(ctx, &Entry{Scope: owner, Key: key, Job: job, path: entryPath(owner, key)}, r)
}

// save stores the stream of an entry whose names are set.
func (s *Store) save(ctx context.Context, e *Entry, r io.Reader) (Saved, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &writing{Store: s, entry: e, project: projectID(e.Scope), fail: cancel, seen: map[digest]bool{}}
	defer func() { s.pins.unpin(w.pinned) }()
	err := w.cut(ctx, r)
	if ctx.Err() != nil { // a worker's error, of which the cutter's is the consequence
		err = context.Cause(ctx)
	}
	if err != nil {
		return Saved{}, err
	}
	e.Created = s.now().UTC().Round(time.Microsecond)
	e.seal()
	if err := s.write(ctx, e); err != nil {
		return Saved{}, fmt.Errorf("write the index: %w", err)
	}
	w.saved.ID, w.saved.Bytes = e.ID(), e.Bytes
	return w.saved, nil
}

// writing is a save under way.
type writing struct {
	*Store
	entry   *Entry
	project string
	fail    context.CancelCauseFunc

	mu     sync.Mutex // of the entry's chunks, too
	pinned []chunk
	seen   map[digest]bool // so that what is in the stream twice is stored once
	saved  Saved
}

// task is a chunk on its way from the cutter to a worker.
type task struct {
	index int
	plain []byte
}

// cut cuts the stream and has workers store the pieces. There are no more of them in memory than workers, and one.
func (w *writing) cut(ctx context.Context, r io.Reader) error {
	cutter := newCutter(contextReader{ctx, r})
	tasks, spare := make(chan task), make(chan []byte, w.workers+1)
	for range w.workers + 1 {
		spare <- make([]byte, 0, maxChunk)
	}
	var workers sync.WaitGroup
	defer workers.Wait()
	defer close(tasks)
	for range w.workers {
		workers.Go(func() {
			var packed []byte
			for t := range tasks {
				if err := w.store(ctx, t, &packed); err != nil {
					w.fail(err)
				}
				spare <- t.plain
			}
		})
	}
	for {
		plain, err := cutter.next(<-spare)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if len(w.entry.Chunks)%64 == 0 {
			if err := w.room(); err != nil {
				return err
			}
		}
		if w.entry.Bytes += int64(len(plain)); w.entry.Bytes > w.maxEntry {
			return fmt.Errorf("%w: more than %d bytes: cache less, or raise cache.max_entry", ErrTooLarge, w.maxEntry)
		}
		w.mu.Lock()
		t := task{index: len(w.entry.Chunks), plain: plain}
		w.entry.Chunks = append(w.entry.Chunks, piece{Bytes: len(plain)})
		w.mu.Unlock()
		tasks <- t
	}
}

// store stores one piece. packed is the worker's buffer.
func (w *writing) store(ctx context.Context, t task, packed *[]byte) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	c := chunk{w.project, sha256.Sum256(t.plain)}
	w.mu.Lock()
	w.entry.Chunks[t.index].Digest = c.digest
	again := w.seen[c.digest]
	w.seen[c.digest] = true
	w.mu.Unlock()
	if again {
		return nil
	}
	w.pins.pin(c) // before it is looked for
	w.mu.Lock()
	w.pinned = append(w.pinned, c)
	w.mu.Unlock()
	written, err := w.put(ctx, c, t.plain, packed)
	if err != nil {
		return fmt.Errorf("store a chunk: %w", err)
	}
	if written > 0 {
		w.mu.Lock()
		w.saved.NewBytes += int64(len(t.plain))
		w.saved.Written += int64(written)
		w.mu.Unlock()
	}
	return nil
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
