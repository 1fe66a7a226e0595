package runner

import (
	"encoding/binary"
	"io"
	"slices"
	"strings"
	"sync"
)

// Masked is what is written in the place of a secret.
const Masked = "[MASKED]"

// Mask hides secrets in streams. It is compiled once per job and may be used by several goroutines.
//
// A byte is hidden if it lies in any occurrence of any form of any secret (see secretForms); every
// longest run of hidden bytes is replaced by one Masked. What decides is the stream, not how it was cut
// into writes.
type Mask struct {
	forms      []string // sorted, each at least MinSecret bytes
	unmaskable int

	// The filter: one bit for each hash of a form's first four bytes. Nearly every byte of a log is
	// passed over by one load, one multiplication and one test.
	bits  []uint64
	shift uint
	// byPrefix finds the forms that begin with the same four bytes: a range of forms.
	byPrefix map[uint32][2]int32
	short    map[string]bool // the proper prefixes of fewer than MinSecret bytes
}

const hashFactor = 0x9E3779B1 // 2^32 over the golden ratio, Knuth's multiplicative hash

// NewMask compiles a Mask.
func NewMask(secrets []string) *Mask {
	forms, unmaskable := secretForms(secrets)
	m := compileMask(forms)
	m.unmaskable = unmaskable
	return m
}

// compileMask compiles a Mask of these forms, which are sorted and different.
func compileMask(forms []string) *Mask {
	m := &Mask{forms: forms, byPrefix: map[uint32][2]int32{}, short: map[string]bool{}}
	size := uint(10) // log2 of the filter's bits: at least 32 for each prefix, so 1 in 32 bytes at most is looked at twice
	for size < 20 && 1<<size < 32*len(forms) {
		size++
	}
	m.bits, m.shift = make([]uint64, 1<<size/64), 32-size
	for i, f := range forms {
		prefix := binary.LittleEndian.Uint32([]byte(f[:4]))
		r, ok := m.byPrefix[prefix]
		if !ok {
			r[0] = int32(i)
		}
		r[1] = int32(i + 1)
		m.byPrefix[prefix] = r
		h := prefix * hashFactor >> m.shift
		m.bits[h/64] |= 1 << (h % 64)
		for n := 1; n < MinSecret; n++ {
			m.short[f[:n]] = true
		}
	}
	return m
}

// Unmaskable is the number of secrets that are too short to be hidden.
func (m *Mask) Unmaskable() int { return m.unmaskable }

// String hides the secrets in a text that is complete.
func (m *Mask) String(text string) string {
	if len(m.forms) == 0 {
		return text
	}
	var b strings.Builder
	w := m.Writer(&b)
	_, _ = io.WriteString(w, text)
	_ = w.Close()
	return b.String()
}

// find looks for the first place at or after from where a form begins, or may begin. It returns the place
// and the length of the longest form that is there (0 if none), and whether a longer one may yet come
// once there is more data. at == len(data) means that there is none.
func (m *Mask) find(data []byte, from int) (at, length int, more bool) {
	bits, shift := m.bits, m.shift
	i := from
	for ; i+4 <= len(data); i++ {
		prefix := binary.LittleEndian.Uint32(data[i:])
		h := prefix * hashFactor >> shift
		if bits[h/64]&(1<<(h%64)) == 0 {
			continue
		}
		if length, more := m.match(data[i:], prefix); length > 0 || more {
			return i, length, more
		}
	}
	for ; i < len(data); i++ {
		if m.short[string(data[i:])] {
			return i, 0, true
		}
	}
	return len(data), 0, false
}

