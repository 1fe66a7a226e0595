package cache

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
)

// cutAll returns where a stream is cut.
func cutAll(t *testing.T, r io.Reader) (pieces [][]byte) {
	t.Helper()
	c := newCutter(r)
	for {
		p, err := c.next(make([]byte, 0, maxChunk))
		if err == io.EOF {
			return pieces
		}
		if err != nil {
			t.Fatal(err)
		}
		pieces = append(pieces, p)
	}
}

// TestCut holds that the pieces are the stream, that their sizes are within bounds and near the mean, and that how the
// stream arrives does not matter.
func TestCut(t *testing.T) {
	content := data(3, 40<<20)
	copy(content[10<<20:], make([]byte, 5<<20))
	want := cutAll(t, bytes.NewReader(content))
	if got := bytes.Join(want, nil); !bytes.Equal(got, content) {
		t.Fatalf("%d bytes of %d", len(got), len(content))
	}
	for i, p := range want {
		if len(p) > maxChunk || len(p) < minChunk && i < len(want)-1 {
			t.Errorf("piece %d has %d bytes", i, len(p))
		}
	}
	if mean := len(content) / len(want); mean < meanChunk/2 || mean > 2*meanChunk {
		t.Errorf("%d bytes on average", mean)
	}
	for name, r := range map[string]io.Reader{
		"halves": iotest.HalfReader(bytes.NewReader(content)), "error with the last": iotest.DataErrReader(bytes.NewReader(content)),
	} {
		if got := cutAll(t, r); fmt.Sprint(lengths(got)) != fmt.Sprint(lengths(want)) {
			t.Errorf("%s: cut elsewhere", name)
		}
	}
}

func lengths(pieces [][]byte) (all []int) {
	for _, p := range pieces {
		all = append(all, len(p))
	}
	return all
}

// TestFind holds that four hashes at once find what one does.
func TestFind(t *testing.T) {
	content, c := data(4, 1<<20), newCutter(nil)
	for _, mask := range []uint64{strict, loose, 0x3ff << 54, 1 << 63} {
		for from := window; from < len(content)-5*stride; from += 4999 {
			to := min(from+17*stride+from%333, len(content))
			if got, want := c.find(content, from, to, mask), c.findOne(content, from, to, mask); got != want {
				t.Fatalf("mask %x, from %d to %d: %d, not %d", mask, from, to, got, want)
			}
		}
	}
}

// TestCutOffStream holds that only the end of the stream is one, not an error that looks like it.
func TestCutOffStream(t *testing.T) {
	c := newCutter(io.MultiReader(bytes.NewReader(data(5, 1000)), iotest.ErrReader(fmt.Errorf("lost: %w", io.EOF))))
	if p, err := c.next(make([]byte, 0, maxChunk)); err == nil || err == io.EOF || !errors.Is(err, io.EOF) {
		t.Errorf("%d bytes, %v", len(p), err)
	}
}

func BenchmarkCut(b *testing.B) {
	content := data(1, 64<<20)
	buf := make([]byte, 0, maxChunk)
	b.SetBytes(int64(len(content)))
	for b.Loop() {
		c := newCutter(bytes.NewReader(content))
		for {
			if _, err := c.next(buf); err != nil {
				break
			}
		}
	}
}
