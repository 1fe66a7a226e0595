package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// releaseTimeout bounds how long the kernel may take to let go of an unmounted disk; a millisecond is usual.
const releaseTimeout = 10 * time.Second

// bootMark is the file that says in which boot of the machine a state disk was mounted; it is there for as long
// as the disk is not safe on the machine's own disk.
func (d *disk) bootMark() string { return d.file + ".boot" }

func (d *disks) stateFile(name string) string { return filepath.Join(d.dir, "state", name+".ext4") }

// state makes, or finds again, the disk called name that outlives sandboxes, and mounts it at dir. It does not
// outlive a crash of the machine: nothing on it is synced, which makes builds quick, so a disk that the last boot
// left mounted may be torn, and is made anew. What survives without harm is the death of this process.
//
// A disk that is in use already is the same one, where it is mounted: two mounts of one file would destroy it.
func (d *disks) state(ctx context.Context, name, dir string, l sandbox.Limits, uid uint32) (*disk, error) {
	template, err := d.template(ctx, l)
	if err != nil {
		return nil, err
	}
	return d.use(name, dir, uid, template)
}

// existing is state for a disk that must be there.
func (d *disks) existing(name, dir string, uid uint32) (*disk, error) {
	return d.use(name, dir, uid, "")
}

func (d *disks) use(name, dir string, uid uint32, template string) (*disk, error) {
	d.openMu.Lock()
	defer d.openMu.Unlock()
	if open := d.open[name]; open != nil {
		open.users++
		return open, nil
	}
	found := &disk{file: d.stateFile(name), dir: dir, disks: d, name: name, users: 1}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, err
	}
	if mark, err := os.ReadFile(found.bootMark()); err == nil && !bytes.Equal(mark, boot) {
		d.log.Warn("the machine went down without unmounting a disk: it starts empty", "disk", found.file)
		if err := removeFile(found.file); err != nil {
			return nil, err
		}
	}
	if _, err := os.Stat(found.file); errors.Is(err, fs.ErrNotExist) {
		if template == "" {
			return nil, fmt.Errorf("state disk %s: %w", name, sandbox.ErrNoState)
		}
		if err := cloneSparse(template, found.file); err != nil {
			return nil, errors.Join(fmt.Errorf("create state disk: %w", err), removeFile(found.file))
		}
	}
	if err := awaitRelease(found.file); err != nil { // by an earlier process
		return nil, err
	}
	if err := os.WriteFile(found.bootMark(), boot, 0o600); err != nil {
		return nil, err
	}
	if err := found.mount(uid); err != nil {
		return nil, errors.Join(err, removeEmpty(dir))
	}
	if d.open == nil {
		d.open = map[string]*disk{}
	}
	d.open[name] = found
	return found, nil
}

// release ends one use of a state disk. The last one unmounts it, and returns when all is in its file.
func (d *disks) release(disk *disk) error {
	d.openMu.Lock()
	defer d.openMu.Unlock()
	if disk.users--; disk.users > 0 {
		return nil
	}
	delete(d.open, disk.name)
	err := errors.Join(disk.unmount(), removeEmpty(disk.dir), awaitRelease(disk.file))
	if err == nil {
		if err = syncFile(disk.file); err == nil {
			err = removeFile(disk.bootMark())
		}
	}
	return err
}

// awaitRelease returns when no loop device has the file. A mount lives on after unmount(2) for as long as another
// mount namespace has a copy of it, such as one that is about to end.
func awaitRelease(file string) error {
	deadline := time.Now().Add(releaseTimeout)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		devices, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
		if err != nil {
			return err
		}
		busy := ""
		for _, device := range devices {
			if backing, err := os.ReadFile(device); err == nil && strings.TrimSpace(string(backing)) == file {
				busy = strings.Split(device, "/")[3]
			}
		}
		if busy == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("disk %s is still mounted on /dev/%s: end what holds it (grep %s /proc/*/mountinfo)", file, busy, busy)
		}
		time.Sleep(wait)
	}
}

func syncFile(name string) error {
	file, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// StateDisks lists the disks that outlive sandboxes.
func (d *Driver) StateDisks() ([]sandbox.StateDisk, error) {
	files, err := filepath.Glob(d.disks.stateFile("*"))
	if err != nil {
		return nil, err
	}
	var found []sandbox.StateDisk
	for _, file := range files {
		var st unix.Stat_t
		if err := unix.Stat(file, &st); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, &fs.PathError{Op: "stat", Path: file, Err: err}
		}
		name := strings.TrimSuffix(filepath.Base(file), ".ext4")
		d.mu.Lock()
		used := d.usesState(name)
		d.mu.Unlock()
		found = append(found, sandbox.StateDisk{
			Name: name, Bytes: st.Blocks * 512, Changed: time.Unix(st.Mtim.Unix()), InUse: used,
		})
	}
	return found, nil
}

// RemoveState removes a state disk, unless a sandbox uses it, and says how many bytes that has freed; none if it
// is gone already.
func (d *Driver) RemoveState(name string) (freed int64, err error) {
	if err := sandbox.CheckID(name); err != nil {
		return 0, err
	}
	d.mu.Lock() // no sandbox that wants it can start
	defer d.mu.Unlock()
	if d.usesState(name) {
		return 0, nil
	}
	file := d.disks.stateFile(name)
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err == nil {
		freed = st.Blocks * 512
	}
	if err := removeFile(file); err != nil {
		return 0, err
	}
	if err := removeFile(file + ".boot"); err != nil {
		return freed, err
	}
	return freed, d.releaseStateUIDs(name)
}

// usesState reports whether a sandbox has a state disk or stands on it. d.mu is held.
func (d *Driver) usesState(name string) bool {
	for _, sb := range d.live {
		if sb.spec.State == name || sb.spec.Base != nil && sb.spec.Base.State == name {
			return true
		}
	}
	return false
}
