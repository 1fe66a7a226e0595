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
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"

	"github.com/runnerd/runnerd/sandbox"
)

// sweepParallel is how many leftovers are removed at once.
const sweepParallel = 16

// endShims ends the containerd and the shims of an earlier run and removes what they kept of their tasks, before
// a new containerd starts: asked to do it, it would run three programs for each of what may be 1,000 sandboxes.
func (d *Driver) endShims(ctx context.Context) error {
	run := filepath.Join(d.cfg.RunDir, "containerd")
	// In this order, and before sweep kills the sandboxes, nobody looks after those whose end comes next.
	if err := endProcesses(ctx, "containerd", filepath.Join(run, "containerd.toml")); err != nil {
		return err
	}
	if err := endProcesses(ctx, "containerd-shim-runc-v2", filepath.Join(run, "containerd.sock")); err != nil {
		return err
	}
	const tasks = "io.containerd.runtime.v2.task"
	for _, dir := range []string{
		filepath.Join(run, tasks, d.namespace()), filepath.Join(d.cfg.StateDir, "containerd", tasks, d.namespace()),
		filepath.Join(d.cfg.RunDir, "runc", d.namespace()), d.shimsDir(),
	} {
		if err := errors.Join(unmountBelow(ctx, dir), os.RemoveAll(dir)); err != nil {
			return err
		}
	}
	return nil
}

// findProcesses lists the processes of a program that have argument among their arguments.
func findProcesses(program, argument string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		args := strings.Split(string(text), "\x00")
		if filepath.Base(args[0]) == program && slices.Contains(args[1:], argument) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// endProcesses kills the processes of a program that have argument among their arguments, and waits for their end.
func endProcesses(ctx context.Context, program, argument string) error {
	find := func() []int { return findProcesses(program, argument) }
	for pids := find(); len(pids) > 0; pids = find() {
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("end %s of an earlier run, process %d: %w", program, pids[0], context.Cause(ctx))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

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
	for _, dir := range []string{d.sandboxesDir(), d.tempMountsDir()} {
		if err := unmountBelow(ctx, dir); err != nil {
			return err
		}
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			err = errors.Join(err, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(err,
		os.RemoveAll(d.loansDir()),
		os.RemoveAll(filepath.Join(d.cfg.StateDir, "disks", "scratch")),
		os.MkdirAll(filepath.Join(d.cfg.StateDir, "disks", "scratch"), 0o700),
		root.remove(ctx),
		d.shims().remove(ctx),
	)
}

// unmountBelow unmounts what is mounted below dir: what lies in one directory of it in order, last first, since
// later mounts may lie on earlier ones, and several directories at once.
func unmountBelow(ctx context.Context, dir string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	byDir := map[string][]string{}
	for _, m := range slices.Backward(mounts) {
		if rest, below := strings.CutPrefix(m.Mountpoint, dir+"/"); below {
			first, _, _ := strings.Cut(rest, "/")
			byDir[first] = append(byDir[first], m.Mountpoint)
		}
	}
	removal, removalCtx := errgroup.WithContext(ctx)
	removal.SetLimit(sweepParallel)
	for _, mountpoints := range byDir {
		removal.Go(func() (err error) {
			for _, m := range mountpoints {
				err = errors.Join(err, unmount(m))
			}
			return errors.Join(err, removalCtx.Err())
		})
	}
	return removal.Wait()
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
	base, err := d.existingStateUIDs(name)
	if !errors.Is(err, sandbox.ErrNoState) {
		return base, err
	}
	file := filepath.Join(d.disks.dir, "state", name+".uid")
	if base, err = d.uids.acquire("state disk " + name); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return 0, err
	}
	return base, os.WriteFile(file, []byte(strconv.FormatUint(uint64(base), 10)+"\n"), 0o600)
}

// existingStateUIDs returns the uid range that a state disk has.
func (d *Driver) existingStateUIDs(name string) (uint32, error) {
	file := filepath.Join(d.disks.dir, "state", name+".uid")
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("state disk %s: %w", name, sandbox.ErrNoState)
	} else if err != nil {
		return 0, err
	}
	base, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: remove it together with its disk", file, err)
	}
	return uint32(base), nil
}

// releaseStateUIDs gives back the uid range of a state disk that is gone. d.mu is held.
func (d *Driver) releaseStateUIDs(name string) error {
	base, err := d.existingStateUIDs(name)
	if errors.Is(err, sandbox.ErrNoState) {
		return nil
	} else if err != nil {
		return err
	}
	if err := removeFile(filepath.Join(d.disks.dir, "state", name+".uid")); err != nil {
		return err
	}
	d.uids.release(base)
	return nil
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
