package archive

import (
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"
)

// gzipPack writes each file as a member of its own, whose header has its name and, as the comment, its path
// (gitlab-runner, helpers/archives/gzip_create.go). GitLab reads reports so.
type gzipPack struct {
	out io.Writer
	w   *gzip.Writer // nil before the first file
}

func newGzipPack(w io.Writer) *gzipPack { return &gzipPack{out: w} }

func (g *gzipPack) directory(i *item) error         { return notRegular(i.name) }
func (g *gzipPack) symlink(i *item, _ string) error { return notRegular(i.name) }

func (g *gzipPack) file(i *item) (io.Writer, error) {
	if err := g.close(); err != nil {
		return nil, err
	}
	if g.w == nil {
		g.w = gzip.NewWriter(g.out)
	} else {
		g.w.Reset(g.out)
	}
	g.w.Name, g.w.Comment, g.w.ModTime = latin(path.Base(i.name)), latin(i.name), i.modified()
	return g.w, nil
}

func (g *gzipPack) sized() bool { return false }

func (g *gzipPack) close() error {
	if g.w == nil {
		return nil
	}
	return g.w.Close()
}

// latin is a text for a gzip header, which has Latin-1 only: any other is escaped as in a URL, behind "e:".
func latin(text string) string {
	const plain = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~$&+=:@"
	if !strings.ContainsFunc(text, func(r rune) bool { return r >= 0x80 || r == '%' }) {
		return text
	}
	out := []byte("e:")
	for _, b := range []byte(text) {
		if strings.IndexByte(plain, b) >= 0 {
			out = append(out, b)
		} else {
			out = append(out, '%', "0123456789ABCDEF"[b>>4], "0123456789ABCDEF"[b&15])
		}
	}
	return string(out)
}

// rawPack writes one file and nothing else.
type rawPack struct{ w io.Writer }

func (r rawPack) directory(i *item) error         { return notRegular(i.name) }
func (r rawPack) symlink(i *item, _ string) error { return notRegular(i.name) }
func (r rawPack) file(*item) (io.Writer, error)   { return r.w, nil }
func (r rawPack) sized() bool                     { return false }
func (r rawPack) close() error                    { return nil }
