package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// uses notes which jobs have read and written what is kept, so that it is known who is concerned when an entry is
// revoked. It is the ledger.
type uses interface {
	Read(store, entry, job string, of scope.Scope)
	Wrote(store, entry, job string, of scope.Scope)
	// Copied is told how many bytes of an entry went into the job's sandbox or came out of it.
	Copied(job string, way sandbox.CopyWay, bytes int64)
}

// keptCaches are the caches that one job may read and write, whatever kind of job it is.
type keptCaches struct {
	store *cache.Store
	uses  uses
	scope scope.Scope
	job   string
}

// restore has extract called with the entry of the first of keys that there is: how many bytes from writes. It returns
// that entry, nil if there is none, and what else is to be said before the rest. A damaged entry is dropped when it is
// read, and the next one is tried.
func (c keptCaches) restore(ctx context.Context, keys []string, extract func(size int64, from func(io.Writer) error) error) (e *cache.Entry, note string, err error) {
	for {
		if e, err = c.store.Find(ctx, c.scope, keys...); err != nil || e == nil {
			return nil, note, err
		}
		r := c.store.Open(ctx, e)
		err = extract(e.Bytes, func(w io.Writer) error {
			_, err := r.WriteTo(w)
			return err
		})
		_ = r.Close()
		switch {
		case err == nil:
			c.uses.Copied(c.job, sandbox.CopyRestore, e.Bytes)
			c.uses.Read(c.store.Name(), e.ID(), c.job, c.scope)
			if err := c.store.Used(ctx, e); err != nil {
				note += fmt.Sprintf("(its use was not noted: %v) ", err)
			}
			return e, note, nil
		case errors.Is(err, cache.ErrDamaged) && note == "":
			note = fmt.Sprintf("%s of job %s was dropped: %v; ", shown(e.Key), e.Job, err)
		default:
			return e, note, err
		}
	}
}

// save keeps what r has until io.EOF.
func (c keptCaches) save(ctx context.Context, key string, r io.Reader) (cache.Saved, error) {
	saved, err := c.store.Save(ctx, c.scope, c.scope, key, c.job, r)
	if err == nil {
		c.uses.Copied(c.job, sandbox.CopySave, saved.Bytes)
		c.uses.Wrote(c.store.Name(), saved.ID, c.job, c.scope)
	}
	return saved, err
}
