package api

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/runnerd/runnerd/runner"
)

// FramesType is the media type of a stream of frames, and Protocol the name that a connection is upgraded to.
const (
	FramesType = "application/vnd.runnerd.frames"
	Protocol   = "runnerd-frames/1"
)

// FrameType says what a frame carries. 1 to 4 are runner.Stream's.
type FrameType uint8

// The further types of frames of an attached connection. A number is big-endian.
const (
	FrameStdin    FrameType = 0x10 // client: bytes for the standard input, within the window
	FrameStdinEOF FrameType = 0x11 // client: the end of the standard input
	FrameSignal   FrameType = 0x12 // client: a signal's number, 1 byte
	FrameResize   FrameType = 0x13 // client: rows and columns, 2 bytes each
	FrameWindow   FrameType = 0x20 // server: so many more bytes of standard input are taken, 4 bytes
	FrameState    FrameType = 0x21 // server: the Job as JSON, when its state has changed
	FrameResult   FrameType = 0x22 // server: the finished Job as JSON; nothing comes after it
	FrameError    FrameType = 0x23 // server: a problem as JSON; nothing comes after it
)

// MaxFrame is the largest size of a frame's data in bytes, but for those of a log's Progress.
const MaxFrame = 1 << 20

// maxProgress bounds a Progress frame, which is one BuildKit status.
const maxProgress = 64 << 20

// Window is how much standard input a server holds for a command that does not read it. A client begins with
// this much credit.
const Window = 256 << 10

// frameHeader is type (1), length of the data (4), and unix time in ns (8, 0 if unknown), big-endian.
const frameHeader = 13

// Frame is one piece of a stream.
type Frame struct {
	Type FrameType
	Time time.Time
	Data []byte
}

// Stream tells which stream of the log the frame belongs to, 0 if to none.
func (f Frame) Stream() runner.Stream {
	if f.Type <= FrameType(runner.Progress) {
		return runner.Stream(f.Type)
	}
	return 0
}

// Append appends the frame's bytes to b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Type))
	b = binary.BigEndian.AppendUint32(b, uint32(len(f.Data)))
	var t int64
	if !f.Time.IsZero() {
		t = f.Time.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(t))
	return append(b, f.Data...)
}

// FrameReader reads frames.
type FrameReader struct {
	r   *bufio.Reader
	buf []byte
}

// NewFrameReader returns a reader of frames from r.
func NewFrameReader(r io.Reader) *FrameReader { return &FrameReader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next frame, or io.EOF at the end. Its data is valid until the next call.
func (r *FrameReader) Next() (Frame, error) {
	var h [frameHeader]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		return Frame{}, err
	}
	f := Frame{Type: FrameType(h[0])}
	size, limit := int(binary.BigEndian.Uint32(h[1:])), MaxFrame
	if f.Type == FrameType(runner.Progress) {
		limit = maxProgress
	}
	if size > limit {
		return Frame{}, fmt.Errorf("a frame of %d bytes: at most %d are allowed", size, limit)
	}
	if t := int64(binary.BigEndian.Uint64(h[5:])); t != 0 {
		f.Time = time.Unix(0, t)
	}
	if cap(r.buf) < size {
		r.buf = make([]byte, size)
	}
	f.Data = r.buf[:size]
	if _, err := io.ReadFull(r.r, f.Data); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, err
	}
	return f, nil
}
