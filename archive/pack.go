package archive

import (
	"archive/tar"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"
)

// Format is that of an archive.
type Format string

// The formats, all of which are written and none of which is sought in.
const (
	Tar  Format = "tar"
	Zip  Format = "zip"  // with the sizes behind the files
	Gzip Format = "gzip" // regular files only, each a member with its name
	Raw  Format = "raw"  // one file, as it is
)

// Packing says how something is packed.
type Packing struct {
	Format Format
	Level  int // of the compression of Zip, 0 (none) to 9; Gzip's is fixed
	Limits Limits
	// Beneath is as in Selection.
	Beneath bool
}

// Errors of Check.
var (
	errFormat = errors.New("not a format of archives: use tar, zip, gzip or raw")
	errRaw    = errors.New("only one file can be sent as raw")
)

// Check reports whether files can be packed, as far as that can be seen beforehand.
func (p Packing) Check(dir string, names []string) error {
	switch p.Format {
	case Tar, Zip:
		return nil
	case Raw:
		if len(names) > 1 {
			return errRaw
		}
	case Gzip:
	default:
		return errFormat
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Lstat(path.Join(dir, name), &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			return notRegular(name)
		}
	}
	return nil
}

func notRegular(name string) error {
	return &fs.PathError{Op: "pack", Path: name, Err: errors.New("it is not a regular file, and this format holds no others")}
}

// Pack packs the files that Select has found below dir, in an order that depends on names only. What has vanished
// since is left out. Links are packed, not followed. Owners are not kept, times to the second. A file that grows
// meanwhile is packed as it was; one that shrinks is an error, where the format says sizes beforehand.
func Pack(w io.Writer, dir string, names []string, p Packing) (Summary, error) {
	out := newSink(w)
	in, err := openPlace(dir, p.Beneath)
	if err != nil {
		return Summary{}, err
	}
	defer in.close()
	k := &packer{in: in, budget: budget{Limits: p.Limits}, out: out}
	switch p.Format {
	case Tar:
		k.to = &tarPack{w: tar.NewWriter(out)}
	case Zip:
		k.to = newZipPack(out, p.Level)
	case Gzip:
		k.to = newGzipPack(out)
	case Raw:
		k.to = rawPack{out}
	default:
		return k.sum, errFormat
	}
	for _, name := range names {
		if err := k.entry(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return k.sum, err
		}
	}
	if err := k.to.close(); err != nil {
		return k.sum, err
	}
	return k.sum, out.Flush()
}

// output is an archive that is being written.
type output interface {
	directory(i *item) error
	symlink(i *item, target string) error
	// file begins a file, of which the contents follow. nil: there are none to come.
	file(i *item) (io.Writer, error)
	// sized reports whether the contents must be as many bytes as the item says, and go to the sink as they are.
	sized() bool
	close() error
}

// item is what is packed: its name in the archive, and what it was when it was looked at.
type item struct {
	name string
	unix.Stat_t
}

func (i *item) mode() fs.FileMode   { return fs.FileMode(i.Mode & 0o777) }
func (i *item) modified() time.Time { return time.Unix(i.Mtim.Sec, 0) } // fractions would take another two blocks a file

type packer struct {
	in     *place
	out    *sink
	to     output // to out
	budget budget
	sum    Summary
	buf    []byte
}

// entry packs one name. What has vanished since it was listed is fs.ErrNotExist.
func (p *packer) entry(name string) error {
	i := &item{name: name}
	if err := p.in.lstat(name, &i.Stat_t); err != nil {
		return &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	kind := i.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFREG, unix.S_IFLNK, unix.S_IFDIR:
	default:
		p.sum.Skipped++
		return nil
	}
	if name == "." {
		return nil
	}
	if err := p.budget.entry(); err != nil {
		return err
	}
	switch kind {
	case unix.S_IFDIR:
		return p.to.directory(i)
	case unix.S_IFLNK:
		target, err := os.Readlink(path.Join(p.in.dir, name))
		if err != nil {
			return err
		}
		p.sum.Files++
		return p.to.symlink(i, target)
	}
	return p.file(i)
}

func (p *packer) file(i *item) error {
	fd, err := p.in.open(i.name, unix.O_RDONLY|unix.O_NONBLOCK) // by now it may be a FIFO
	if err != nil {
		return &fs.PathError{Op: "pack", Path: i.name, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	w, err := p.to.file(i)
	if err != nil {
		return err
	}
	p.sum.Files++
	if w == nil {
		return nil
	}
	if err := p.budget.add(i.Size); err != nil {
		return err
	}
	if p.to.sized() {
		if err := p.out.copy(w, fd, i.Size); err != nil {
			return &fs.PathError{Op: "pack", Path: i.name, Err: err}
		}
		p.sum.Bytes += i.Size
		return nil
	}
	if p.buf == nil {
		p.buf = make([]byte, copySize)
	}
	for left := i.Size; left > 0; {
		n, err := unix.Read(fd, p.buf[:min(left, int64(len(p.buf)))])
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			return nil
		}
		if err != nil {
			return &fs.PathError{Op: "pack", Path: i.name, Err: err}
		}
		if _, err := w.Write(p.buf[:n]); err != nil {
			return err
		}
		p.sum.Bytes += int64(n)
		left -= int64(n)
	}
	return nil
}

// tarPack writes a tar.
type tarPack struct {
	w     *tar.Writer
	links map[inode]string // of files with several names, the first
}

type inode struct{ dev, ino uint64 }

func (t *tarPack) header(i *item, kind byte) *tar.Header {
	return &tar.Header{Name: i.name, Typeflag: kind, Mode: int64(i.mode()), ModTime: i.modified(), Format: tar.FormatUnknown}
}

func (t *tarPack) directory(i *item) error {
	h := t.header(i, tar.TypeDir)
	h.Name += "/"
	return t.w.WriteHeader(h)
}

func (t *tarPack) symlink(i *item, target string) error {
	h := t.header(i, tar.TypeSymlink)
	h.Linkname = target
	return t.w.WriteHeader(h)
}

func (t *tarPack) file(i *item) (io.Writer, error) {
	if i.Nlink > 1 {
		id := inode{i.Dev, i.Ino}
		if first, ok := t.links[id]; ok {
			h := t.header(i, tar.TypeLink)
			h.Linkname = first
			return nil, t.w.WriteHeader(h)
		}
		if t.links == nil {
			t.links = map[inode]string{}
		}
		t.links[id] = i.name
	}
	h := t.header(i, tar.TypeReg)
	h.Size = i.Size
	return t.w, t.w.WriteHeader(h)
}

func (t *tarPack) sized() bool  { return true }
func (t *tarPack) close() error { return t.w.Close() }
