package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// uploadAge is how long an upload may rest before it counts as given up, and purgeEvery how often they are
// looked for.
const (
	uploadAge  = 24 * time.Hour
	purgeEvery = 24 * time.Hour
	flushEvery = 5 * time.Minute // of when images were used
)

// purge deletes uploads that nobody finished, now and every day. distribution could do it, but tells so in
// a logger that is not ours to set.
func (r *Registry) purge(ctx context.Context) {
	defer close(r.purged)
	every, flush := time.NewTicker(purgeEvery), time.NewTicker(flushEvery)
	defer every.Stop()
	defer flush.Stop()
	for {
		err := purgeUploads(ctx, r.root, time.Now().Add(-uploadAge))
		if err != nil && ctx.Err() == nil {
			r.log.to.WarnContext(ctx, "unfinished uploads not deleted", "component", "registry", "error", err)
		}
		for due := false; !due; {
			select {
			case <-every.C:
				due = true
			case <-flush.C:
				if err := r.uses.flush(); err != nil {
					r.log.to.WarnContext(ctx, "not written", "component", "registry", "error", err)
				}
			case <-ctx.Done():
				return
			}
		}
	}
}

// purgeUploads deletes uploads under root last written before then.
func purgeUploads(ctx context.Context, root string, then time.Time) error {
	var failed []error
	err := filepath.WalkDir(storageDir(root, "repositories"), func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case !d.IsDir():
			return nil
		}
		switch d.Name() {
		case "_layers", "_manifests":
			return fs.SkipDir
		case "_uploads":
			failed = append(failed, purgeOne(path, then))
			return fs.SkipDir
		}
		return nil
	})
	if err := errors.Join(append(failed, err)...); err != nil {
		return fmt.Errorf("delete unfinished uploads: %w", err)
	}
	return nil
}

// purgeOne deletes the old uploads of one repository. An upload is a directory with the file "data" in it.
func purgeOne(uploads string, then time.Time) error {
	entries, err := os.ReadDir(uploads)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		upload := filepath.Join(uploads, e.Name())
		info, err := os.Stat(filepath.Join(upload, "data"))
		if errors.Is(err, fs.ErrNotExist) {
			info, err = os.Stat(upload)
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // finished meanwhile
		case err != nil:
			failed = append(failed, err)
		case info.ModTime().Before(then):
			failed = append(failed, os.RemoveAll(upload))
		}
	}
	return errors.Join(failed...)
}
