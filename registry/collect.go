package registry

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/distribution/distribution/v3"
	"github.com/distribution/distribution/v3/registry/storage"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// leaseTime is how long a blob is kept that a client was told is there, or has pushed: it may yet push the manifest
// that refers to it, or pull the image's other blobs.
const leaseTime = 10 * time.Minute

// leases are blobs that are not garbage, though nothing refers to them yet.
type leases struct {
	mu  sync.Mutex
	all map[string]time.Time // when each ends, by the digest's hexadecimal part
}

// lease keeps a blob for leaseTime, if it is there: one that comes is kept by its age.
func (r *Registry) lease(d digest.Digest) {
	if d.Validate() != nil {
		return
	}
	r.leases.mu.Lock()
	defer r.leases.mu.Unlock()
	if _, err := os.Stat(r.blobFile(d)); err == nil {
		r.leases.all[d.Encoded()] = time.Now().Add(leaseTime)
	}
}

// sweeper deletes what distribution's collector finds to be garbage, but for what is leased.
type sweeper struct {
	storagedriver.StorageDriver
	leases *leases
	stat   func(digest.Digest) (os.FileInfo, error)
}

func (s sweeper) Delete(ctx context.Context, name string) error {
	hex := path.Base(strings.TrimSuffix(name, "/link"))
	s.leases.mu.Lock() // a client that asks now is told that it is there and has a lease, or that it is not
	defer s.leases.mu.Unlock()
	if time.Now().Before(s.leases.all[hex]) {
		return nil
	}
	if info, err := s.stat(digest.NewDigestFromEncoded(digest.SHA256, hex)); err == nil && time.Since(info.ModTime()) < leaseTime {
		return nil
	}
	err := s.StorageDriver.Delete(ctx, name)
	if isPathNotFound(err) {
		return nil
	}
	return err
}

// collect removes blobs that no manifest refers to. Reads go on meanwhile and blobs may be pushed; manifests wait.
func (r *Registry) collect(ctx context.Context) error {
	ctx = r.log.context(ctx)
	r.collecting.Lock()
	defer r.collecting.Unlock()
	for _, dir := range []string{"repositories", "blobs"} { // where the collector stops if nothing was pushed yet
		if _, err := os.Stat(storageDir(r.root, dir)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	if err := r.dropBroken(ctx); err != nil {
		return err
	}
	err := storage.MarkAndSweep(ctx, sweeper{r.driver, &r.leases, func(d digest.Digest) (os.FileInfo, error) { return os.Stat(r.blobFile(d)) }},
		r.store, storage.GCOpts{Quiet: true})
	if err != nil {
		return fmt.Errorf("collect the registry's garbage: %w", err)
	}
	r.leases.mu.Lock()
	defer r.leases.mu.Unlock()
	for hex, ends := range r.leases.all {
		if time.Now().After(ends) {
			delete(r.leases.all, hex)
		}
	}
	return nil
}

// dropBroken removes manifests that are not in the store any longer, such as one found to be corrupted: the collector
// stops at them.
func (r *Registry) dropBroken(ctx context.Context) error {
	return r.eachManifest(ctx, func(o owner, repository distribution.Repository, d digest.Digest) error {
		if _, err := os.Stat(r.blobFile(d)); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return r.removeManifest(ctx, repository, d)
	})
}

// eachManifest calls do with all manifests.
func (r *Registry) eachManifest(ctx context.Context, do func(owner, distribution.Repository, digest.Digest) error) error {
	for _, o := range r.owners.list() {
		repository, err := r.repository(ctx, o.Repository)
		if err != nil {
			return err
		}
		manifests, err := repository.Manifests(ctx)
		if err != nil {
			return err
		}
		all, ok := manifests.(distribution.ManifestEnumerator)
		if !ok {
			return fmt.Errorf("%T does not list manifests", manifests)
		}
		var found []digest.Digest // removing them while they are listed would confuse the listing
		err = all.Enumerate(ctx, func(d digest.Digest) error {
			found = append(found, d)
			return ctx.Err()
		})
		if err != nil && !isPathNotFound(err) { // nothing was pushed there yet
			return err
		}
		for _, d := range found {
			if err := do(o, repository, d); err != nil {
				return err
			}
		}
	}
	return ctx.Err()
}

// removeManifest removes a manifest and its tags from a repository.
func (r *Registry) removeManifest(ctx context.Context, repository distribution.Repository, d digest.Digest) error {
	names, err := repository.Tags(ctx).Lookup(ctx, imagespec.Descriptor{Digest: d})
	if ignoreUnknown(err) != nil {
		return err
	}
	for _, name := range names {
		if err := ignoreUnknown(repository.Tags(ctx).Untag(ctx, name)); err != nil {
			return err
		}
	}
	all, err := repository.Tags(ctx).All(ctx)
	if ignoreUnknown(err) != nil {
		return err
	}
	return ignoreUnknown(storage.NewVacuum(ctx, r.driver).RemoveManifest(repository.Named().Name(), d, all))
}
