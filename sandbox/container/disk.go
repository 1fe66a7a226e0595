package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// disks makes the sandboxes' scratch disks: sparse files with a file system of a fixed size and number of
// inodes, mounted through a loop device. All that a sandbox writes lies on its disk, so a full disk is the
// sandbox's own affair, and removing everything it wrote is one unlink.
type disks struct {
	dir string // templates/, scratch/ and state/ below it
	log *slog.Logger

	mu sync.Mutex // held while a template is made

	openMu sync.Mutex // held while a state disk is mounted or unmounted
	open   map[string]*disk
}

// disk is a mounted file system of a sandbox.
type disk struct {
	file    string // the sparse file
	dir     string // where it is mounted
	mounted bool

	// Of a state disk, which outlives sandboxes, and may be used by several at once:
	disks *disks
	name  string
	users int        // guarded by disks.openMu
	still sync.Mutex // held while files are copied from it, and while its sandbox starts
}

// scratch makes and mounts a disk for a sandbox at dir, owned by uid.
func (d *disks) scratch(ctx context.Context, id, dir string, l sandbox.Limits, uid uint32) (*disk, error) {
	template, err := d.template(ctx, l)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(d.dir, "scratch", id+".ext4")
	if err := cloneSparse(template, file); err != nil {
		return nil, errors.Join(fmt.Errorf("create scratch disk: %w", err), removeFile(file))
	}
	disk := &disk{file: file, dir: dir}
	if err := disk.mount(uid); err != nil {
		return nil, errors.Join(err, removeFile(file))
	}
	return disk, nil
}

// template returns a freshly formatted file of this size that disks are cloned from: formatting takes
// 100 times as long as cloning the few blocks that formatting writes.
func (d *disks) template(ctx context.Context, l sandbox.Limits) (string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	name := filepath.Join(d.dir, "templates", fmt.Sprintf("%d-%d.ext4", l.Disk, l.Inodes))
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	for _, sub := range []string{"templates", "scratch", "state"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o700); err != nil {
			return "", err
		}
	}
	temporary := name + ".new"
	file, err := os.OpenFile(temporary, os.O_CREATE|os.O_TRUNC|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer file.Close()
	if err := file.Truncate(l.Disk); err != nil {
		return "", fmt.Errorf("create a disk of %d bytes: %w", l.Disk, err)
	}
	// The disk of a sandbox that is gone is never read again, so it needs no journal.
	mkfs := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-N", fmt.Sprint(l.Inodes),
		"-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", temporary)
	if out, err := mkfs.CombinedOutput(); err != nil {
		return "", errors.Join(fmt.Errorf("mkfs.ext4: %w: %s: install e2fsprogs", err, out), removeFile(temporary))
	}
	return name, os.Rename(temporary, name)
}

// cloneSparse copies a file's data and leaves its holes holes.
func cloneSparse(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := dst.Truncate(info.Size()); err != nil {
		return err
	}
	for offset := int64(0); ; {
		start, err := unix.Seek(int(src.Fd()), offset, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // no data behind offset
			return dst.Close()
		} else if err != nil {
			return err
		}
		end, err := unix.Seek(int(src.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, start), io.NewSectionReader(src, start, end-start)); err != nil {
			return err
		}
		offset = end
	}
}

// mount mounts the disk and gives its root directory to uid.
func (d *disk) mount(uid uint32) error {
	if err := os.MkdirAll(d.dir, 0o711); err != nil { // searchable by mapped ids
		return err
	}
	// nobarrier: an fsync in the sandbox does not wait for the machine's disk. See disks.state.
	m := mount.Mount{Type: "ext4", Source: d.file, Options: []string{"loop", "noatime", "nodev", "discard", "nobarrier"}}
	if err := m.Mount(d.dir); err != nil {
		return fmt.Errorf("mount disk %s: %w: run \"runnerd doctor\"", d.file, err)
	}
	d.mounted = true
	if err := os.Lchown(d.dir, int(uid), int(uid)); err != nil {
		return errors.Join(err, d.close())
	}
	return os.RemoveAll(filepath.Join(d.dir, "lost+found"))
}

// mkdir makes a directory on the disk that belongs to the sandbox's root.
func (d *disk) mkdir(name string, uid uint32, mode fs.FileMode) (string, error) {
	dir := filepath.Join(d.dir, name)
	if err := os.MkdirAll(dir, mode); err != nil {
		return "", err
	}
	return dir, os.Lchown(dir, int(uid), int(uid))
}

// used is the number of bytes in use on the disk.
func (d *disk) used() int64 {
	var st unix.Statfs_t
	if unix.Statfs(d.dir, &st) != nil {
		return 0
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// close ends a use of the disk. A scratch disk is removed, a state disk is unmounted when it was the last.
func (d *disk) close() error {
	if d.disks != nil {
		return d.disks.release(d)
	}
	return errors.Join(d.unmount(), removeFile(d.file))
}

func (d *disk) unmount() error {
	if !d.mounted {
		return nil
	}
	d.mounted = false
	return unmount(d.dir)
}

// unmount detaches a mount, and everything mounted on top of it at the same place.
func unmount(dir string) error {
	if err := mount.UnmountAll(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

func removeFile(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
