package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/scope"
)

func newArchiver(limits config.Cache) archiver {
	return archiver{maxBytes: int64(limits.MaxEntry), maxFiles: limits.MaxFiles}
}

// gitlabKept is what a job of GitLab's keeps things with, as far as it is not the job's own.
func gitlabKept(store *cache.Store, limits config.Cache, uses uses, of scope.Scope, job string) gitlabjob.Kept {
	return gitlabjob.Kept{
		Archiver:     newArchiver(limits),
		Caches:       gitlabCaches{keptCaches{store, uses, of, job}},
		CacheTimeout: time.Duration(limits.Timeout),
	}
}

// gitlabCaches are a job's caches in the form that package job wants.
type gitlabCaches struct{ keptCaches }

// Restore restores; see job.CacheStore.
func (c gitlabCaches) Restore(ctx context.Context, key string, extract func(size int64, from func(io.Writer) error) error) (string, error) {
	e, note, err := c.restore(ctx, []string{key}, extract)
	if e == nil || err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%s from %s, written by job %s", note, mebi(e.Bytes), e.Scope, e.Job), nil
}

// Save saves; see job.CacheStore.
func (c gitlabCaches) Save(ctx context.Context, key string, r io.Reader) (string, error) {
	saved, err := c.save(ctx, key, r)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s (%s new)", mebi(saved.Bytes), mebi(saved.NewBytes)), nil
}
