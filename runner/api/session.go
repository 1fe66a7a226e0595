package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// ClientPatience is how long an attached job waits for its client.
const ClientPatience = 30 * time.Second

// ErrNoClient is the error of an attached job whose client did not come, or went away.
var ErrNoClient = errors.New("no client is attached")

var errAttached = errors.New("another client is attached to this job")

// Attachments brings attached jobs and their clients together: the API brings the client, the job's step asks
// for it.
type Attachments struct {
	mu     sync.Mutex
	jobs   map[string]*attachment
	timeIn time.Duration
}

type attachment struct {
	came    chan struct{} // closed when session is set
	session *Session
	timer   *time.Timer
}

// NewAttachments returns an empty Attachments.
func NewAttachments() *Attachments {
	return &Attachments{jobs: map[string]*attachment{}, timeIn: ClientPatience}
}

func (a *Attachments) of(id string) *attachment {
	if a.jobs[id] == nil {
		a.jobs[id] = &attachment{came: make(chan struct{})}
	}
	return a.jobs[id]
}

// expect calls cancel if no client comes in time.
func (a *Attachments) expect(id string, cancel func(id, reason string)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.of(id).timer = time.AfterFunc(a.timeIn, func() {
		a.forget(id)
		cancel(id, fmt.Sprintf("no client came to attach within %s", a.timeIn))
	})
}

// forget removes what is known of a job that is over.
func (a *Attachments) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at := a.jobs[id]; at != nil && at.timer != nil {
		at.timer.Stop()
	}
	delete(a.jobs, id)
}

// attach brings the job's client. There is one a job.
func (a *Attachments) attach(id string, s *Session) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.of(id)
	if at.session != nil {
		return fmt.Errorf("job %s: %w", id, errAttached)
	}
	if at.timer != nil {
		at.timer.Stop()
	}
	at.session = s
	close(at.came)
	return nil
}

// Session waits for the job's client, for at most ClientPatience. It is for the job's step. The error wraps
// ErrNoClient, or is ctx's cause.
func (a *Attachments) Session(ctx context.Context, id string) (*Session, error) {
	a.mu.Lock()
	at := a.of(id)
	a.mu.Unlock()
	patience := time.NewTimer(a.timeIn)
	defer patience.Stop()
	select {
	case <-at.came:
		return at.session, nil
	case <-patience.C:
		a.forget(id)
		return nil, fmt.Errorf("%w: none came within %s", ErrNoClient, a.timeIn)
	case <-ctx.Done():
		a.forget(id)
		return nil, context.Cause(ctx)
	}
}

// Session is the client's end of an attached job, as the job's step sees it.
type Session struct {
	// Signals are those that the client forwards.
	Signals <-chan syscall.Signal
	// Resize are the changes of the client's terminal.
	Resize <-chan sandbox.WindowSize

	signals chan syscall.Signal
	resize  chan sandbox.WindowSize
	out     chan []byte
	gone    chan struct{}
	last    chan struct{} // closed when nothing more is sent
	goOnce  sync.Once
	stdin   stdin
}

func newSession() *Session {
	s := &Session{
		signals: make(chan syscall.Signal, 16),
		resize:  make(chan sandbox.WindowSize, 1),
		out:     make(chan []byte, 16),
		gone:    make(chan struct{}),
		last:    make(chan struct{}),
	}
	s.Signals, s.Resize = s.signals, s.resize
	s.stdin.s, s.stdin.changed, s.stdin.credit = s, sync.NewCond(&s.stdin.mu), Window
	return s
}

// Gone is closed when the client has gone away.
func (s *Session) Gone() <-chan struct{} { return s.gone }

// Stdin is the client's standard input. Close it when nobody reads it any more.
func (s *Session) Stdin() io.ReadCloser { return &s.stdin }

// Stream returns a writer to one of the client's streams. A Write returns when the bytes are on their way to
// the client; it fails when the client is gone or ctx ends.
func (s *Session) Stream(ctx context.Context, stream runner.Stream) io.Writer {
	return sessionWriter{ctx, s, FrameType(stream)}
}

type sessionWriter struct {
	ctx  context.Context //nolint:containedctx // a writer has no other way to know it
	s    *Session
	kind FrameType
}

// maxOut is the size of the pieces in which output is sent; 16 of them may be on their way.
const maxOut = 32 << 10

func (w sessionWriter) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		piece := p[:min(len(p), maxOut)]
		if err := w.s.send(w.ctx, Frame{Type: w.kind, Time: time.Now(), Data: piece}); err != nil {
			return n, err
		}
		n += len(piece)
		p = p[len(piece):]
	}
	return n, nil
}

func (s *Session) send(ctx context.Context, f Frame) error {
	b := f.Append(make([]byte, 0, frameHeader+len(f.Data)))
	select {
	case s.out <- b:
		return nil
	case <-s.gone:
		return ErrNoClient
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (s *Session) leave() {
	s.goOnce.Do(func() { close(s.gone) })
	s.stdin.end(ErrNoClient)
}

// stdin holds at most Window bytes that the client has sent.
type stdin struct {
	s       *Session
	mu      sync.Mutex
	changed *sync.Cond
	buf     bytes.Buffer
	err     error // what Read returns at the end
	credit  int   // what the client may still send
	owed    int   // what was read and not granted anew
}

func (in *stdin) Read(p []byte) (int, error) {
	in.mu.Lock()
	for in.buf.Len() == 0 && in.err == nil {
		in.changed.Wait()
	}
	if in.buf.Len() == 0 {
		defer in.mu.Unlock()
		return 0, in.err
	}
	n, _ := in.buf.Read(p)
	in.owed += n
	grant := 0
	if in.owed >= Window/4 && in.err == nil {
		grant, in.owed = in.owed, 0
		in.credit += grant
	}
	in.mu.Unlock()
	if grant > 0 {
		_ = in.s.send(context.Background(), Frame{Type: FrameWindow, Data: uint32Bytes(grant)}) // ends with the client
	}
	return n, nil
}

// Close makes Read return io.EOF and drops what comes later.
func (in *stdin) Close() error {
	in.mu.Lock()
	in.buf.Reset()
	in.mu.Unlock()
	in.end(io.EOF)
	return nil
}

func (in *stdin) end(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
	in.changed.Broadcast()
}

// put takes what the client has sent.
func (in *stdin) put(p []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.credit -= len(p); in.credit < 0 {
		return errors.New("more standard input than the window allows")
	}
	if in.err == nil {
		in.buf.Write(p)
		in.changed.Broadcast()
	}
	return nil
}
