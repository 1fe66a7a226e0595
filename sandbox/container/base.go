package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// base is what a sandbox has of another's state.
type base struct {
	disk  *disk
	shown map[string]string // absolute path in the sandbox to mount on the machine
}

// inherit gives a new sandbox what its Spec wants of another's state. Names on that disk are the other sandbox's
// to choose, so none is resolved but below its volume, without links.
func (sb *Sandbox) inherit(ctx context.Context) error {
	want := sb.spec.Base
	if sb.spec.State != "" {
		return errors.New("a sandbox with a state disk cannot have a base")
	}
	uid, err := sb.d.existingStateUIDs(want.State)
	if err != nil {
		return err
	}
	disk, err := sb.d.disks.existing(want.State, sb.d.stateDir(want.State), uid)
	if err != nil {
		return err
	}
	sb.base = &base{disk: disk, shown: map[string]string{}} // remove looks after it
	volume, err := os.OpenFile(filepath.Join(disk.dir, "volumes", want.Volume), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return missing(err)
	}
	defer volume.Close()
	// What is copied is not newer than what is shown: nothing is removed from the disk, so all that the copies
	// name is there.
	if err := sb.copyFrom(ctx, volume); err != nil {
		return fmt.Errorf("copy the state of %s: %w", want.State, err)
	}
	mapping := fmt.Sprintf("%d:%d:%d", uid, sb.slot.base, rangeSize)
	ids, err := mount.GetUsernsFD(mapping, mapping)
	if err != nil {
		return err
	}
	defer ids.Close()
	for i, path := range slices.Sorted(maps.Keys(want.Show)) {
		target := filepath.Join(sb.dir(), "base", strconv.Itoa(i))
		if err := showDir(volume, want.Show[path], target, ids); err != nil {
			return fmt.Errorf("show %s of %s: %w", want.Show[path], want.State, err)
		}
		sb.base.shown[path] = target
	}
	return nil
}

// showDir mounts a directory below volume at target, read-only, with the ids of its files mapped.
func showDir(volume *os.File, name, target string, ids *os.File) error {
	dir, err := openBelow(volume, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return missing(err)
	}
	defer dir.Close()
	if err := os.MkdirAll(target, 0o711); err != nil {
		return err
	}
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	return mount.IDMapMountWithAttrs(descriptorPath(dir), target, int(ids.Fd()), attributes, 0)
}

// copyFrom copies the files while the sandbox that writes them stands still.
func (sb *Sandbox) copyFrom(ctx context.Context, volume *os.File) (err error) {
	want, disk := sb.spec.Base, sb.base.disk
	disk.still.Lock() // it does not start meanwhile
	defer disk.still.Unlock()
	began, stood := time.Now(), time.Now()
	if writer := sb.d.writer(want.State); writer != nil {
		defer writer.cgroup.resume()
		if err := writer.cgroup.pause(ctx); err != nil {
			return err
		}
		stood = time.Now()
	}
	left := want.MaxBytes
	for _, name := range want.Copy {
		n, err := sb.copyFile(volume, name, left)
		if errors.Is(err, fs.ErrNotExist) {
			return missing(err)
		} else if err != nil {
			return err
		}
		left -= n
	}
	sb.d.cfg.Log.Debug("copied a state", "sandbox", sb.spec.ID, "from", want.State, "bytes", want.MaxBytes-left, "wait", stood.Sub(began), "copy", time.Since(stood))
	return nil
}

// copyFile copies one file from another's volume to the same place on the sandbox's own, and gives it to its root.
func (sb *Sandbox) copyFile(volume *os.File, name string, limit int64) (int64, error) {
	from, err := openBelow(volume, name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return 0, err
	}
	defer from.Close()
	info, err := from.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() || info.Size() > limit {
		return 0, fmt.Errorf("%s is not a file of at most %d bytes", name, limit)
	}
	path := filepath.Join("volumes", sb.spec.Base.Volume)
	for _, part := range strings.Split(name, "/") {
		if _, err := sb.disk.mkdir(path, sb.slot.base, 0o755); err != nil {
			return 0, err
		}
		path = filepath.Join(path, part)
	}
	to, err := os.OpenFile(filepath.Join(sb.disk.dir, path), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, err
	}
	defer to.Close()
	// A plain copy: the disk of a sandbox that stands still does not grow.
	n, err := io.Copy(to, io.LimitReader(from, info.Size()))
	return n, errors.Join(err, to.Chown(int(sb.slot.base), int(sb.slot.base)))
}

// openBelow opens what lies below a directory that is another sandbox's to fill: no link is followed on the way.
func openBelow(dir *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), name, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// missing marks the error of what is not there yet.
func missing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", sandbox.ErrNoState, err)
	}
	return err
}

// writer is the sandbox that has a state disk, if there is one.
func (d *Driver) writer(state string) *Sandbox {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, sb := range d.live {
		if sb.spec.State == state {
			return sb
		}
	}
	return nil
}

// stateDir is where a state disk is mounted, whichever sandboxes use it. No sandbox's id has a dot.
func (d *Driver) stateDir(state string) string {
	return filepath.Join(d.sandboxesDir(), "state."+state)
}

// close lets go of the other's state.
func (b *base) close() error {
	var errs []error
	for _, target := range b.shown {
		errs = append(errs, unmount(target))
	}
	return errors.Join(append(errs, b.disk.close())...)
}
