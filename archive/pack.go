package archive

import (
	"archive/tar"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"
)

// Pack writes a tar stream of what patterns match below dir, directories with all that is in them, in an order
// that depends on names only. A pattern is a path relative to dir or below it, and may have *, **, ?, [a-z] and
// {a,b}; one that matches nothing is nothing. Links are packed, not followed. Owners are not kept, times to the
// second. A file that grows meanwhile is packed as it was; one that shrinks is an error.
func Pack(w io.Writer, dir string, patterns []string, limits Limits) (Summary, error) {
	out := newSink(w)
	p := &packer{dir: dir, budget: budget{Limits: limits}, out: out, tar: tar.NewWriter(out)}
	if len(patterns) > 1 {
		p.seen = map[string]bool{}
	}
	for _, pattern := range patterns {
		if err := p.pattern(pattern); err != nil {
			return p.sum, err
		}
	}
	if err := p.tar.Close(); err != nil {
		return p.sum, err
	}
	return p.sum, out.Flush()
}

type packer struct {
	dir    string
	out    *sink
	tar    *tar.Writer // to out
	budget budget
	sum    Summary
	seen   map[string]bool // when several patterns may match the same
	links  map[inode]string
}

type inode struct{ dev, ino uint64 }

// Within makes a pattern relative to dir, or says that it leads out of it.
func Within(dir, pattern string) (string, error) {
	rel := path.Clean(pattern)
	if path.IsAbs(rel) {
		in, ok := strings.CutPrefix(rel, path.Clean(dir))
		if !ok || in != "" && in[0] != '/' && dir != "/" {
			return "", outside(pattern)
		}
		if rel = strings.TrimPrefix(in, "/"); rel == "" {
			rel = "."
		}
	}
	if pattern == "" || rel == ".." || strings.HasPrefix(rel, "../") || strings.ContainsRune(rel, 0) {
		return "", outside(pattern)
	}
	return rel, nil
}

func outside(pattern string) error {
	return &fs.PathError{Op: "pack", Path: pattern, Err: errors.New("the path is not within the working directory")}
}

func (p *packer) pattern(pattern string) error {
	rel, err := Within(p.dir, pattern)
	if err != nil {
		return err
	}
	if !strings.ContainsAny(rel, `*?[{\`) {
		err := p.tree(rel)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	if !doublestar.ValidatePattern(rel) {
		return &fs.PathError{Op: "pack", Path: pattern, Err: doublestar.ErrBadPattern}
	}
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	var matches []string
	err = doublestar.GlobWalk(os.DirFS(p.dir), rel, func(name string, d fs.DirEntry) error {
		matches = append(matches, name)
		if p.budget.Entries > 0 && int64(len(matches)) > p.budget.Entries {
			return (&budget{Limits: p.budget.Limits, entries: p.budget.Entries}).entry()
		}
		return nil
	}, doublestar.WithNoFollow())
	if err != nil {
		return err
	}
	slices.Sort(matches)
	for _, name := range matches {
		if err := p.tree(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// tree packs one name and all below it. What has vanished since it was listed is fs.ErrNotExist.
func (p *packer) tree(name string) error {
	if p.seen != nil {
		if p.seen[name] {
			return nil
		}
		p.seen[name] = true
	}
	full := path.Join(p.dir, name)
	var st unix.Stat_t
	if err := unix.Lstat(full, &st); err != nil {
		return &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o777), Format: tar.FormatUnknown,
		ModTime: time.Unix(st.Mtim.Sec, 0), // fractions would take another two blocks a file
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return p.file(h, full, &st)
	case unix.S_IFLNK:
		target, err := os.Readlink(full)
		if err != nil {
			return err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
		p.sum.Files++
		return p.header(h)
	case unix.S_IFDIR:
		return p.directory(h, full)
	}
	p.sum.Skipped++
	return nil
}

func (p *packer) header(h *tar.Header) error {
	if err := p.budget.entry(); err != nil {
		return err
	}
	return p.tar.WriteHeader(h)
}

func (p *packer) directory(h *tar.Header, full string) error {
	if h.Name != "." {
		h.Typeflag, h.Name = tar.TypeDir, h.Name+"/"
		if err := p.header(h); err != nil {
			return err
		}
	}
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	entries, err := f.ReadDir(-1)
	_ = f.Close()
	if err != nil {
		return err
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return cmp.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := p.tree(path.Join(h.Name, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *packer) file(h *tar.Header, full string, st *unix.Stat_t) error {
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := p.links[id]; ok {
			h.Typeflag, h.Linkname = tar.TypeLink, first
			p.sum.Files++
			return p.header(h)
		}
		if p.links == nil {
			p.links = map[inode]string{}
		}
		p.links[id] = h.Name
	}
	// O_NONBLOCK: by now it may be a FIFO.
	fd, err := unix.Open(full, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	h.Typeflag, h.Size = tar.TypeReg, st.Size
	if err := p.budget.add(h.Size); err != nil {
		return err
	}
	if err := p.header(h); err != nil {
		return err
	}
	p.sum.Files++
	p.sum.Bytes += h.Size
	if err := p.out.copy(p.tar, fd, h.Size); err != nil {
		return &fs.PathError{Op: "pack", Path: h.Name, Err: err}
	}
	return nil
}
