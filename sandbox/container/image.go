package container

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/singleflight"

	"github.com/runnerd/runnerd/sandbox"
)

// snapshotter keeps unpacked layers; a sandbox stacks its own disk on them.
const snapshotter = "overlayfs"

// images pulls images from the registry and unpacks each once a machine. Their layers are shared by all
// sandboxes, read-only, with the ids of each sandbox mapped onto them by the mount.
type images struct {
	client   *client.Client
	resolver remotes.Resolver
	pulls    singleflight.Group

	// pulling is held shared by pulls, and alone by who removes images.
	pulling sync.RWMutex

	mu       sync.Mutex
	unpacked map[string]*image    // by manifest digest
	used     map[string]*imageUse // by chain id
}

// image is an unpacked image.
type image struct {
	chain  string   // the chain id of its layers
	layers []string // directories, topmost first, as overlay's lowerdir takes them
	config ocispec.ImageConfig
}

// newImages asks the registry at mirror (host:port, plain HTTP, on this machine) for every image,
// whatever registry its name says: it is the pull-through mirror of them all.
func newImages(c *client.Client, mirror string) *images {
	hosts := func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Host: mirror, Scheme: "http", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}
	return &images{
		client: c, unpacked: map[string]*image{}, used: map[string]*imageUse{},
		resolver: docker.NewResolver(docker.ResolverOptions{Hosts: hosts}),
	}
}

// get returns the image that ref names now. The name is looked up on every use, so a moved tag is seen and
// an image that was taken away is not served from the cache. The image is not removed until the caller releases it.
func (i *images) get(ctx context.Context, ref string) (*image, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w: %w", ref, sandbox.ErrUnknownImage, err)
	}
	_, descriptor, err := i.resolver.Resolve(ctx, named.String())
	if errdefs.IsNotFound(err) {
		return nil, fmt.Errorf("image %q: %w: push it to the registry first, or correct the name", ref, sandbox.ErrUnknownImage)
	} else if err != nil {
		return nil, fmt.Errorf("image %q: resolve: %w", ref, err)
	}
	key := descriptor.Digest.String()
	i.mu.Lock()
	found := i.unpacked[key]
	if found != nil {
		i.hold(found)
	}
	i.mu.Unlock()
	if found != nil {
		return found, nil
	}
	// The pull goes on for others when the first who wanted it gives up.
	result := i.pulls.DoChan(key, func() (any, error) { return i.pull(context.WithoutCancel(ctx), named.String(), key) })
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case r := <-result:
		if r.Err != nil {
			return nil, fmt.Errorf("image %q: %w", ref, r.Err)
		}
		return i.holdPulled(ctx, ref, r.Val.(*image))
	}
}

// holdPulled holds an image that was just pulled, or gets it again should it have been removed since.
func (i *images) holdPulled(ctx context.Context, ref string, pulled *image) (*image, error) {
	i.mu.Lock()
	for _, known := range i.unpacked {
		if known == pulled {
			i.hold(pulled)
			i.mu.Unlock()
			return pulled, nil
		}
	}
	i.mu.Unlock()
	return i.get(ctx, ref)
}

// pull fetches and unpacks an image, finds its layers' directories, and notes it under key.
func (i *images) pull(ctx context.Context, name, key string) (*image, error) {
	i.pulling.RLock()
	defer i.pulling.RUnlock()
	pulled, err := i.client.Pull(ctx, name, client.WithPullUnpack, client.WithPullSnapshotter(snapshotter), client.WithResolver(i.resolver))
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
	layers, err := lowerDirs(mounts)
	if err != nil {
		return nil, err
	}
	img := &image{chain: chain, layers: layers, config: spec.Config}
	i.mu.Lock()
	i.unpacked[key] = img
	i.mu.Unlock()
	return img, nil
}

// lowerDirs reads the layers from the mount of a view: a read-only bind of the one layer, or an overlay.
func lowerDirs(mounts []mount.Mount) ([]string, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return []string{mounts[0].Source}, nil
	}
	if len(mounts) == 1 && mounts[0].Type == "overlay" {
		for _, option := range mounts[0].Options {
			if dirs, ok := strings.CutPrefix(option, "lowerdir="); ok {
				return strings.Split(dirs, ":"), nil
			}
		}
	}
	return nil, fmt.Errorf("find layers: unexpected mounts %v: is the snapshotter %s?", mounts, snapshotter)
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
