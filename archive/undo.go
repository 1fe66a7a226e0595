package archive

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// undo notes what an extraction changes. What it replaces is renamed, and removed when all has gone well: putting a
// name back costs less than a second tree, and nothing where nothing is replaced.
type undo struct {
	root    *os.Root
	prefix  string // of the names of what was replaced; no archive can know it
	changes []change
}

// change is one: something was made, a file was renamed, or an empty directory removed.
type change struct {
	name  string
	aside string      // what it was renamed to
	dir   fs.FileMode // of the directory that was removed
}

func newUndo(root *os.Root) *undo {
	return &undo{root: root, prefix: ".runnerd-" + strconv.FormatUint(rand.Uint64(), 36) + "-"}
}

func (u *undo) made(name string) { u.changes = append(u.changes, change{name: name}) }

// displace makes room: a directory must be empty.
func (u *undo) displace(name string) error {
	fi, err := u.root.Lstat(name)
	if err != nil {
		return err
	}
	c := change{name: name}
	if fi.IsDir() {
		c.dir = fi.Mode()
		err = u.root.Remove(name)
	} else {
		c.aside = path.Join(path.Dir(name), u.prefix+strconv.Itoa(len(u.changes)))
		err = u.root.Rename(name, c.aside)
	}
	if err == nil {
		u.changes = append(u.changes, c)
	}
	return err
}

// displaceAt is displace of a name in a directory that is open, which takes a third of the time.
func (u *undo) displaceAt(dir *os.File, base, name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(dir.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return u.displace(name)
	}
	aside := u.prefix + strconv.Itoa(len(u.changes))
	if err := unix.Renameat(int(dir.Fd()), base, int(dir.Fd()), aside); err != nil {
		return err
	}
	u.changes = append(u.changes, change{name: name, aside: path.Join(path.Dir(name), aside)})
	return nil
}

// forget removes what was replaced.
func (u *undo) forget() {
	var dir *os.File // of the last one: most lie in the same
	at := ""
	for _, c := range u.changes {
		if c.aside == "" {
			continue
		}
		if in := path.Dir(c.aside); dir == nil || in != at {
			if dir != nil {
				_ = dir.Close()
			}
			var err error
			if dir, err = u.root.OpenFile(in, os.O_RDONLY|unix.O_DIRECTORY, 0); err != nil {
				dir = nil
				continue
			}
			at = in
		}
		_ = unix.Unlinkat(int(dir.Fd()), path.Base(c.aside), 0)
	}
	if dir != nil {
		_ = dir.Close()
	}
}

// undo puts back what there was. What others have changed meanwhile stays.
func (u *undo) undo() {
	for _, c := range slices.Backward(u.changes) {
		switch {
		case c.aside != "":
			_ = u.root.Rename(c.aside, c.name)
		case c.dir != 0:
			_ = u.root.Mkdir(c.name, c.dir.Perm())
		default:
			_ = u.root.Remove(c.name)
		}
	}
}
