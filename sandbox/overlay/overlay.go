// Package overlay reads the mounts of containerd's overlay snapshotter (containerd, plugins/snapshots/overlay): an overlay,
// or a bind of the one directory where there is no more.
package overlay

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
)

// Snapshotter is its name.
const Snapshotter = "overlayfs"

// LowerDirs are the layers of a view, topmost first, as overlay's lowerdir takes them.
func LowerDirs(mounts []mount.Mount) ([]string, error) {
	dirs, err := option(mounts, "lowerdir=")
	return strings.Split(dirs, ":"), err
}

// UpperDir is where a snapshot's own files go.
func UpperDir(mounts []mount.Mount) (string, error) { return option(mounts, "upperdir=") }

// option is the value of one of overlay's options, which begins with its name, or the source of a bind.
func option(mounts []mount.Mount, name string) (string, error) {
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		return mounts[0].Source, nil
	}
	if len(mounts) == 1 && mounts[0].Type == "overlay" {
		for _, o := range mounts[0].Options {
			if value, ok := strings.CutPrefix(o, name); ok {
				return value, nil
			}
		}
	}
	return "", fmt.Errorf("find layers: unexpected mounts %v: is the snapshotter %s?", mounts, Snapshotter)
}
