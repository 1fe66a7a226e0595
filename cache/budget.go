package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/scope"
)

var _ budget.Store = (*Store)(nil)

// Local reports whether the store takes up this machine's disk.
func (s *Store) Local() bool { return s.dir != "" }

// Name is the store's in the budget.
func (s *Store) Name() string { return "ci-cache" }

// Usage is what the store takes on this machine's disk, in bytes: nothing if its bucket is elsewhere.
func (s *Store) Usage(ctx context.Context) (int64, error) {
	if !s.Local() {
		return 0, nil
	}
	return budget.DiskUsage(ctx, s.dir)
}

// blockSize is that of usual file systems, in bytes.
const blockSize = 4096

func onDisk(size int64) int64 { return (size + blockSize - 1) / blockSize * blockSize }

// Entries are the caches and artifacts. The bytes of each are those of the chunks that no other entry has, and of
// its index; what several share is freed with the last of them.
func (s *Store) Entries(ctx context.Context) ([]budget.Entry, error) {
	projects, err := s.projects(ctx)
	if err != nil {
		return nil, err
	}
	var all []budget.Entry
	for _, id := range projects {
		entries, err := s.entries(ctx, id)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	return all, nil
}

func (s *Store) entries(ctx context.Context, project string) ([]budget.Entry, error) {
	sizes := map[digest]int64{}
	err := s.list(ctx, project+chunksDir, func(o object) error {
		var d digest
		if d.UnmarshalText([]byte(o.path[strings.LastIndexByte(o.path, '/')+1:])) == nil {
			sizes[d] = onDisk(o.size)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var all []budget.Entry
	owner := map[digest]int{} // the only entry of a chunk, -1 if there are several
	for _, dir := range []string{entriesDir, artifactsDir} {
		err := s.indexes(ctx, project+dir, func(e *Entry) error {
			b := budget.Entry{ID: e.path, Scope: e.Scope.String(), Created: e.Created, LastUsed: e.Created, InUse: s.used(e.path), Bytes: blockSize}
			if u := s.lastUse(ctx, e.path); u.Uses > 0 {
				b.Uses, b.LastUsed = u.Uses, u.Last
			}
			b.Description = fmt.Sprintf("cache %q, %d bytes, saved by job %s", e.Key, e.Bytes, e.Job)
			if !e.Expires.IsZero() {
				b.Description = fmt.Sprintf("artifact %q of job %s, %d bytes, kept until %s", e.Key, e.Job, e.Bytes, e.Expires.Format("2006-01-02 15:04"))
			}
			for _, p := range e.Chunks {
				if first, ok := owner[p.Digest]; ok && first != len(all) {
					owner[p.Digest] = -1
				} else if !ok {
					owner[p.Digest] = len(all)
				}
			}
			all = append(all, b)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	for d, i := range owner {
		if i >= 0 {
			all[i].Bytes += sizes[d]
		}
	}
	return all, nil
}

// Remove removes entries, and the chunks that then nothing names. Those that are being restored it skips.
func (s *Store) Remove(ctx context.Context, ids []string) (freed int64, err error) {
	var errs []error
	projects := map[string]bool{}
	for _, id := range ids {
		project, rest, _ := strings.Cut(id, "/")
		if dir, _, _ := strings.Cut(rest, "/"); len(project) != scope.IDLen || "/"+dir+"/" != entriesDir && "/"+dir+"/" != artifactsDir {
			errs = append(errs, fmt.Errorf("%q is no entry of %s", id, s.Name()))
			continue
		}
		if s.used(id) {
			continue
		}
		there, err := s.bucket.Exists(ctx, id)
		if err == nil && there {
			err = s.remove(ctx, id)
			freed += blockSize
		}
		errs = append(errs, err)
		projects[project] = true
	}
	for project := range projects {
		n, err := s.collect(ctx, project)
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}
