// Command runnerd-clone makes a BuildKit state directory, in which there are copies of another one's databases,
// stand on that other one's snapshots and blobs, which are seen read-only elsewhere. It runs in the sandbox of the
// BuildKit that will use the state, before it, and ends: the databases are foreign.
//
// What the databases know and what never changes becomes a link, so that removing it removes a link. A cache mount
// becomes an overlay, so that it is read as it is there and written here. What the other BuildKit still changes
// in place (contexts that it syncs to, containers that run) is struck out of the databases: BuildKit takes a
// record without its snapshot for one that was never made.
package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/moby/buildkit/cache/metadata"
	"golang.org/x/sys/unix"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: runnerd-clone WORKER-DIR SNAPSHOTS CONTENT")
		os.Exit(2)
	}
	if err := clone(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, "runnerd-clone:", err)
		os.Exit(1)
	}
}

// clone completes the state of one BuildKit worker, the directory dir. The others are the other one's snapshots
// and its content store.
func clone(dir, snapshotsDir, contentDir string) error {
	records, err := readRecords(filepath.Join(dir, "metadata_v2.db"))
	if err != nil {
		return fmt.Errorf("read the records: %w", err)
	}
	if err := cloneSnapshots(filepath.Join(dir, "snapshots"), snapshotsDir, records); err != nil {
		return err
	}
	return linkBlobs(filepath.Join(dir, "content", "blobs"), filepath.Join(contentDir, "blobs"))
}

// The kinds of records that BuildKit goes on changing (client/diskusage.go of BuildKit, whose import would treble
// this program).
const (
	localSource = "source.local"
	cacheMount  = "exec.cachemount"
)

// records says of BuildKit's records what their snapshots are (cache/metadata.go of BuildKit).
type records struct {
	kinds map[string]string
	final map[string]bool // a committed record has this one's snapshot for its own
}

func readRecords(path string) (records, error) {
	r := records{kinds: map[string]string{}, final: map[string]bool{}}
	store, err := metadata.NewStore(path)
	if err != nil {
		return r, err
	}
	defer store.Close()
	items, err := store.All()
	if err != nil {
		return r, err
	}
	for _, item := range items {
		if v := item.Get("cache.recordType"); v != nil {
			var kind string
			if err := v.Unmarshal(&kind); err != nil {
				return r, err
			}
			r.kinds[item.ID()] = kind
		}
		if v := item.Get("cache.equalMutable"); v != nil {
			var mutable string
			if err := v.Unmarshal(&mutable); err != nil {
				return r, err
			}
			r.final[mutable] = true
		}
	}
	return r, nil
}

// cloneSnapshots fills the directory of the overlay snapshotter that has the database.
func cloneSnapshots(dir, from string, r records) error {
	store, err := storage.NewMetaStore(filepath.Join(dir, "metadata.db"))
	if err != nil {
		return err
	}
	defer store.Close()
	to := filepath.Join(dir, "snapshots")
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	return store.WithTransaction(context.Background(), true, func(ctx context.Context) error {
		var all []snapshots.Info
		if err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			all = append(all, info)
			return nil
		}); err != nil {
			return fmt.Errorf("read the snapshots: %w", err)
		}
		for _, info := range all {
			id, _, _, err := storage.GetInfo(ctx, info.Name)
			if err != nil {
				return err
			}
			record := info.Name[strings.LastIndex(info.Name, "/")+1:] // namespace/number/record
			kind := r.kinds[record]
			switch {
			case info.Kind == snapshots.KindCommitted,
				info.Kind == snapshots.KindActive && r.final[record] && kind != localSource && kind != cacheMount:
				err = os.Symlink(filepath.Join(from, id), filepath.Join(to, id))
			case info.Kind == snapshots.KindActive && info.Parent == "" && kind == cacheMount:
				err = mountCopy(filepath.Join(from, id, "fs"), filepath.Join(to, id))
			case info.Kind == snapshots.KindView: // has nothing of its own
				err = os.MkdirAll(filepath.Join(to, id, "fs"), 0o700)
			default: // a cache mount on an image too: an overlay cannot be the upper layer of another
				_, _, err = storage.Remove(ctx, info.Name)
			}
			if err != nil {
				return fmt.Errorf("snapshot %s: %w", id, err)
			}
		}
		return nil
	})
}

// mountCopy makes a snapshot's directory in which fs is a copy-on-write view of another's.
func mountCopy(from, dir string) error {
	view, upper, work := filepath.Join(dir, "fs"), filepath.Join(dir, "upper"), filepath.Join(dir, "overlay")
	for _, d := range []string{dir, view, upper, work} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return err
		}
	}
	info, err := os.Lstat(from)
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t) // the root directory is the upper layer's
	if err := errors.Join(os.Chmod(upper, info.Mode()), os.Lchown(upper, int(owner.Uid), int(owner.Gid))); err != nil {
		return err
	}
	options := "userxattr,lowerdir=" + from + ",upperdir=" + upper + ",workdir=" + work
	if err := unix.Mount("overlay", view, "overlay", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		return fmt.Errorf("mount %s: %w", options, err)
	}
	return nil
}

// linkBlobs links all blobs: BuildKit removes the links of those that its database does not know.
func linkBlobs(dir, from string) error {
	algorithms, err := os.ReadDir(from)
	if errors.Is(err, fs.ErrNotExist) { // before the first
		return nil
	} else if err != nil {
		return err
	}
	for _, algorithm := range algorithms {
		to := filepath.Join(dir, algorithm.Name())
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		blobs, err := os.ReadDir(filepath.Join(from, algorithm.Name()))
		if err != nil {
			return err
		}
		for _, blob := range blobs {
			if err := os.Symlink(filepath.Join(from, algorithm.Name(), blob.Name()), filepath.Join(to, blob.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
