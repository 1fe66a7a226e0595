package gitlab

import (
	"errors"
	"io"

	"github.com/runnerd/runnerd/runner"
)

// stream is one stream of a job's log: what looks like a token is hidden, and the rest goes to this machine's log and to
// the one that is sent.
type stream struct {
	*tokenMask
	stamps *stamper // nil: none
}

func newStream(j *job, s runner.Stream, rules *tokenRules, mark string) *stream {
	out := &stream{}
	var sent io.Writer = j.spool
	if j.record.Stamps {
		out.stamps = &stamper{w: j.spool, stream: mark}
		sent = out.stamps
	}
	out.tokenMask = &tokenMask{rules: rules, w: both{sent, func() io.Writer {
		if j.local.Reporter == nil { // it could not be written down here
			return io.Discard
		}
		return j.local.Stream(s)
	}}}
	return out
}

// flush lets go of what is held back.
func (s *stream) flush() error {
	err := s.Flush()
	if s.stamps != nil {
		err = errors.Join(err, s.stamps.Flush())
	}
	return err
}

// both writes to two logs. That one fails does not keep it from the other.
type both struct {
	sent  io.Writer
	local func() io.Writer
}

func (b both) Write(p []byte) (int, error) {
	_, err := b.sent.Write(p)
	_, err2 := b.local().Write(p)
	return len(p), errors.Join(err, err2)
}
