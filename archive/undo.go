package archive

import (
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"slices"
	"strconv"
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

// end puts back what there was, or forgets it. What others have changed meanwhile stays.
func (u *undo) end(failed bool) {
	for _, c := range slices.Backward(u.changes) {
		switch {
		case !failed:
			if c.aside != "" {
				_ = u.root.Remove(c.aside)
			}
		case c.aside != "":
			_ = u.root.Rename(c.aside, c.name)
		case c.dir != 0:
			_ = u.root.Mkdir(c.name, c.dir.Perm())
		default:
			_ = u.root.Remove(c.name)
		}
	}
}
