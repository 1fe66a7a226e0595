package main

import (
	"context"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/scope"
)

// artifacts are those in the CI cache's store, as the API lists them: each a tar of a directory.
type artifacts struct{ store *cache.Store }

func (a artifacts) List(ctx context.Context, owner scope.Scope, job string) (out []api.Output, err error) {
	entries, err := a.store.Artifacts(ctx, owner, job)
	for _, e := range entries {
		out = append(out, api.Output{Name: e.Key, Type: "local", Size: e.Bytes, Expires: e.Expires})
	}
	return out, err
}

func (a artifacts) Open(ctx context.Context, owner scope.Scope, job, name string) (io.ReadCloser, error) {
	entries, err := a.store.Artifacts(ctx, owner, job)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.Key == name {
			return a.store.Open(ctx, e), nil
		}
	}
	return nil, fmt.Errorf("artifact %q of job %s: %w", name, job, api.ErrNoOutput)
}
