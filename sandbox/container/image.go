package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/overlay"
)

// snapshotter keeps unpacked layers; a sandbox stacks its own disk on them.
const snapshotter = overlay.Snapshotter

// images pulls images and unpacks each once a machine. Their layers are shared by all sandboxes, read-only, with the
// ids of each sandbox mapped onto them by the mount.
type images struct {
	client *client.Client
	cfg    Config
	pulls  singleflight.Group

	// pulling is held shared by pulls, and alone by who removes images.
	pulling  sync.RWMutex
	removals sync.WaitGroup // that go on by themselves
	seeds    atomic.Int64   // how many snapshots were seeded

	mu       sync.Mutex
	unpacked map[string]*image    // by namespace and manifest digest
	used     map[string]*imageUse // by image.id
	marked   map[string]bool      // layers that markOpaque is done with
}

// image is an unpacked image.
type image struct {
	id        string          // StoredImage.ID
	namespace string          // containerd's
	layers    []string        // directories, topmost first, as overlay's lowerdir takes them
	diffs     []digest.Digest // of the layers, the lowest first
	config    ocispec.ImageConfig
	target    ocispec.Descriptor // what its name meant
}

func newImages(c *client.Client, cfg Config) *images {
	return &images{client: c, cfg: cfg, unpacked: map[string]*image{}, used: map[string]*imageUse{}, marked: map[string]bool{}}
}

// found is where an image is that somebody may have.
type found struct {
	name     string
	digest   digest.Digest // of its manifest
	resolver remotes.Resolver
	// namespace is containerd's, in which it is kept. containerd gives whatever a namespace holds to each image there
	// that names its digest, so what not all may have lies in one of its own, by the repository it came from.
	namespace string
}

func (f found) key() string { return f.namespace + "/" + f.digest.String() }

// get returns the image that ref names now, for one who may have it: that is asked on every use, so a moved tag is
// seen, and an image that was taken away, or that needs a password, is not served because it lies here. The image is
// not removed until the caller releases it.
func (i *images) get(ctx context.Context, ref string, how sandbox.Pull) (*image, error) {
	f, err := i.find(ctx, ref, how)
	if err != nil {
		return nil, &imageError{ref, err}
	}
	i.mu.Lock()
	have := i.unpacked[f.key()]
	if have != nil {
		i.hold(have)
	}
	i.mu.Unlock()
	if have != nil {
		return have, nil
	}
	// The pull goes on for others when the first who wanted it gives up.
	result := i.pulls.DoChan(f.key(), func() (any, error) { return i.pull(context.WithoutCancel(ctx), f) })
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-result:
		if r.Err != nil {
			return nil, &imageError{ref, r.Err}
		}
		return i.holdPulled(ctx, ref, how, r.Val.(*image))
	}
}

// imageError is why an image cannot be had.
type imageError struct {
	ref string
	err error
}

func (e *imageError) Error() string   { return fmt.Sprintf("image %q: %v", e.ref, e.err) }
func (e *imageError) Unwrap() []error { return []error{sandbox.ErrImage, e.err} }

// holdPulled holds an image that was just pulled, or gets it again should it have been removed since.
func (i *images) holdPulled(ctx context.Context, ref string, how sandbox.Pull, pulled *image) (*image, error) {
	i.mu.Lock()
	for _, known := range i.unpacked {
		if known == pulled {
			i.hold(pulled)
			i.mu.Unlock()
			return pulled, nil
		}
	}
	i.mu.Unlock()
	return i.get(ctx, ref, how)
}

// pull fetches and unpacks an image, finds its layers' directories, and notes it.
func (i *images) pull(ctx context.Context, f found) (*image, error) {
	i.pulling.RLock()
	defer i.pulling.RUnlock()
	ctx = namespaces.WithNamespace(ctx, f.namespace)
	var pulled client.Image
	var err error
	if f.namespace == i.cfg.Name {
		pulled, err = i.client.Pull(ctx, f.name, client.WithPullUnpack, client.WithPullSnapshotter(snapshotter), client.WithResolver(f.resolver),
			client.WithImageHandlerWrapper(fewLayers))
	} else {
		pulled, err = i.fetch(ctx, f)
	}
	if err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	spec, err := pulled.Spec(ctx)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	chain := identity.ChainID(spec.RootFS.DiffIDs).String()
	// A view keeps the layers from being collected and says where they are.
	service := i.client.SnapshotService(snapshotter)
	view := viewPrefix + chain
	mounts, err := service.View(ctx, view, chain, snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "runnerd"}))
	if errdefs.IsAlreadyExists(err) {
		mounts, err = service.Mounts(ctx, view)
	}
	if err != nil {
		return nil, fmt.Errorf("find layers: %w", err)
	}
	layers, err := overlay.LowerDirs(mounts)
	if err != nil {
		return nil, err
	}
	img := &image{
		id: f.namespace + "/" + chain, namespace: f.namespace,
		layers: layers, diffs: spec.RootFS.DiffIDs, config: spec.Config, target: pulled.Target(),
	}
	f.digest = img.target.Digest // the tag may have moved since
	i.mu.Lock()
	defer i.mu.Unlock()
	i.unpacked[f.key()] = img
	return img, nil
}

// mountRootFS mounts an image for a sandbox at dir: its layers below, mapped to the sandbox's ids, and
// a directory of the sandbox's disk on top, which takes all writes.
func mountRootFS(img *image, d *disk, name, dir string, base uint32) error {
	upper, err := d.mkdir(filepath.Join("rootfs", name, "upper"), base, 0o755)
	if err != nil {
		return err
	}
	work, err := d.mkdir(filepath.Join("rootfs", name, "work"), base, 0o755)
	if err != nil {
		return err
	}
	ids := fmt.Sprintf("0:%d:%d", base, rangeSize)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		// volatile: the disk does not outlive the sandbox, so nothing needs to be synced for it.
		"index=off", "volatile", "workdir=" + work, "upperdir=" + upper, "lowerdir=" + strings.Join(img.layers, ":"),
		"uidmap=" + ids, "gidmap=" + ids,
	}}
	if err := m.Mount(dir); err != nil {
		return errors.Join(fmt.Errorf("mount root file system: %w: run \"runnerd doctor\"", err), unmount(dir))
	}
	return nil
}