// match tells the longest form at the beginning of data, which has the four bytes prefix, and whether
// data is a proper prefix of a form.
func (m *Mask) match(data []byte, prefix uint32) (length int, more bool) {
	r, ok := m.byPrefix[prefix]
	if !ok {
		return 0, false
	}
	forms := m.forms[r[0]:r[1]]
	// The forms that are prefixes of data are no greater than data, the longest of them last; and a form
	// of which data is a prefix is the next greater one. Between the longest form and data may lie forms
	// that share a prefix with both; each of them points to the next shorter candidate.
	i, exact := slices.BinarySearchFunc(forms, data, func(f string, d []byte) int {
		if len(f) <= len(d) {
			return cmpStringBytes(f, d)
		}
		if c := cmpStringBytes(f[:len(d)], d); c != 0 {
			return c
		}
		return 1
	})
	if exact {
		length = len(forms[i])
		i++
	}
	more = i < len(forms) && len(forms[i]) > len(data) && cmpStringBytes(forms[i][:len(data)], data) == 0
	for i--; length == 0 && i >= 0; i-- {
		f := forms[i]
		if len(f) <= len(data) && cmpStringBytes(f, data[:len(f)]) == 0 {
			length = len(f)
			break
		}
		// Anything shorter that matches is a prefix of what f and data have in common.
		common := f[:commonPrefix(f, data)]
		j, found := slices.BinarySearch(forms[:i], common)
		if found {
			length = len(common)
			break
		}
		i = j
	}
	return length, more
}

// cmpStringBytes compares as strings.Compare does; the compiler copies nothing here.
func cmpStringBytes(s string, b []byte) int {
	switch {
	case s == string(b):
		return 0
	case s < string(b):
		return -1
	}
	return 1
}

func commonPrefix(s string, b []byte) int {
	n := min(len(s), len(b))
	for i := range n {
		if s[i] != b[i] {
			return i
		}
	}
	return n
}

// MaskWriter hides the secrets in one stream. Its methods may be called from several goroutines.
type MaskWriter struct {
	m *Mask
	w io.Writer

	mu     sync.Mutex
	held   []byte // the end of the stream so far, which may be the beginning of a secret
	sent   int    // how many bytes of held are already written or hidden
	inRun  bool   // the last byte before held[sent:] is hidden
	out    []byte // kept between writes
	closed bool
}

// Writer returns a writer that writes to w with the secrets hidden. Of what it was given it holds back
// only what may be the beginning of a secret; Flush lets go of that, and Close too. Close does not close w.
func (m *Mask) Writer(w io.Writer) *MaskWriter { return &MaskWriter{m: m, w: w} }

// maskChunk bounds the memory of a Write.
const maskChunk = 64 << 10

// Write hides the secrets in p and writes what is sure. It returns len(p) unless the writer below fails.
func (w *MaskWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return 0, io.ErrClosedPipe
	}
	if len(w.m.forms) == 0 {
		return w.w.Write(p)
	}
	for done := 0; done < len(p); {
		chunk := p[done:min(len(p), done+maskChunk)]
		if err := w.write(chunk); err != nil {
			return done, err
		}
		done += len(chunk)
	}
	return len(p), nil
}

func (w *MaskWriter) write(p []byte) error {
	if len(w.held) == 0 {
		if at, _, _ := w.m.find(p, 0); at == len(p) { // the common case: nothing to hide, nothing to copy
			w.inRun = w.inRun && len(p) == 0
			return w.put(p)
		}
	}
	w.held = append(w.held, p...)
	rest := w.scan(false)
	w.held = append(w.held[:0], w.held[rest:]...)
	w.sent = max(0, w.sent-rest)
	return w.put(w.out)
}

// scan puts into w.out what of w.held is decided, and returns where the undecided begins.
func (w *MaskWriter) scan(final bool) (rest int) {
	data, out := w.held, w.out[:0]
	done := w.sent // data[:done] is written or hidden
	for i := 0; ; {
		at, length, more := w.m.find(data, i)
		if at > done {
			out = append(out, data[done:at]...)
			done, w.inRun = at, false
		}
		if at == len(data) {
			rest = at
			break
		}
		if more && !final {
			rest = at
			break
		}
		if end := at + length; end > done {
			if !w.inRun {
				out = append(out, Masked...)
				w.inRun = true
			}
			done = end
		}
		i = at + 1
	}
	w.out, w.sent = out, done
	return rest
}

// Flush writes what is held back, as far as it is no secret. Should the stream go on with the rest of a
// secret of which Flush has let the beginning out, the rest is still hidden.
func (w *MaskWriter) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.flush()
}

func (w *MaskWriter) flush() error {
	if w.sent == len(w.held) {
		return nil
	}
	w.scan(true)
	return w.put(w.out)
}

// Close flushes. It is safe to call twice.
func (w *MaskWriter) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	w.closed = true
	err := w.flush()
	w.held, w.out = nil, nil
	return err
}

func (w *MaskWriter) put(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	n, err := w.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	return err
}
