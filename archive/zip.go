package archive

import (
	"archive/zip"
	"io"
	"io/fs"

	"github.com/klauspost/compress/flate"
)

// zipPack writes a zip as gitlab-runner does (helpers/archives/zip_create.go): a link is a file whose contents are its
// target, modes are those of Unix.
type zipPack struct {
	w      *zip.Writer
	method uint16
}

func newZipPack(w io.Writer, level int) *zipPack {
	z := &zipPack{w: zip.NewWriter(w), method: zip.Deflate}
	if level == 0 {
		z.method = zip.Store
	}
	var deflate *flate.Writer // one for all files: it has a megabyte of tables
	z.w.RegisterCompressor(zip.Deflate, func(w io.Writer) (_ io.WriteCloser, err error) {
		if deflate == nil {
			deflate, err = flate.NewWriter(w, level)
			return deflate, err
		}
		deflate.Reset(w)
		return deflate, nil
	})
	return z
}

func (z *zipPack) header(i *item, kind fs.FileMode, method uint16) *zip.FileHeader {
	h := &zip.FileHeader{Name: i.name, Method: method, Modified: i.modified()}
	h.SetMode(kind | i.mode())
	return h
}

func (z *zipPack) directory(i *item) error {
	h := z.header(i, fs.ModeDir, zip.Store)
	h.Name += "/"
	_, err := z.w.CreateHeader(h)
	return err
}

func (z *zipPack) symlink(i *item, target string) error {
	w, err := z.w.CreateHeader(z.header(i, fs.ModeSymlink, zip.Store))
	if err == nil {
		_, err = io.WriteString(w, target)
	}
	return err
}

func (z *zipPack) file(i *item) (io.Writer, error) {
	return z.w.CreateHeader(z.header(i, 0, z.method))
}

func (z *zipPack) sized() bool  { return false }
func (z *zipPack) close() error { return z.w.Close() }
