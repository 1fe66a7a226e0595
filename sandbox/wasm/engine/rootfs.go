package engine

import (
	"io/fs"
	"os"
	"path"
	"strconv"
	"syscall"
	"time"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/experimental/sysfs"
	"github.com/tetratelabs/wazero/sys"
)

// rootFS is a directory that nothing leads out of: wazero's own follows symbolic links wherever they lead. Names are
// resolved by an os.Root; what that has opened, wazero opens again as it is.
type rootFS struct {
	experimentalsys.UnimplementedFS
	root *os.Root
}

// descriptors are the files that this process has open, by number.
var descriptors = sysfs.DirFS("/proc/self/fd")

// rootFile keeps a file open that wazero may open again later, by its number.
type rootFile struct {
	experimentalsys.File
	keeps *os.File
}

func (f rootFile) Close() experimentalsys.Errno {
	errno := f.File.Close()
	if err := experimentalsys.UnwrapOSError(f.keeps.Close()); errno == 0 {
		errno = err
	}
	return errno
}

func clean(name string) string { return path.Clean("./" + name) }

// OpenFile opens a file.
func (r rootFS) OpenFile(name string, flag experimentalsys.Oflag, perm fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	name = clean(name)
	if flag&experimentalsys.O_NOFOLLOW != 0 {
		if info, err := r.root.Lstat(name); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			return nil, experimentalsys.ELOOP
		}
	}
	// Nonblocking, so that nobody waits for the other end of a pipe.
	opened, err := r.root.OpenFile(name, osFlags(flag)|syscall.O_NONBLOCK, perm.Perm())
	if err != nil {
		return nil, errno(err)
	}
	again := flag &^ (experimentalsys.O_CREAT | experimentalsys.O_EXCL | experimentalsys.O_TRUNC | experimentalsys.O_NOFOLLOW)
	file, failed := descriptors.OpenFile(strconv.Itoa(int(opened.Fd())), again|experimentalsys.O_NONBLOCK, 0)
	if failed != 0 {
		_ = opened.Close()
		return nil, failed
	}
	return rootFile{file, opened}, 0
}

// osFlags are the flags as os has them.
func osFlags(flag experimentalsys.Oflag) (out int) {
	switch flag & (experimentalsys.O_RDONLY | experimentalsys.O_WRONLY | experimentalsys.O_RDWR) {
	case experimentalsys.O_RDWR:
		out = os.O_RDWR
	case experimentalsys.O_WRONLY:
		out = os.O_WRONLY
	}
	for from, to := range map[experimentalsys.Oflag]int{
		experimentalsys.O_APPEND: os.O_APPEND, experimentalsys.O_CREAT: os.O_CREATE, experimentalsys.O_EXCL: os.O_EXCL,
		experimentalsys.O_TRUNC: os.O_TRUNC, experimentalsys.O_SYNC: os.O_SYNC, experimentalsys.O_DIRECTORY: syscall.O_DIRECTORY,
		experimentalsys.O_DSYNC: syscall.O_DSYNC, experimentalsys.O_RSYNC: syscall.O_RSYNC,
	} {
		if flag&from != 0 {
			out |= to
		}
	}
	return out
}

// errno is what an os.Root's error is to a module: a name that leads out of the directory is not permitted.
func errno(err error) experimentalsys.Errno {
	if err == nil {
		return 0
	}
	number := experimentalsys.UnwrapOSError(err)
	if number == experimentalsys.EIO || number == 0 {
		return experimentalsys.EPERM // os's "path escapes from parent" is no system's error
	}
	return number
}

func status(info fs.FileInfo, err error) (sys.Stat_t, experimentalsys.Errno) {
	if err != nil {
		return sys.Stat_t{}, errno(err)
	}
	return sys.NewStat_t(info), 0
}

// Lstat tells of a file, or of a symbolic link itself.
func (r rootFS) Lstat(name string) (sys.Stat_t, experimentalsys.Errno) {
	return status(r.root.Lstat(clean(name)))
}

// Stat tells of a file.
func (r rootFS) Stat(name string) (sys.Stat_t, experimentalsys.Errno) {
	return status(r.root.Stat(clean(name)))
}

// Mkdir makes a directory.
func (r rootFS) Mkdir(name string, perm fs.FileMode) experimentalsys.Errno {
	return errno(r.root.Mkdir(clean(name), perm.Perm()))
}

// Chmod changes a file's permissions.
func (r rootFS) Chmod(name string, perm fs.FileMode) experimentalsys.Errno {
	return errno(r.root.Chmod(clean(name), perm.Perm()))
}

// Rename renames a file.
func (r rootFS) Rename(from, to string) experimentalsys.Errno {
	return errno(r.root.Rename(clean(from), clean(to)))
}

// Rmdir removes a directory.
func (r rootFS) Rmdir(name string) experimentalsys.Errno {
	info, err := r.root.Lstat(clean(name))
	if err == nil && !info.IsDir() {
		return experimentalsys.ENOTDIR
	}
	return errno(r.root.Remove(clean(name)))
}

// Unlink removes what is no directory.
func (r rootFS) Unlink(name string) experimentalsys.Errno {
	info, err := r.root.Lstat(clean(name))
	if err == nil && info.IsDir() {
		return experimentalsys.EISDIR
	}
	return errno(r.root.Remove(clean(name)))
}

// Link gives a file another name.
func (r rootFS) Link(from, to string) experimentalsys.Errno {
	return errno(r.root.Link(clean(from), clean(to)))
}

// Symlink makes a symbolic link. As wazero's own, it makes none that is absolute.
func (r rootFS) Symlink(to, name string) experimentalsys.Errno {
	if path.IsAbs(to) {
		return experimentalsys.EPERM
	}
	return errno(r.root.Symlink(to, clean(name)))
}

// Readlink reads a symbolic link.
func (r rootFS) Readlink(name string) (string, experimentalsys.Errno) {
	to, err := r.root.Readlink(clean(name))
	return to, errno(err)
}

// Utimens sets a file's times, in nanoseconds since 1970; UTIME_OMIT leaves one as it is.
func (r rootFS) Utimens(name string, atim, mtim int64) experimentalsys.Errno {
	at := func(nanoseconds int64) time.Time {
		if nanoseconds == experimentalsys.UTIME_OMIT {
			return time.Time{} // as os.Chtimes has it
		}
		return time.Unix(0, nanoseconds)
	}
	return errno(r.root.Chtimes(clean(name), at(atim), at(mtim)))
}
