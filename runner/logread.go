package runner

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"
)

// Read gives fn the frames of a job's log, oldest first, until its end, or until fn returns an error,
// which Read then returns. With follow, the end is the log's Close: Read waits for more as long as the log
// is being written. A reader that is slower than the writer misses what is overwritten meanwhile, and is
// told so by a notice. There may be any number of readers; none of them holds up the writer.
func (s *LogStore) Read(ctx context.Context, id string, follow bool, fn func(Frame) error) error {
	path, err := s.path(id)
	if err != nil {
		return err
	}
	s.mu.Lock()
	live := s.live[id]
	f, err := os.Open(path)
	s.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("job %s: %w", id, ErrNoLog)
	} else if err != nil {
		return fmt.Errorf("read the log of job %s: %w", id, err)
	}
	defer func() { _ = f.Close() }()
	shape, err := readShape(f)
	if err != nil {
		return fmt.Errorf("read the log of job %s: %w", id, err)
	}
	r := &logReader{ctx: ctx, file: f, shape: shape, fn: fn, live: live}
	if live == nil {
		return r.stored()
	}
	return r.follow(follow)
}

// logReader reads one log. Where it is: gen 0 is the head, otherwise the part of the ring that holds gen.
type logReader struct {
	ctx   context.Context
	file  *os.File
	shape logShape
	fn    func(Frame) error
	live  *Log

	gen  uint32
	pos  int64 // relative to the part's beginning
	next int64 // offset in the data of what comes next
	buf  []byte
}

var errOverwritten = errors.New("overwritten")

// stored reads a log that nobody writes.
func (r *logReader) stored() error {
	if err := r.part(headerSize, 0, r.shape.headSize, nil); err != nil {
		return err
	}
	var tail []slot
	for i := range tailSlots {
		at := r.shape.slot(i)
		if gen, ok := r.firstGen(at); ok {
			tail = append(tail, slot{at: at, gen: gen})
		}
	}
	slices.SortFunc(tail, func(a, b slot) int { return int(int64(a.gen) - int64(b.gen)) })
	for _, s := range tail {
		r.pos = 0
		if err := r.part(s.at, s.gen, r.shape.slotSize, nil); err != nil {
			return err
		}
	}
	return nil
}

func (r *logReader) firstGen(at int64) (uint32, bool) {
	var h [frameHeader]byte
	if n, _ := r.file.ReadAt(h[:], at); n < len(h) {
		return 0, false
	}
	gen := binary.LittleEndian.Uint32(h[4:])
	return gen, gen != 0
}

// follow reads a log that is being written, to what is there now, or to its end.
func (r *logReader) follow(wait bool) error {
	l := r.live
	for {
		l.mu.Lock()
		closed, grown := l.closed, l.grown
		at, end, more := r.where()
		if !more && !closed {
			l.waited = l.waited || wait
		}
		l.mu.Unlock()
		if !more {
			if closed || !wait {
				return nil
			}
			select {
			case <-grown:
				continue
			case <-r.ctx.Done():
				return context.Cause(r.ctx)
			}
		}
		before := r.pos
		err := r.part(at, r.gen, end, r.intact)
		if err == nil && r.pos == before {
			err = fmt.Errorf("read the log of job %s: the file is damaged at byte %d", l.id, at+r.pos)
		}
		if err != nil && !errors.Is(err, errOverwritten) {
			return err
		}
	}
}

// where says which part of the file to read next and up to where; it moves on to the next part when one is
// read to its end. l.mu is held.
func (r *logReader) where() (at, end int64, more bool) {
	l := r.live
	if r.gen == 0 {
		if r.pos < l.head {
			return headerSize, l.head, true
		}
		if !l.headDone {
			return 0, 0, false
		}
		r.gen, r.pos = 1, 0
	}
	newest := l.slots[l.cur].gen
	oldest := uint32(1)
	if newest > tailSlots {
		oldest = newest - tailSlots + 1
	}
	if r.gen < oldest {
		r.gen, r.pos = oldest, 0
	}
	for ; ; r.gen, r.pos = r.gen+1, 0 {
		s := l.slots[(r.gen-1)%tailSlots]
		if r.pos < s.used {
			return s.at, s.used, true
		}
		if r.gen == newest {
			return 0, 0, false
		}
	}
}

// intact reports whether what was just read from the present part is still what it was.
func (r *logReader) intact() bool {
	if r.gen == 0 {
		return true
	}
	r.live.mu.Lock()
	defer r.live.mu.Unlock()
	return r.live.slots[(r.gen-1)%tailSlots].gen == r.gen
}

// part reads the frames of one generation that lie at at+r.pos up to at+end, as far as they are whole.
// intact, when not nil, is asked after each read from the file.
func (r *logReader) part(at int64, gen uint32, end int64, intact func() bool) error {
	const window = 64 << 10
	have := r.buf[:0]
	from := r.pos // where have begins
	for r.pos < end {
		rest := have[r.pos-from:]
		need := int64(frameHeader)
		if len(rest) >= frameHeader {
			need += int64(binary.LittleEndian.Uint32(rest[8:]))
		}
		if r.pos+need > end {
			return nil
		}
		if int64(len(rest)) < need {
			size := min(max(need, window), end-r.pos)
			if int64(cap(r.buf)) < size {
				r.buf = make([]byte, size)
			}
			n, err := r.file.ReadAt(r.buf[:size], at+r.pos)
			if err != nil && !errors.Is(err, io.EOF) {
				return fmt.Errorf("read a log: %w", err)
			}
			if intact != nil && !intact() {
				return errOverwritten
			}
			if int64(n) < need {
				return nil // torn
			}
			have, from = r.buf[:n], r.pos
			continue
		}
		frame := rest[:need]
		if binary.LittleEndian.Uint32(frame[4:]) != gen || binary.LittleEndian.Uint32(frame) != crc32.Checksum(frame[4:], castagnoli) {
			return nil // torn, or what an earlier generation left here
		}
		if err := r.give(frame); err != nil {
			return err
		}
		r.pos += need
	}
	return nil
}

func (r *logReader) give(frame []byte) error {
	if r.ctx.Err() != nil {
		return context.Cause(r.ctx)
	}
	f := Frame{
		Stream: Stream(frame[12]),
		Time:   time.Unix(0, int64(binary.LittleEndian.Uint64(frame[13:]))),
		Data:   frame[frameHeader:],
	}
	offset := int64(binary.LittleEndian.Uint64(frame[21:]))
	if gap := offset - r.next; gap > 0 {
		r.next = offset
		text := fmt.Sprintf("\n[%d bytes left out here: the log is over its limit]\n", gap)
		if err := r.fn(Frame{Stream: Notice, Time: f.Time, Data: []byte(text), LeftOut: gap}); err != nil {
			return err
		}
	}
	r.next = offset + int64(len(f.Data))
	return r.fn(f)
}
