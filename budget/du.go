package budget

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// DiskUsage is how many bytes of disk the files below paths take: blocks, so that holes are free, and each file once
// however many names it has, as du(1) counts. It does not leave the file system that a path lies on. Paths that are
// not there take nothing, and neither do files that go away meanwhile.
func DiskUsage(ctx context.Context, paths ...string) (int64, error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{} // of files with several names
	var sum int64
	for _, root := range paths {
		var dev uint64
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err == nil {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					st, ok := info.Sys().(*syscall.Stat_t)
					switch {
					case !ok:
						sum += info.Size()
					case path == root:
						dev = uint64(st.Dev)
						sum += st.Blocks * 512
					case uint64(st.Dev) != dev:
						if d.IsDir() {
							return fs.SkipDir
						}
					case d.IsDir() || st.Nlink < 2 || !seen[inode{uint64(st.Dev), st.Ino}]:
						if !d.IsDir() && st.Nlink > 1 {
							seen[inode{uint64(st.Dev), st.Ino}] = true
						}
						sum += st.Blocks * 512
					}
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return sum, err
		}
	}
	return sum, nil
}

// Directories is a store that is accounted and whose content has a life of its own: nothing can be removed from it.
type Directories struct {
	Label string
	Paths []string
}

var _ Store = Directories{}

// Name is the label.
func (d Directories) Name() string { return d.Label }

// Usage is that of the directories.
func (d Directories) Usage(ctx context.Context) (int64, error) { return DiskUsage(ctx, d.Paths...) }

// Entries are none.
func (d Directories) Entries(context.Context) ([]Entry, error) { return nil, nil }

// Remove removes nothing.
func (d Directories) Remove(context.Context, []string) (int64, error) { return 0, nil }

// SameFileSystem reports whether two paths lie on one file system; what is not there lies where its parent does.
func SameFileSystem(a, b string) bool {
	device := func(path string) (uint64, bool) {
		for {
			var st syscall.Stat_t
			if err := syscall.Stat(path, &st); err == nil {
				return uint64(st.Dev), true
			} else if !errors.Is(err, os.ErrNotExist) || path == filepath.Dir(path) {
				return 0, false
			}
			path = filepath.Dir(path)
		}
	}
	x, ok1 := device(a)
	y, ok2 := device(b)
	return ok1 && ok2 && x == y
}
