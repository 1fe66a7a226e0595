package registry

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/distribution/distribution/v3/registry/storage"
	storagedriver "github.com/distribution/distribution/v3/registry/storage/driver"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/singleflight"
)

// verified remembers which blobs were found to be what their digests say, as they lie on the disk: each is read once
// after a start, and again when it has changed.
type verified struct {
	mu     sync.Mutex
	blobs  map[digest.Digest]stamp
	checks singleflight.Group
}

type stamp struct {
	size  int64
	mtime time.Time
}

// intact reports whether a blob is what its digest says. One that is not is taken out of the store, so that it is
// fetched or pushed again; what was preloaded is loaded again.
func (r *Registry) intact(ctx context.Context, d digest.Digest) bool {
	if d.Validate() != nil {
		return false
	}
	info, err := os.Stat(r.blobFile(d))
	if err != nil {
		return false
	}
	now := stamp{info.Size(), info.ModTime()}
	r.verified.mu.Lock()
	known := r.verified.blobs[d] == now
	r.verified.mu.Unlock()
	if known {
		return true
	}
	ok, err, _ := r.verified.checks.Do(d.String(), func() (any, error) { return r.verify(d) })
	if err != nil {
		r.log.to.ErrorContext(ctx, "a blob cannot be read", "component", "registry", "digest", d, "error", err)
		return false
	}
	if !ok.(bool) {
		return false
	}
	r.remember(d, info)
	return true
}

// remember notes that a blob was found to be what its digest says, when its file was as info has it.
func (r *Registry) remember(d digest.Digest, info os.FileInfo) {
	r.verified.mu.Lock()
	defer r.verified.mu.Unlock()
	r.verified.blobs[d] = stamp{info.Size(), info.ModTime()}
}

func (r *Registry) verify(d digest.Digest) (bool, error) {
	f, err := os.Open(r.blobFile(d))
	if err != nil {
		return false, err
	}
	defer f.Close()
	v := d.Verifier()
	if _, err := io.Copy(v, f); err != nil {
		return false, err
	}
	if v.Verified() {
		return true, nil
	}
	ctx := r.log.context(context.Background())
	r.layouts.mu.Lock()
	r.layouts.damaged = true
	r.layouts.mu.Unlock()
	err = storage.NewVacuum(ctx, r.driver).RemoveBlob(d.String())
	r.log.to.ErrorContext(ctx, "a blob is not what its digest says: it is taken out of the registry", "component", "registry", "digest", d, "error", err)
	return false, err
}

// blobFile is where distribution keeps a blob.
func (r *Registry) blobFile(d digest.Digest) string {
	return filepath.Join(storageDir(r.root, "blobs"), d.Algorithm().String(), d.Encoded()[:2], d.Encoded(), "data")
}

// forgetBlob makes the next read of a blob verify it.
func (r *Registry) forgetBlob(d digest.Digest) {
	r.verified.mu.Lock()
	defer r.verified.mu.Unlock()
	delete(r.verified.blobs, d)
}

func isPathNotFound(err error) bool {
	var missing storagedriver.PathNotFoundError
	return errors.As(err, &missing)
}
