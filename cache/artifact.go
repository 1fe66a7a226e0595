package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// SaveArtifact stores a stream as what a job of a scope leaves, until a moment. Artifacts are no caches: no other
// job reads them.
func (s *Store) SaveArtifact(ctx context.Context, owner scope.Scope, job, name string, expires time.Time, r io.Reader) (Saved, error) {
	if err := errors.Join(CheckKey(name), checkJob(job)); err != nil {
		return Saved{}, err
	}
	if owner.IsZero() {
		return Saved{}, fmt.Errorf("%w: the artifact is nobody's", ErrDenied)
	}
	e := &Entry{Scope: owner, Key: name, Job: job, Expires: expires.UTC(), path: artifactPath(owner, job, name)}
	return s.save(ctx, e, r)
}

func checkJob(job string) error {
	if job == "" || len(job) > 100 || strings.Trim(job, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return fmt.Errorf("%.100q is no job's id: only a-z, 0-9 and - are allowed", job)
	}
	return nil
}

// Artifacts are those of a job that are there, by name. Damaged ones are not.
func (s *Store) Artifacts(ctx context.Context, owner scope.Scope, job string) ([]*Entry, error) {
	if err := checkJob(job); err != nil {
		return nil, err
	}
	var all []*Entry
	err := s.indexes(ctx, projectID(owner)+artifactsDir+job+"/", func(e *Entry) error {
		if e.Scope == owner && e.Expires.After(s.now()) {
			all = append(all, e)
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
	return all, err
}
