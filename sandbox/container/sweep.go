package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
)

// sweepParallel is how many leftover containers are removed at once.
const sweepParallel = 16

// sweep removes everything that bears the driver's name from an earlier run: a sandbox's parts all lie
// below one cgroup, one directory and one containerd namespace, so finding them needs no list.
func (d *Driver) sweep(ctx context.Context) error {
	ctx = d.context(ctx)
	root := cgroup{h: d.cgroups, path: "/" + d.cfg.Name}
	if err := root.kill(ctx); err != nil {
		return err
	}
	containers, err := d.client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	removal, removalCtx := errgroup.WithContext(ctx)
	removal.SetLimit(sweepParallel)
	for _, c := range containers {
		removal.Go(func() error { return removeContainer(removalCtx, c) })
	}
	if err := removal.Wait(); err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.cfg.RunDir))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) { // later mounts may lie on earlier ones
		for _, part := range []string{d.sandboxesDir(), filepath.Join(d.cfg.RunDir, "tmp")} {
			if strings.HasPrefix(m.Mountpoint, part+"/") {
				err = errors.Join(err, unmount(m.Mountpoint))
			}
		}
	}
	if err != nil {
		return err
	}
	entries, _ := os.ReadDir(d.sandboxesDir())
	for _, e := range entries {
		err = errors.Join(err, removeTree(filepath.Join(d.sandboxesDir(), e.Name())))
	}
	return errors.Join(err,
		os.RemoveAll(filepath.Join(d.cfg.StateDir, "disks", "scratch")),
		os.MkdirAll(filepath.Join(d.cfg.StateDir, "disks", "scratch"), 0o700),
		os.RemoveAll(filepath.Join(d.cfg.RunDir, "addresses")),
		os.RemoveAll(filepath.Join(d.cfg.RunDir, "cni")),
		root.remove(ctx),
	)
}

func removeContainer(ctx context.Context, c client.Container) error {
	task, err := c.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, client.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete task of %s: %w", c.ID(), err)
	}
	if err := c.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete container %s: %w", c.ID(), err)
	}
	return nil
}

// stateUIDs returns the uid range of a state disk, giving it one when it is new. The range is written
// beside the disk, and taken for as long as the disk exists.
func (d *Driver) stateUIDs(name string) (uint32, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	file := filepath.Join(d.disks.dir, "state", name+".uid")
	if text, err := os.ReadFile(file); err == nil {
		base, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%s: %w: remove it together with its disk", file, err)
		}
		return uint32(base), nil
	}
	base, err := d.uids.acquire("state disk " + name)
	if err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return 0, err
	}
	return base, os.WriteFile(file, []byte(strconv.FormatUint(uint64(base), 10)+"\n"), 0o600)
}

// claimStateDisks takes the uid ranges of the disks that are there from earlier runs.
func (d *Driver) claimStateDisks() error {
	files, err := filepath.Glob(filepath.Join(d.disks.dir, "state", "*.uid"))
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".uid")
		base, readErr := d.stateUIDs(name)
		if readErr == nil {
			readErr = d.uids.claim(base, "state disk "+name)
		}
		err = errors.Join(err, readErr)
	}
	return err
}
