package main

import (
	"context"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/runner"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
)

// newGitLabCaches makes the caches of a job of GitLab's, in its scope.
func newGitLabCaches(store *cache.Store, uses uses) func(runner.Request) gitlabjob.CacheStore {
	return func(r runner.Request) gitlabjob.CacheStore {
		return gitlabCaches{keptCaches{store, uses, r.Scope, r.ID}}
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
