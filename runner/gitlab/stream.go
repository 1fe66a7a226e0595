package gitlab

import (
	"errors"
	"io"
	"sync"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
)

// stream is one stream of a job's log: what looks like a token is hidden, and the rest goes to this machine's log and,
// with time stamps if the server understands them, to the one that is sent. Its methods may be called from several
// goroutines.
type stream struct {
	mu     sync.Mutex
	mask   *tokenMask
	stamps *script.Timestamps // nil: none
}

func newStream(j *job, s runner.Stream, rules *tokenRules) *stream {
	out := &stream{}
	var sent io.Writer = j.spool
	if j.record.Stamps {
		out.stamps = stamped(j.spool, s)
		sent = out.stamps
	}
	out.mask = &tokenMask{rules: rules, w: both{sent, func() io.Writer {
		if j.local.Reporter == nil {
			return io.Discard
		}
		return j.local.Stream(s)
	}}}
	return out
}

// Write writes to both logs.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mask.Write(p)
}

// flush lets go of what is held back.
func (s *stream) flush() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.mask.Flush()
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
