package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"io"
)

// The sizes of chunks, in bytes. Small ones find more that has not changed, large ones cost fewer files.
const (
	minChunk  = 64 << 10
	meanChunk = 1 << meanBits
	meanBits  = 18
	maxChunk  = 1 << 20
)

// cutter cuts a stream where its contents say: behind the window of bytes whose hash has some bits that are 0. What is
// inserted or removed moves only the cuts near it. The method is FastCDC (Xia and others, USENIX ATC 2016) with its
// gear hash, which every byte shifts by a bit, and its "normalized chunking" of level 2: most chunks are not far from
// the mean. To change any of it is to forget what has been cut.
type cutter struct {
	r    io.Reader
	err  error  // of r
	rest []byte // has been read and belongs to the next chunk
	gear [256]uint64
}

const (
	window = 64 // bytes; the hash has as many bits
	strict = (1<<(meanBits+2) - 1) << (window - meanBits - 2)
	loose  = (1<<(meanBits-2) - 1) << (window - meanBits + 2)
)

// readSize is how much of the stream is read at once, in bytes: half of it is copied from one chunk to the next.
const readSize = 64 << 10

func newCutter(r io.Reader) *cutter {
	c := &cutter{r: r, rest: make([]byte, 0, maxChunk)}
	for i := range c.gear {
		sum := sha256.Sum256([]byte{byte(i)})
		c.gear[i] = binary.LittleEndian.Uint64(sum[:])
	}
	return c
}

// next returns the next chunk, in buf, which has room for maxChunk, or io.EOF.
func (c *cutter) next(buf []byte) ([]byte, error) {
	buf = append(buf[:0], c.rest...)
	at := minChunk // up to here there is no cut
	for {
		end := c.find(buf, at, min(meanChunk, len(buf)), strict)
		if end == 0 {
			end = c.find(buf, max(at, meanChunk), len(buf), loose)
		}
		switch {
		case end > 0 || len(buf) == maxChunk:
			if end == 0 {
				end = maxChunk
			}
		case c.err == io.EOF && len(buf) > 0: // not an error that wraps it: the stream was cut off
			end = len(buf)
		case c.err != nil:
			return nil, c.err
		default:
			at = max(at, len(buf))
			var n int
			n, c.err = c.r.Read(buf[len(buf):min(len(buf)+readSize, maxChunk)])
			buf = buf[:len(buf)+n]
			continue
		}
		c.rest = append(c.rest[:0], buf[end:]...)
		return buf[:end], nil
	}
}

// stride is how far each of four hashes goes at once, in bytes. One hash waits for itself at every byte.
const stride = 4 << 10

// find returns the first place between two at which p may be cut, 0 if there is none.
func (c *cutter) find(p []byte, from, to int, mask uint64) int {
	for ; to-from >= 4*stride; from += 4 * stride {
		h0, h1, h2, h3 := c.hash(p, from), c.hash(p, from+stride), c.hash(p, from+2*stride), c.hash(p, from+3*stride)
		q0, q1, q2, q3 := p[from:][:stride], p[from+stride:][:stride], p[from+2*stride:][:stride], p[from+3*stride:][:stride]
		for i := range stride {
			if h0&mask == 0 || h1&mask == 0 || h2&mask == 0 || h3&mask == 0 {
				return c.findOne(p, from, from+4*stride, mask)
			}
			h0 = h0<<1 + c.gear[q0[i]]
			h1 = h1<<1 + c.gear[q1[i]]
			h2 = h2<<1 + c.gear[q2[i]]
			h3 = h3<<1 + c.gear[q3[i]]
		}
	}
	return c.findOne(p, from, to, mask)
}

// findOne is find with one hash.
func (c *cutter) findOne(p []byte, from, to int, mask uint64) int {
	if from >= to {
		return 0
	}
	h := c.hash(p, from)
	for i := from; i < to; i++ {
		if h&mask == 0 {
			return i
		}
		h = h<<1 + c.gear[p[i]]
	}
	return 0
}

// hash is that of the window which ends at a place.
func (c *cutter) hash(p []byte, at int) (h uint64) {
	for _, b := range p[at-window : at] {
		h = h<<1 + c.gear[b]
	}
	return h
}
