package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/runnerd/runnerd/budget"
)

// Store returns the registry as a part of what fills the disk. Its entries are manifests, by repository; what the
// machine's operator has pushed or preloaded is no entry, since it is never removed.
func (r *Registry) Store() budget.Store { return store{r} }

type store struct{ r *Registry }

// Name implements budget.Store.
func (store) Name() string { return "registry" }

// Usage implements budget.Store.
func (s store) Usage(ctx context.Context) (int64, error) { return budget.DiskUsage(ctx, s.r.root) }

func entryID(repository string, d digest.Digest) string { return repository + "@" + d.String() }

// removable reports whether what a repository holds may be removed.
func (o owner) removable() bool { return !o.Operator || strings.HasPrefix(o.Repository, mirrorPrefix) }

// Entries implements budget.Store.
func (s store) Entries(ctx context.Context) ([]budget.Entry, error) {
	r := s.r
	ctx = r.log.context(ctx)
	var all []budget.Entry
	refers := map[string][]digest.Digest{} // what each entry does, itself included
	times := map[digest.Digest]int{}       // how many entries refer to a blob
	known := map[string]bool{}
	err := r.eachManifest(ctx, func(o owner, repository distribution.Repository, d digest.Digest) error {
		manifests, err := repository.Manifests(ctx)
		if err != nil {
			return err
		}
		manifest, err := manifests.Get(ctx, d)
		if err != nil {
			return nil // it is gone, or broken: collect drops it
		}
		e := budget.Entry{ID: entryID(o.Repository, d), Description: o.Repository + "@" + d.String()[:19]}
		for _, ref := range manifest.References() {
			if ok, err := manifests.Exists(ctx, ref.Digest); ok && err == nil {
				e.Needs = append(e.Needs, entryID(o.Repository, ref.Digest))
				continue
			}
			refers[e.ID] = append(refers[e.ID], ref.Digest)
		}
		refers[e.ID] = append(refers[e.ID], d)
		for _, ref := range refers[e.ID] {
			times[ref]++
		}
		known[e.ID] = true
		if !o.removable() {
			return nil
		}
		if !o.Operator {
			e.Scope = o.Scope.String()
		}
		if tags, err := repository.Tags(ctx).Lookup(ctx, imagespec.Descriptor{Digest: d}); err == nil && len(tags) > 0 {
			e.Description = o.Repository + ":" + strings.Join(tags, ", ")
		}
		if info, err := os.Stat(filepath.Join(r.repositoryDir(o.Repository), "_manifests", "revisions", d.Algorithm().String(), d.Encoded(), "link")); err == nil {
			e.Created = info.ModTime()
		}
		used := r.uses.of(e.ID)
		e.LastUsed, e.Uses = used.Last, used.Count
		e.LastUsed = e.LastUse()
		e.InUse = time.Since(e.LastUsed) < leaseTime
		all = append(all, e)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the registry's images: %w", err)
	}
	r.uses.keep(known)
	for i := range all {
		for _, d := range refers[all[i].ID] {
			if info, err := os.Stat(r.blobFile(d)); err == nil && times[d] == 1 {
				all[i].Bytes += info.Size()
			}
		}
	}
	return all, nil
}

// Remove implements budget.Store. What was pushed or pulled within the last minutes is in use.
func (s store) Remove(ctx context.Context, ids []string) (int64, error) {
	r := s.r
	ctx = r.log.context(ctx)
	before, err := s.Usage(ctx)
	if err != nil {
		return 0, err
	}
	entries, err := s.Entries(ctx)
	if err != nil {
		return 0, err
	}
	removable := map[string]bool{}
	for _, e := range entries {
		removable[e.ID] = !e.InUse
	}
	for _, e := range entries {
		if !removable[e.ID] || !slices.Contains(ids, e.ID) { // it stays, and what it is made of
			for _, need := range e.Needs {
				removable[need] = false
			}
		}
	}
	var errs []error
	for _, id := range ids {
		if !removable[id] {
			continue
		}
		name, d, _ := strings.Cut(id, "@")
		if err := r.remove(ctx, name, digest.Digest(d)); err != nil {
			errs = append(errs, fmt.Errorf("remove %s: %w", id, err))
		}
	}
	errs = append(errs, r.collect(ctx))
	after, err := s.Usage(ctx)
	return max(0, before-after), errors.Join(append(errs, err)...)
}

// remove removes a manifest; a repository without any is nobody's.
func (r *Registry) remove(ctx context.Context, name string, d digest.Digest) error {
	r.collecting.Lock() // no manifest comes to be there meanwhile
	defer r.collecting.Unlock()
	repository, err := r.repository(ctx, name)
	if err != nil {
		return err
	}
	if err := r.removeManifest(ctx, repository, d); err != nil {
		return err
	}
	left, err := os.ReadDir(filepath.Join(r.repositoryDir(name), "_manifests", "revisions", d.Algorithm().String()))
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(left) == 0 {
		return r.owners.forget(name)
	}
	return err
}
