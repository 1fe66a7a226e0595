package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// fakeSandbox is strict: it fails the test when it is used after Close.
type fakeSandbox struct {
	t     *testing.T
	id    string
	usage sandbox.Usage

	mu       sync.Mutex
	closed   int
	closeErr error
	onClose  func(ctx context.Context)
}

func (s *fakeSandbox) ID() string { return s.id }

func (s *fakeSandbox) use() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed > 0 {
		s.t.Errorf("sandbox %s is used after Close", s.id)
	}
}

func (s *fakeSandbox) Exec(context.Context, sandbox.Process) (sandbox.Exit, error) {
	s.use()
	return sandbox.Exit{}, errors.New("the fake runs nothing")
}

func (s *fakeSandbox) Usage(ctx context.Context) (sandbox.Usage, error) {
	return s.usage, ctx.Err() // after Close, too
}

func (s *fakeSandbox) Close(ctx context.Context) error {
	s.use()
	if s.onClose != nil {
		s.onClose(ctx)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	return errors.Join(s.closeErr, ctx.Err())
}

// stepFunc is a Step.
type stepFunc func(ctx context.Context, on sandbox.Host, out Output) (sandbox.Exit, error)

func (stepFunc) Name() string { return "test" }

func (f stepFunc) Run(ctx context.Context, on sandbox.Host, out Output) (sandbox.Exit, error) {
	return f(ctx, on, out)
}

func exits(code int) stepFunc {
	return func(context.Context, sandbox.Host, Output) (sandbox.Exit, error) {
		return sandbox.Exit{Code: code}, nil
	}
}

// takes is a step that takes so long, unless it is cancelled.
func takes(d time.Duration) stepFunc {
	return func(ctx context.Context, _ sandbox.Host, _ Output) (sandbox.Exit, error) {
		return sandbox.Exit{}, sleep(ctx, d)
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fakeReporter is strict: states must go forward, and nothing may come after Finish.
type fakeReporter struct {
	t  *testing.T
	id string

	mu       sync.Mutex
	states   []string
	decided  *Result
	result   *Result
	text     map[Stream]*strings.Builder
	writeErr error
	done     chan struct{}
}

func newReporter(t *testing.T, id string) *fakeReporter {
	return &fakeReporter{t: t, id: id, text: map[Stream]*strings.Builder{}, done: make(chan struct{})}
}

var stateOrder = []State{Queued, Waiting, Opening, Running, Closing, Finished}

func (r *fakeReporter) State(ctx context.Context, s State, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.result != nil || ctx.Err() != nil {
		r.t.Errorf("job %s: state %s after Finish, or with a context that has ended", r.id, s)
	}
	if n := len(r.states); n > 0 && slices.Index(stateOrder, State(r.states[n-1])) > slices.Index(stateOrder, s) {
		r.t.Errorf("job %s: state %s after %s", r.id, s, r.states[n-1])
	}
	r.states = append(r.states, string(s))
}

func (r *fakeReporter) Stream(s Stream) io.Writer { return fakeStream{r, s} }

type fakeStream struct {
	r *fakeReporter
	s Stream
}

func (w fakeStream) Write(p []byte) (int, error) {
	w.r.mu.Lock()
	defer w.r.mu.Unlock()
	if w.r.decided != nil {
		w.r.t.Errorf("job %s: a write after Decided: %q", w.r.id, p)
	}
	if w.r.writeErr != nil {
		return 0, w.r.writeErr
	}
	if w.r.text[w.s] == nil {
		w.r.text[w.s] = &strings.Builder{}
	}
	return w.r.text[w.s].Write(p)
}

func (r *fakeReporter) said(s Stream) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.text[s] == nil {
		return ""
	}
	return r.text[s].String()
}

func (r *fakeReporter) Decided(ctx context.Context, res Result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.decided != nil {
		r.t.Errorf("job %s is decided twice", r.id)
	}
	if ctx.Err() != nil {
		r.t.Errorf("job %s is decided with a context that has ended", r.id)
	}
	if slices.Contains(r.states, string(Closing)) || !res.Times.Closed.IsZero() {
		r.t.Errorf("job %s is decided when its sandbox is closed", r.id)
	}
	r.decided = &res
	return nil
}

func (r *fakeReporter) Finish(ctx context.Context, res Result) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d := r.decided; d == nil || d.Outcome != res.Outcome || d.Reason != res.Reason || d.ExitCode != res.ExitCode {
		r.t.Errorf("job %s: finished as %+v, decided as %+v", r.id, res, d)
	}
	if r.result != nil {
		r.t.Errorf("job %s is finished twice", r.id)
		return errors.New("twice")
	}
	if ctx.Err() != nil {
		r.t.Errorf("job %s is finished with a context that has ended", r.id)
	}
	r.result = &res
	close(r.done)
	return nil
}

// fakeSource gives assignments, and then waits.
type fakeSource struct {
	c chan Assignment
}

func newSource(n int) *fakeSource { return &fakeSource{make(chan Assignment, n)} }

func (s *fakeSource) Next(ctx context.Context) (Assignment, error) {
	select {
	case a, ok := <-s.c:
		if !ok {
			return Assignment{}, fmt.Errorf("no more: %w", io.EOF)
		}
		return a, nil
	case <-ctx.Done():
		return Assignment{}, context.Cause(ctx)
	}
}
