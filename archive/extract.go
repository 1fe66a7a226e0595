package archive

import (
	"archive/tar"
	"bufio"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Extract writes a tar stream into a directory and nowhere else, whatever it says: the root follows no link out
// of itself, and files are made, never opened. What is there already is replaced, but for directories that are
// not empty. Owners, set-id bits, devices and FIFOs are not taken over. Links may point to anywhere, as those of
// a Python environment do: nothing is written through them.
//
// With undo, what was made is removed again when Extract fails, and what it had replaced is put back.
func Extract(root *os.Root, r io.Reader, limits Limits, undo bool) (Summary, error) {
	stream := &counter{r: r}
	t := tar.NewReader(bufio.NewReaderSize(stream, readSize))
	x := newExtractor(root, limits, undo)
	x.most = func() int64 { return stream.n }
	return x.extract(func() (*tar.Header, io.Reader, error) {
		h, err := t.Next()
		return h, t, err
	})
}

// copySize is that of the buffer between streams and files, in bytes.
const copySize = 128 << 10

// readSize is how much of the stream is read at once, in bytes. The tar package asks for 512 where a header is: from
// a full pipe that would wake the writer for a page at a time.
const readSize = 256 << 10

// extractor extracts entries, in the form that a tar has them.
type extractor struct {
	root   *os.Root
	most   func() int64 // how many bytes all files so far may have, by the archive's own size
	budget budget
	sum    Summary
	buf    []byte
	undo   *undo // nil: nothing is undone
	dirs   []*tar.Header

	// at is the directory of the last file, held open: most files lie in that of the one before.
	at     *os.File
	atName string
}

func newExtractor(root *os.Root, limits Limits, undoes bool) *extractor {
	x := &extractor{root: root, budget: budget{Limits: limits}, buf: make([]byte, copySize)}
	if undoes {
		x.undo = newUndo(root)
	}
	return x
}

// extract extracts what next returns until io.EOF.
func (x *extractor) extract(next func() (*tar.Header, io.Reader, error)) (Summary, error) {
	err := x.run(next)
	x.leave()
	switch {
	case x.undo == nil:
	case err != nil:
		x.undo.undo()
	default:
		x.undo.forget()
	}
	return x.sum, err
}

func (x *extractor) run(next func() (*tar.Header, io.Reader, error)) error {
	for {
		h, r, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := x.check(h); err != nil {
			return named(h.Name, err)
		}
		if h.Name == "." {
			continue
		}
		if err := x.entry(h, r); err != nil {
			return named(h.Name, err)
		}
	}
	x.leave()
	for _, h := range slices.Backward(x.dirs) { // only now, or nothing could be written into them
		// A later entry may have replaced it by a link, which Chmod would follow within the root.
		if fi, err := x.root.Lstat(h.Name); err != nil || !fi.IsDir() {
			continue
		}
		if err := errors.Join(x.root.Chmod(h.Name, mode(h)|0o700), x.root.Chtimes(h.Name, h.ModTime, h.ModTime)); err != nil {
			return named(h.Name, err)
		}
	}
	return nil
}

func named(name string, err error) error {
	if len(name) > 200 {
		name = name[:200] + "..."
	}
	return &fs.PathError{Op: "extract", Path: name, Err: err}
}

// ErrGit is wrapped by the error of an archive with what Limits.NoGit refuses.
var ErrGit = errors.New("the archive leads into a .git directory, whose hooks git would run")

var (
	errName   = errors.New("the archive has a name that leads out of the directory, or is none")
	errDepth  = errors.New("the archive has directories that are more than 256 deep")
	errSparse = errors.New("the archive holds a file that is larger than the archive")
)

// check refuses an entry before anything is done about it, and makes its name a clean one.
func (x *extractor) check(h *tar.Header) error {
	if h.Name == "" || len(h.Name) > maxName || len(h.Linkname) > maxName || strings.ContainsRune(h.Name, 0) || strings.ContainsRune(h.Linkname, 0) {
		return errName
	}
	if h.Name = path.Clean(h.Name); h.Name != "." && !fs.ValidPath(h.Name) {
		return errName
	}
	if strings.Count(h.Name, "/") >= maxDepth {
		return errDepth
	}
	if x.budget.NoGit && (inGit(h.Name) || inGit(h.Linkname)) {
		return ErrGit
	}
	x.sum.Git = x.sum.Git || h.Name == ".git" || strings.HasPrefix(h.Name, ".git/")
	return x.budget.entry()
}

// inGit reports whether a path has an element .git, in whatever case: some file systems see no difference.
func inGit(name string) bool {
	for element := range strings.SplitSeq(name, "/") {
		if strings.EqualFold(element, ".git") {
			return true
		}
	}
	return false
}

func mode(h *tar.Header) fs.FileMode { return fs.FileMode(h.Mode) & fs.ModePerm }

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	switch h.Typeflag {
	case tar.TypeReg:
		return x.file(h, r)
	case tar.TypeDir:
		x.leave()
		if err := x.mkdir(h.Name); err != nil {
			return err
		}
		x.dirs = append(x.dirs, h)
		return nil
	case tar.TypeSymlink, tar.TypeLink:
		x.leave()
		if err := x.clear(h.Name); err != nil {
			return err
		}
		var err error
		if h.Typeflag == tar.TypeSymlink {
			err = x.root.Symlink(h.Linkname, h.Name)
		} else if target := path.Clean(h.Linkname); fs.ValidPath(target) {
			err = x.root.Link(target, h.Name)
		} else {
			err = errName
		}
		if err == nil {
			x.sum.Files++
			x.keep(h.Name)
		}
		return err
	}
	x.sum.Skipped++ // devices and the like
	return nil
}

