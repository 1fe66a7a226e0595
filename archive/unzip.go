package archive

import (
	"archive/tar"
	"archive/zip"
	"cmp"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
)

const (
	// zipRatio is the most that a byte of deflate becomes (RFC 1951: a code of two bits for 258 bytes, of one for the
	// distance); more is in overlapping entries only.
	zipRatio = 1032
	// zipEntry is how many bytes of a zip's directory an entry may take on average, and zipSlack what is read besides:
	// the directory is held in memory.
	zipEntry, zipSlack = 512, 1 << 20
)

// Errors of zip archives.
var (
	errOverlap   = errors.New("entries of the archive overlap")
	errEncrypted = errors.New("the archive is encrypted")
	errDirectory = tooLarge{"the archive's directory is too large"}
)

// ExtractZip extracts a zip of a size as Extract does a tar. Where names are there twice, the last one stays. What the
// archive says of sizes is not believed: Limits.Bytes bounds what is written.
func ExtractZip(root *os.Root, r io.ReaderAt, size int64, limits Limits, undo bool) (Summary, error) {
	directory := &bounded{r: r, left: math.MaxInt64}
	if limits.Entries > 0 {
		directory.left = min(limits.Entries, math.MaxInt64/zipEntry/2)*zipEntry + zipSlack
	}
	z, err := zip.NewReader(directory, size)
	if err != nil {
		return Summary{}, err
	}
	directory.left = math.MaxInt64
	if err := disjoint(z.File, size); err != nil {
		return Summary{}, err
	}
	x := newExtractor(root, limits, undo)
	x.most = func() int64 { return min(size, math.MaxInt64/zipRatio) * zipRatio }
	var open io.ReadCloser
	left := z.File
	sum, err := x.extract(func() (_ *tar.Header, _ io.Reader, err error) {
		if open != nil {
			_ = open.Close()
			open = nil
		}
		if len(left) == 0 {
			return nil, nil, io.EOF
		}
		f := left[0]
		left = left[1:]
		h, err := zipHeader(f)
		if err == nil && h.Typeflag == tar.TypeReg {
			open, err = f.Open()
		}
		if err != nil {
			return nil, nil, named(f.Name, err)
		}
		return h, open, nil
	})
	if open != nil {
		_ = open.Close()
	}
	return sum, err
}

// zipHeader is an entry as a tar has it.
func zipHeader(f *zip.File) (*tar.Header, error) {
	if f.Flags&1 != 0 {
		return nil, errEncrypted
	}
	m := f.Mode()
	h := &tar.Header{Name: f.Name, Mode: int64(m.Perm()), ModTime: f.Modified}
	switch m.Type() {
	case 0:
		h.Typeflag = tar.TypeReg
	case fs.ModeDir:
		h.Typeflag = tar.TypeDir
	case fs.ModeSymlink:
		h.Typeflag = tar.TypeSymlink
		r, err := f.Open()
		if err != nil {
			return nil, err
		}
		defer func() { _ = r.Close() }()
		target, err := io.ReadAll(io.LimitReader(r, maxName+1))
		if err != nil {
			return nil, err
		}
		h.Linkname = string(target)
	default:
		h.Typeflag = tar.TypeFifo // or another that is skipped
	}
	return h, nil
}

// disjoint reports whether no two entries share bytes of the archive.
func disjoint(files []*zip.File, size int64) error {
	type span struct{ from, to int64 }
	var spans []span
	for _, f := range files {
		if f.CompressedSize64 == 0 {
			continue
		}
		from, err := f.DataOffset()
		if err != nil {
			return named(f.Name, err)
		}
		if from < 0 || from > size || f.CompressedSize64 > uint64(size-from) {
			return named(f.Name, io.ErrUnexpectedEOF)
		}
		spans = append(spans, span{from, from + int64(f.CompressedSize64)})
	}
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	for i, s := range spans {
		if i > 0 && s.from < spans[i-1].to {
			return errOverlap
		}
	}
	return nil
}

// bounded reads a number of bytes at most.
type bounded struct {
	r    io.ReaderAt
	left int64
}

func (b *bounded) ReadAt(p []byte, at int64) (int, error) {
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, errDirectory
	}
	return b.r.ReadAt(p, at)
}
