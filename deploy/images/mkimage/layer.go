package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// layerWriter writes one layer, a gzipped tar, to a file. What it writes depends on names, contents,
// modes, owners and extended attributes alone: entries come in the order of the walk, which is that of
// their names, and all have one time.
type layerWriter struct {
	file       *os.File
	compressed hash.Hash
	content    hash.Hash
	zip        *gzip.Writer
	tar        *tar.Writer
	time       time.Time
	made       map[string]bool      // directories written
	links      map[[2]uint64]string // device and inode to the name written first
}

// newLayer writes into dir, so that finish can rename.
func newLayer(dir string, t time.Time) (*layerWriter, error) {
	f, err := os.CreateTemp(dir, ".layer-*")
	if err != nil {
		return nil, err
	}
	w := &layerWriter{
		file: f, compressed: sha256.New(), content: sha256.New(), time: t,
		made: make(map[string]bool), links: make(map[[2]uint64]string),
	}
	w.zip, err = gzip.NewWriterLevel(io.MultiWriter(f, w.compressed), gzip.BestSpeed)
	if err != nil {
		return nil, errors.Join(err, w.abort())
	}
	w.tar = tar.NewWriter(io.MultiWriter(w.zip, w.content))
	return w, nil
}

func (w *layerWriter) abort() error {
	return errors.Join(w.file.Close(), os.Remove(w.file.Name()))
}

// finish ends the layer and names its file by its digest in dir.
func (w *layerWriter) finish(dir string) (*layer, error) {
	if err := errors.Join(w.tar.Close(), w.zip.Close()); err != nil {
		return nil, errors.Join(err, w.abort())
	}
	info, err := w.file.Stat()
	if err != nil {
		return nil, errors.Join(err, w.abort())
	}
	l := &layer{size: info.Size(), digest: sum(w.compressed), diffID: sum(w.content)}
	l.file = filepath.Join(dir, l.digest.Hex)
	if err := errors.Join(w.file.Chmod(0o644), w.file.Close(), os.Rename(w.file.Name(), l.file)); err != nil {
		return nil, err
	}
	return l, nil
}

func sum(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: fmt.Sprintf("%x", h.Sum(nil))}
}

// addTree adds what is under dir at dest, with its owners when keepOwners, else as root's. Overlay
// whiteouts in it become those of the image specification (layer.md, "Whiteouts").
func (w *layerWriter) addTree(dir, dest string, exclude []string, keepOwners bool) error {
	return filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		for _, pattern := range exclude {
			if hit, err := path.Match(pattern, rel); err != nil {
				return err
			} else if hit && d.IsDir() {
				return filepath.SkipDir
			} else if hit {
				return nil
			}
		}
		if rel == "." {
			return w.parents(dest)
		}
		return w.add(file, path.Join(dest, rel), keepOwners)
	})
}

// parents adds the directories above and including dest, as a COPY makes them.
func (w *layerWriter) parents(dest string) error {
	dest = strings.Trim(path.Clean(dest), "/")
	if dest == "" || dest == "." || w.made[dest] {
		return nil
	}
	if err := w.parents(path.Dir(dest)); err != nil {
		return err
	}
	w.made[dest] = true
	return w.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeDir, Name: dest + "/", Mode: 0o755, ModTime: w.time, Format: tar.FormatPAX,
	})
}

// add adds one file, directory or link under the name dest.
func (w *layerWriter) add(file, dest string, keepOwners bool) error {
	info, err := os.Lstat(file)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("%s: no inode behind it", file)
	}
	name := strings.TrimPrefix(dest, "/")
	if info.Mode()&fs.ModeCharDevice != 0 && st.Rdev == 0 {
		return w.empty(path.Join(path.Dir(name), ".wh."+path.Base(name)))
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(file); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.ModTime, h.AccessTime, h.ChangeTime = name, w.time, time.Time{}, time.Time{}
	h.Uname, h.Gname, h.Format = "", "", tar.FormatPAX
	if !keepOwners {
		h.Uid, h.Gid = 0, 0
	}
	if info.IsDir() {
		h.Name += "/"
		w.made[name] = true
	}
	if err := w.attributes(h, file, info); err != nil {
		return err
	}
	if info.Mode().IsRegular() && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := w.links[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
		} else {
			w.links[key] = name
		}
	}
	if err := w.tar.WriteHeader(h); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if info.IsDir() && opaque(file) {
		return w.empty(path.Join(name, ".wh..wh..opq"))
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w.tar, f)
	return err
}

func (w *layerWriter) empty(name string) error {
	return w.tar.WriteHeader(&tar.Header{
		Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: w.time, Format: tar.FormatPAX,
	})
}

// attributes records file capabilities, the one kind of extended attribute that Debian's packages have.
func (w *layerWriter) attributes(h *tar.Header, file string, info fs.FileInfo) error {
	if !info.Mode().IsRegular() {
		return nil
	}
	const capability = "security.capability"
	value := make([]byte, 64)
	n, err := unix.Lgetxattr(file, capability, value)
	if errors.Is(err, unix.ENODATA) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s of %s: %w", capability, file, err)
	}
	h.PAXRecords = map[string]string{"SCHILY.xattr." + capability: string(value[:n])}
	return nil
}

// opaque reports whether an overlay hides what is below this directory.
func opaque(dir string) bool {
	var value [1]byte
	n, err := unix.Lgetxattr(dir, "trusted.overlay.opaque", value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// layer is a finished layer, a v1.Layer.
type layer struct {
	file           string
	size           int64
	digest, diffID v1.Hash
}

func (l *layer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layer) Size() (int64, error)                { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }
func (l *layer) Compressed() (io.ReadCloser, error)  { return os.Open(l.file) }
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	f, err := os.Open(l.file)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{z, f}, nil
}
