package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"

	containerdimages "github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/platforms"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// loanAttributes are those of what is lent. It reaches a sandbox by propagation from a mount of the machine's, which
// makes the kernel lock them: root in the sandbox cannot mount it writable (fs/pnode.c and lock_mnt_tree in
// fs/namespace.c). A mount that is handed over as a descriptor is not locked.
const loanAttributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// maxBlobs bounds how many blobs of one image are lent: overlay takes no more layers than half of that.
const maxBlobs = 256

// loans are what is lent to a sandbox. The zero value lends nothing.
type loans struct {
	mu     sync.Mutex
	dir    string         // a mount whose mounts appear in the companions that borrow; empty while there is none
	places string         // the directory that is mounted at dir, where it can be written
	blobs  string         // a directory of links to blobs, which is mounted below dir
	layers map[string]int // the machine's directories that are mounted, by the names of their mounts below dir
}

// describe has a companion see at path what is lent to the sandbox.
func (l *loans) describe(sb *Sandbox, path string, spec *specs.Spec) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.open(sb); err != nil {
		return fmt.Errorf("make a place for images that are lent: %w", err)
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{
		Destination: path, Type: "bind", Source: l.dir, Options: []string{"rbind", "rslave", "ro", "nosuid", "nodev"},
	})
	return nil
}

// open makes the mount below which all is lent. l.mu is held.
func (l *loans) open(sb *Sandbox) error {
	if l.dir != "" {
		return nil
	}
	dir, places, blobs := filepath.Join(sb.dir(), "loans"), filepath.Join(sb.dir(), "places"), filepath.Join(sb.d.loansDir(), sb.spec.ID)
	for _, d := range []string{dir, places, blobs} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	l.dir, l.places, l.blobs, l.layers = dir, places, blobs, map[string]int{} // close looks after them
	for _, m := range []struct {
		source string
		flags  uintptr
	}{
		{places, unix.MS_BIND},
		{"", unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV},
		{"", unix.MS_SHARED},
	} {
		if err := unix.Mount(m.source, dir, "", m.flags, ""); err != nil {
			return &fs.PathError{Op: "mount", Path: dir, Err: err}
		}
	}
	return l.show(sb.slot, blobs, "blobs")
}

// show mounts a directory of the machine below l.dir, with the sandbox's ids for those of its files.
func (l *loans) show(s *slot, dir, name string) error {
	if err := os.MkdirAll(filepath.Join(l.places, name), 0o711); err != nil {
		return err
	}
	return mount.IDMapMountWithAttrs(dir, filepath.Join(l.dir, name), int(s.userns.Fd()), loanAttributes, 0)
}

// lend shows an image.
func (l *loans) lend(sb *Sandbox, img *image, blobs []ocispec.Descriptor) (loan sandbox.Loan, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir == "" {
		return loan, errors.New("no companion borrows")
	}
	if len(img.diffs) != len(img.layers) {
		return loan, fmt.Errorf("%d layers of %d are unpacked", len(img.layers), len(img.diffs))
	}
	for i, chain := range identity.ChainIDs(slices.Clone(img.diffs)) {
		dir := img.layers[len(img.layers)-1-i]
		n, ok := l.layers[dir]
		if !ok {
			n = len(l.layers)
			if err := l.show(sb.slot, dir, filepath.Join(strconv.Itoa(n), "fs")); err != nil {
				return loan, err
			}
			l.layers[dir] = n
		}
		loan.Layers = append(loan.Layers, sandbox.LentLayer{ChainID: chain.String(), Path: strconv.Itoa(n)})
	}
	for _, blob := range blobs {
		name := blob.Digest.Encoded()
		if err := os.Link(sb.d.blobPath(blob.Digest), filepath.Join(l.blobs, name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return loan, err
		}
		loan.Blobs = append(loan.Blobs, sandbox.LentBlob{Digest: blob.Digest.String(), Size: blob.Size, Path: filepath.Join("blobs", name)})
	}
	return loan, nil
}

// close takes all back, once nothing runs in the sandbox any more.
func (l *loans) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir == "" {
		return nil
	}
	return errors.Join(unmount(l.dir), os.RemoveAll(l.blobs), removeTree(l.places))
}

// Lend lends an image of the machine's. See sandbox.Lender.
func (sb *Sandbox) Lend(ctx context.Context, ref string, how sandbox.Pull) (loan sandbox.Loan, err error) {
	img, err := sb.image(ctx, ref, how)
	if err != nil {
		return loan, err
	}
	sb.d.images.lent(img)
	blobs, err := sb.d.images.blobs(ctx, img)
	if err == nil {
		err = sb.d.images.markOpaque(img)
	}
	if err == nil {
		loan, err = sb.loans.lend(sb, img, blobs)
	}
	if err != nil {
		return loan, fmt.Errorf("lend %s to sandbox %s: %w", ref, sb.spec.ID, err)
	}
	return loan, nil
}

// blobs are the blobs of an image: its manifest for this machine, what leads there, and what that names.
func (i *images) blobs(ctx context.Context, img *image) (blobs []ocispec.Descriptor, err error) {
	ctx = namespaces.WithNamespace(ctx, img.namespace)
	platform := platforms.Default()
	children := containerdimages.ChildrenHandler(i.client.ContentStore())
	children = containerdimages.LimitManifests(containerdimages.FilterPlatforms(children, platform), platform, 1)
	err = containerdimages.Walk(ctx, containerdimages.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if len(blobs) == maxBlobs {
			return nil, fmt.Errorf("it has over %d blobs", maxBlobs)
		}
		blobs = append(blobs, d)
		return children.Handle(ctx, d)
	}), img.target)
	if err != nil {
		return nil, fmt.Errorf("read its manifests: %w", err)
	}
	return blobs, nil
}

// The marks of a directory that hides what the layers below have of it: of overlays in general, and of those that are
// mounted with "userxattr", as all in a user namespace are (Documentation/filesystems/overlayfs.rst).
const (
	opaqueMark     = "trusted.overlay.opaque"
	userOpaqueMark = "user.overlay.opaque"
)

// markOpaque gives the opaque directories of an image's layers the mark that overlays in user namespaces look for, too.
func (i *images) markOpaque(img *image) error {
	for _, layer := range img.layers {
		i.mu.Lock()
		done := i.marked[layer]
		i.mu.Unlock()
		if done {
			continue
		}
		if err := filepath.WalkDir(layer, markIfOpaque); err != nil {
			return err
		}
		i.mu.Lock()
		i.marked[layer] = true
		i.mu.Unlock()
	}
	return nil
}

// markIfOpaque is an fs.WalkDirFunc.
func markIfOpaque(path string, d fs.DirEntry, err error) error {
	if err != nil || !d.IsDir() {
		return err
	}
	mark := make([]byte, 1)
	n, err := unix.Lgetxattr(path, opaqueMark, mark)
	if err == unix.ENODATA || err == nil && (n != 1 || mark[0] != 'y') {
		return nil
	}
	if err == nil {
		err = unix.Lsetxattr(path, userOpaqueMark, mark, 0)
	}
	if err != nil {
		return &fs.PathError{Op: "mark as opaque", Path: path, Err: err}
	}
	return nil
}
