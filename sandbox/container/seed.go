package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/overlay"
)

// labelSeeded marks a snapshot whose files are links to those of another one, and take no room of their own.
const labelSeeded = "runnerd.io/seeded"

// share lets the namespaces of images that only some may read have the blobs of those that all may.
func (i *images) share(ctx context.Context) error {
	service := i.client.NamespaceService()
	err := service.Create(ctx, i.cfg.Name, map[string]string{labels.LabelSharedNamespace: "true"})
	if errdefs.IsAlreadyExists(err) {
		err = service.SetLabel(ctx, i.cfg.Name, labels.LabelSharedNamespace, "true")
	}
	if err != nil {
		return fmt.Errorf("share what all may read: %w", err)
	}
	return nil
}

// fetch gets and unpacks an image that not all may read. What it has in common with those that all may read, mostly its
// base, is neither fetched nor unpacked again.
func (i *images) fetch(ctx context.Context, f found) (client.Image, error) {
	public, done, err := i.client.WithLease(namespaces.WithNamespace(ctx, i.cfg.Name))
	if err != nil {
		return nil, err
	}
	defer done(context.WithoutCancel(public))
	ctx, done, err = i.client.WithLease(ctx)
	if err != nil {
		return nil, err
	}
	defer done(context.WithoutCancel(ctx))
	platform := platforms.Default()
	fetched, err := i.client.Fetch(ctx, f.name, client.WithPlatformMatcher(platform), client.WithResolver(f.resolver),
		client.WithImageHandlerWrapper(fewLayers))
	if err != nil {
		return nil, err
	}
	img := client.NewImageWithPlatform(i.client, fetched, platform)
	diffs, err := img.RootFS(ctx)
	if err != nil {
		return nil, err
	}
	if err := i.seed(ctx, public, diffs); err != nil {
		i.cfg.Log.Warn("an image's base is unpacked once more", "image", f.name, "error", err)
	}
	return img, img.Unpack(ctx, snapshotter)
}

// seed gives ctx's namespace the lowest layers of an image, as far as the public one has them. Both hold leases.
func (i *images) seed(ctx, public context.Context, diffs []digest.Digest) error {
	service := i.client.SnapshotService(snapshotter)
	parent := ""
	for _, id := range identity.ChainIDs(append([]digest.Digest(nil), diffs...)) {
		chain := id.String()
		if _, err := service.Stat(ctx, chain); errdefs.IsNotFound(err) {
			err = i.seedLayer(ctx, public, chain, parent)
			if errdefs.IsNotFound(err) {
				return nil // the public namespace has no more of them
			}
			if err != nil {
				return fmt.Errorf("layer %s: %w", chain, err)
			}
		} else if err != nil {
			return err
		}
		parent = chain
	}
	return nil
}

// seedLayer makes a snapshot of links to the files of the one of the same name in the public namespace, or fails with
// errdefs.ErrNotFound.
func (i *images) seedLayer(ctx, public context.Context, chain, parent string) (err error) {
	service := i.client.SnapshotService(snapshotter)
	key := fmt.Sprintf("seed-%s-%d", chain, i.seeds.Add(1))
	lookedAt, err := service.View(public, key, chain) // says where it is
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, service.Remove(public, key)) }()
	from, err := overlay.LowerDirs(lookedAt)
	if err != nil {
		return err
	}
	marks := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: chain, labelSeeded: "true"})
	fresh, err := service.Prepare(ctx, key, parent, marks)
	if errdefs.IsAlreadyExists(err) {
		return nil
	} else if err != nil {
		return err
	}
	to, err := overlay.UpperDir(fresh)
	if err == nil {
		err = linkTree(from[0], to)
	}
	if err == nil {
		err = service.Commit(ctx, chain, key, marks)
	}
	if err != nil {
		return errors.Join(err, service.Remove(context.WithoutCancel(ctx), key))
	}
	return nil
}

// linkTree fills the empty directory to with directories like those in from, and links to all else in them: a layer's
// files never change.
func linkTree(from, to string) error {
	type made struct {
		path string
		like fs.FileInfo
	}
	var dirs []made
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if !d.IsDir() {
			return os.Link(path, target)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if rel != "." {
			if err := os.Mkdir(target, 0o700); err != nil {
				return err
			}
		}
		dirs = append(dirs, made{target, info})
		return copyAttributes(path, target, info)
	})
	if err != nil {
		return err
	}
	for n := len(dirs) - 1; n >= 0; n-- { // filling them has changed their times
		if err := os.Chtimes(dirs[n].path, dirs[n].like.ModTime(), dirs[n].like.ModTime()); err != nil {
			return err
		}
	}
	return nil
}

// maxXattr is how long an extended attribute, or the list of their names, can be (linux/limits.h).
const maxXattr = 64 << 10

// copyAttributes gives a directory another one's owner, mode and extended attributes, overlay's marks among them.
func copyAttributes(from, to string, info fs.FileInfo) error {
	owner := info.Sys().(*syscall.Stat_t)
	if err := errors.Join(os.Lchown(to, int(owner.Uid), int(owner.Gid)), os.Chmod(to, info.Mode())); err != nil {
		return err
	}
	buffer := make([]byte, maxXattr)
	n, err := unix.Llistxattr(from, buffer)
	if err != nil {
		return &fs.PathError{Op: "list attributes", Path: from, Err: err}
	}
	for name := range strings.SplitSeq(strings.Trim(string(buffer[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, maxXattr)
		n, err := unix.Lgetxattr(from, name, value)
		if err == nil {
			err = unix.Lsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return &fs.PathError{Op: "copy attribute " + name, Path: from, Err: err}
		}
	}
	return nil
}
