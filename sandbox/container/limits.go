package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	containerdimages "github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// The kernel's and the engines' limits on what can be put on one another. Each is looked at before anything is started,
// since what the kernel says to one too many is "invalid argument".

// MaxLayers is how many layers an image may have: what engines chain (moby, layer/layer_store.go: 125 and the two of a
// container; moby/buildkit#3067).
const MaxLayers = 127

// ErrOverlays is wrapped when the state directory is on as many overlays as the kernel puts on one another: two
// (FILESYSTEM_MAX_STACK_DEPTH, include/linux/fs.h), of which a sandbox's root file system is one.
var ErrOverlays = errors.New("it lies on overlays already, and Linux puts at most two on one another: put --state-dir on ext4 or xfs, in a container on a volume")

// TooManyLayers is the error about an image of so many.
func TooManyLayers(n int) error {
	return fmt.Errorf("it has %d layers, and engines take %d at most: squash it, or build it in fewer steps", n, MaxLayers)
}

// checkOverlays tries whether an overlay can be mounted on a directory.
func checkOverlays(dir string) (err error) {
	at, err := os.MkdirTemp(dir, "overlay-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(at)) }()
	one, two, merged := filepath.Join(at, "1"), filepath.Join(at, "2"), filepath.Join(at, "merged")
	for _, d := range []string{one, two, merged} {
		if err := os.Mkdir(d, 0o711); err != nil {
			return err
		}
	}
	// A sandbox's upper layer is on a disk of its own, so it is the lower one that counts.
	err = unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+one+":"+two)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s cannot hold images: %w", dir, ErrOverlays)
	}
	if err != nil {
		return fmt.Errorf("mount an overlay on %s: %w: run \"runnerd doctor\"", dir, err)
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}

// fewLayers refuses an image of too many layers when its manifest is known, before a layer is downloaded.
func fewLayers(next containerdimages.Handler) containerdimages.Handler {
	return containerdimages.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		children, err := next.Handle(ctx, desc)
		layers := 0
		for _, c := range children {
			if containerdimages.IsLayerType(c.MediaType) {
				layers++
			}
		}
		if err == nil && layers > MaxLayers {
			return nil, TooManyLayers(layers)
		}
		return children, err
	})
}