// clear makes room for what is not a directory.
func (x *extractor) clear(name string) error {
	if err := x.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	if err := x.displace(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// displace removes what is there, for what takes its place.
func (x *extractor) displace(name string) error {
	if x.undo == nil {
		return x.root.Remove(name)
	}
	return x.undo.displace(name)
}

// mkdir makes a directory in the place of what may be there and is none.
func (x *extractor) mkdir(name string) error {
	if fi, err := x.root.Lstat(name); err == nil && !fi.IsDir() {
		if err := x.displace(name); err != nil {
			return err
		}
	}
	return x.mkdirAll(name)
}

// mkdirAll makes a directory and its parents, unless they are there, or links to such as are within the root.
func (x *extractor) mkdirAll(name string) error {
	if name == "." {
		return nil
	}
	fi, err := x.root.Stat(name)
	if err == nil && !fi.IsDir() {
		err = unix.ENOTDIR
	}
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := x.mkdirAll(path.Dir(name)); err != nil {
		return err
	}
	if err := x.root.Mkdir(name, 0o755); err != nil {
		return err
	}
	x.keep(name)
	return nil
}

// keep notes that something was made.
func (x *extractor) keep(name string) {
	if x.undo != nil {
		x.undo.made(name)
	}
}

func (x *extractor) leave() {
	if x.at != nil {
		_ = x.at.Close()
		x.at = nil
	}
}

// enter opens a directory, through the root, to make files in it.
func (x *extractor) enter(name string) error {
	if x.at != nil && x.atName == name {
		return nil
	}
	x.leave()
	if err := x.mkdirAll(name); err != nil {
		return err
	}
	dir, err := x.root.Open(name)
	if err == nil {
		x.at, x.atName = dir, name
	}
	return err
}

// file makes a regular file. Its directory is open and its own name has no slash, so that the kernel can be asked
// directly, which takes a third of what it takes by the root.
func (x *extractor) file(h *tar.Header, r io.Reader) error {
	if err := x.enter(path.Dir(h.Name)); err != nil {
		return err
	}
	at, base := int(x.at.Fd()), path.Base(h.Name)
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(at, base, flags, 0o600)
	if err == unix.EEXIST {
		if x.undo != nil {
			err = x.undo.displaceAt(x.at, base, h.Name)
		} else {
			err = x.root.Remove(h.Name)
		}
		if err != nil {
			return err
		}
		fd, err = unix.Openat(at, base, flags, 0o600)
	}
	if err != nil {
		return err
	}
	x.keep(h.Name)
	x.sum.Files++
	err = x.fill(fd, r)
	if err == nil {
		err = unix.Fchmod(fd, uint32(mode(h)))
	}
	if err == nil {
		err = touch(fd, h.ModTime)
	}
	if closed := unix.Close(fd); err == nil {
		err = closed
	}
	return err
}

func (x *extractor) fill(fd int, r io.Reader) error {
	for {
		n, err := r.Read(x.buf)
		if n > 0 {
			if err := x.budget.add(int64(n)); err != nil {
				return err
			}
			if x.sum.Bytes += int64(n); x.sum.Bytes > x.most() {
				return errSparse
			}
			for p := x.buf[:n]; len(p) > 0; {
				m, err := unix.Write(fd, p)
				if err != nil && err != unix.EINTR {
					return err
				}
				p = p[max(m, 0):]
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// touch sets a file's time of change; times before 1970 and after 9999 are not worth an error.
func touch(fd int, at time.Time) error {
	if at.Unix() < 0 || at.Year() > 9999 {
		return nil
	}
	ts := unix.NsecToTimespec(at.UnixNano())
	return futimens(fd, [2]unix.Timespec{ts, ts})
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
