package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"
)

type digest [sha256.Size]byte

func (d digest) String() string { return hex.EncodeToString(d[:]) }

// MarshalText and UnmarshalText make it hexadecimal in JSON.
func (d digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (d *digest) UnmarshalText(text []byte) error {
	if len(text) != 2*len(d) {
		return fmt.Errorf("a digest of %d characters", len(text))
	}
	_, err := hex.Decode(d[:], text)
	return err
}

// chunk names one chunk of a project.
type chunk struct {
	project string
	digest  digest
}

func (c chunk) path() string {
	name := c.digest.String()
	return c.project + chunksDir + name[:2] + "/" + name
}

// ErrDamaged is wrapped by the error of an entry that does not have the bytes that were saved.
var ErrDamaged = errors.New("the entry is damaged")

// put stores a chunk unless it is there, and returns how many bytes that took, 0 if it was. packed is a buffer.
func (s *Store) put(ctx context.Context, c chunk, plain []byte, packed *[]byte) (written int, err error) {
	there, err := s.bucket.Exists(ctx, c.path())
	if err != nil || there {
		return 0, err
	}
	*packed = s.enc.EncodeAll(plain, (*packed)[:0])
	return len(*packed), s.writeObject(ctx, c.path(), *packed)
}

// writeObject writes a whole object or none. Bucket.WriteAll would compute two MD5 sums of it on the way.
func (s *Store) writeObject(ctx context.Context, path string, content []byte) error {
	ctx, cancel := context.WithCancel(ctx) // before Close, it makes nothing of it
	defer cancel()
	w, err := s.bucket.NewWriter(ctx, path, &blob.WriterOptions{ContentType: "application/octet-stream"})
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		cancel()
		return errors.Join(err, w.Close())
	}
	return w.Close()
}

// getTries is how often a chunk is asked for that the bucket does not give in full. What fails before its first
// byte, the bucket's client has tried again already.
const getTries = 3

// slack is what the decoder wants of a buffer beyond the content, in bytes, to copy without looking for the end.
const slack = 64

// get reads a chunk of a size into b.plain, which has room for it and the slack.
func (s *Store) get(ctx context.Context, c chunk, size int, b *buffers) (err error) {
	for range getTries {
		err = s.readChunk(ctx, c, b)
		if err == nil || errors.Is(err, ErrDamaged) || ctx.Err() != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	plain, err := s.dec.DecodeAll(b.packed, b.plain[:0:size+slack])
	if err != nil || len(plain) != size || sha256.Sum256(plain) != c.digest {
		return fmt.Errorf("%w: chunk %s has other bytes", ErrDamaged, c.digest)
	}
	b.plain = b.plain[:size]
	return nil
}

// buffers are those of one chunk.
type buffers struct{ plain, packed []byte }

// readChunk reads a chunk as it is stored into b.packed.
func (s *Store) readChunk(ctx context.Context, c chunk, b *buffers) error {
	r, err := s.bucket.NewReader(ctx, c.path(), nil)
	if gcerrors.Code(err) == gcerrors.NotFound {
		return fmt.Errorf("%w: chunk %s is missing", ErrDamaged, c.digest)
	}
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if r.Size() < 0 || r.Size() > maxChunk+maxChunk/8+1024 {
		return fmt.Errorf("%w: chunk %s has %d bytes", ErrDamaged, c.digest, r.Size())
	}
	b.packed = slices.Grow(b.packed[:0], int(r.Size()))[:r.Size()]
	_, err = io.ReadFull(r, b.packed)
	return err
}

// pins are the chunks that saves and restores under way need, and that are not collected.
type pins struct {
	mu       sync.Mutex
	free     sync.Cond
	count    map[chunk]int
	deleting map[chunk]bool
	// While a collection runs, what is let go stays pinned until its end: it was not named when the collection
	// looked, and is by now.
	collecting bool
	released   map[chunk]bool
}

func (p *pins) init() {
	p.free.L = &p.mu
	p.count, p.deleting, p.released = map[chunk]int{}, map[chunk]bool{}, map[chunk]bool{}
}

// pin keeps a chunk, once it is not just being deleted.
func (p *pins) pin(c chunk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.deleting[c] {
		p.free.Wait()
	}
	p.count[c]++
}

func (p *pins) unpin(chunks []chunk) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range chunks {
		if p.count[c]--; p.count[c] <= 0 {
			delete(p.count, c)
			if p.collecting {
				p.released[c] = true
			}
		}
	}
}

// collect begins a collection; the function that it returns ends it.
func (p *pins) collect() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.collecting = true
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.collecting = false
		clear(p.released)
	}
}

// delete calls remove for a chunk that nobody has pinned.
func (p *pins) delete(c chunk, remove func() error) error {
	p.mu.Lock()
	if p.count[c] > 0 || p.released[c] {
		p.mu.Unlock()
		return errPinned
	}
	p.deleting[c] = true
	p.mu.Unlock()
	err := remove()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.deleting, c)
	p.free.Broadcast()
	return err
}

var errPinned = errors.New("pinned")
