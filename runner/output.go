package runner

import (
	"fmt"
	"io"
	"sync"
)

// maskedOutput is a job's Output with its secrets hidden. Each stream has one masker for the whole job. A
// log that cannot be written any more does not end the job: what is lost is told at its end.
type maskedOutput struct {
	mask *Mask
	out  Output

	mu      sync.Mutex
	streams map[Stream]*maskedStream
	lost    error // the first error in writing the log
}

func newMaskedOutput(out Output, secrets []string) *maskedOutput {
	return &maskedOutput{mask: NewMask(secrets), out: out, streams: map[Stream]*maskedStream{}}
}

// Stream returns the same writer for the same stream.
func (o *maskedOutput) Stream(s Stream) io.Writer {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.streams[s] == nil {
		below := lenient{o, o.out.Stream(s)}
		o.streams[s] = &maskedStream{kind: s, mask: o.mask, w: o.mask.Writer(below), raw: below}
	}
	return o.streams[s]
}

func (o *maskedOutput) notice(format string, args ...any) {
	_, _ = fmt.Fprintf(o.Stream(Notice), format+"\n", args...)
}

// Masked returns a writer that hides the job's secrets in what it passes on to w.
func (o *maskedOutput) Masked(w io.Writer) *MaskWriter { return o.mask.Writer(w) }

// flush lets go of what is held back in all streams.
func (o *maskedOutput) flush() {
	o.mu.Lock()
	streams := make([]*maskedStream, 0, len(o.streams))
	for _, s := range o.streams {
		streams = append(streams, s)
	}
	o.mu.Unlock()
	for _, s := range streams {
		_ = s.w.Flush()
	}
}

func (o *maskedOutput) lose(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost == nil {
		o.lost = err
	}
}

func (o *maskedOutput) err() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lost
}

type maskedStream struct {
	kind Stream
	mask *Mask
	w    *MaskWriter
	raw  io.Writer
}

func (s *maskedStream) Write(p []byte) (int, error) {
	switch s.kind {
	case Progress: // each write is a JSON text of its own
		if _, err := s.raw.Write(s.mask.JSON(p)); err != nil {
			return 0, err
		}
		return len(p), nil
	case Notice: // complete sentences, and nobody should wait for them
		n, err := s.w.Write(p)
		_ = s.w.Flush()
		return n, err
	default:
		return s.w.Write(p)
	}
}

// lenient writes to a job's log and keeps the error, if any, for the end of the job.
type lenient struct {
	o *maskedOutput
	w io.Writer
}

func (l lenient) Write(p []byte) (int, error) {
	if _, err := l.w.Write(p); err != nil {
		l.o.lose(err)
	}
	return len(p), nil
}
