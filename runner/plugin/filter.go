package plugin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Limits of filtering one stream of one job.
const (
	filterFuel  = time.Hour        // of processor time
	filterStall = 10 * time.Second // that it may leave output untaken, or take to end
)

// Filter has a module change the logs of jobs: it reads a stream on its standard input and writes what is to be kept of
// it. It sees what the job's secrets are already hidden in. Once it fails nothing of that stream is kept any more.
type Filter struct{ m *module }

// NewFilter returns the Filter that the module in a file makes, run by a program.
func NewFilter(program, path string, log *slog.Logger) *Filter {
	return &Filter{newModule(program, path, sandbox.Module{Fuel: filterFuel, Clock: true}, log)}
}

// Close ends the module's process.
func (f *Filter) Close(ctx context.Context) error { return f.m.Close(ctx) }

// Source wraps a source of jobs, so that their logs are filtered.
func (f *Filter) Source(of runner.Source) runner.Source { return source{of, f} }

type source struct {
	runner.Source
	f *Filter
}

// Next waits for a job.
func (s source) Next(ctx context.Context) (runner.Assignment, error) {
	a, err := s.Source.Next(ctx)
	if err != nil {
		return a, err
	}
	a.Reporter = &reporter{Reporter: a.Reporter, f: s.f, streams: map[runner.Stream]*stream{}}
	return a, nil
}

// reporter filters what goes through it.
type reporter struct {
	runner.Reporter
	f *Filter

	mu      sync.Mutex
	streams map[runner.Stream]*stream
}

// Stream is the job's, filtered: what it says itself. What runnerd says of it (Notice) is not. Of a build's progress
// the steps' output is left out: it is cut at any place, which no filter could be held to.
func (r *reporter) Stream(s runner.Stream) io.Writer {
	switch s {
	case runner.Stdout, runner.Stderr:
	case runner.Progress:
		return withoutLogs{r.Reporter.Stream(s)}
	default:
		return r.Reporter.Stream(s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.streams == nil {
		return io.Discard // it is decided: nothing more comes
	}
	if r.streams[s] == nil {
		r.streams[s] = newStream(r.f, r.Reporter.Stream(s), r.Reporter.Stream(runner.Notice))
	}
	return r.streams[s]
}

// Decided waits for the filter's rest of the log.
func (r *reporter) Decided(ctx context.Context, result runner.Result) error {
	r.mu.Lock()
	all := r.streams
	r.streams = nil
	r.mu.Unlock()
	for _, s := range all {
		s.close()
	}
	return r.Reporter.Decided(ctx, result)
}

// errStalled is why a filter is given up that takes nothing.
var errStalled = errors.New("it does not take the output, or does not end")

// stream is one stream on its way through a run of the module.
type stream struct {
	in     *io.PipeWriter
	cancel context.CancelCauseFunc
	notice io.Writer
	done   chan struct{} // closed when the run has ended

	once sync.Once
}

func newStream(f *Filter, to, notice io.Writer) *stream {
	r, w := io.Pipe()
	ctx, cancel := context.WithCancelCause(context.Background())
	s := &stream{in: w, cancel: cancel, notice: notice, done: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer cancel(nil)
		why := sandbox.NewTail(500)
		exit, err := f.m.run(ctx, r, to, why)
		switch {
		case err != nil:
		case !exit.Success():
			err = fmt.Errorf("%s: %s", exit, why)
		default:
			err = io.ErrClosedPipe // it may have ended before its input did
		}
		if !errors.Is(err, io.ErrClosedPipe) {
			s.fail(err)
		}
		_ = r.CloseWithError(err)
	}()
	return s
}

// fail says, once, that the rest is not kept.
func (s *stream) fail(err error) {
	s.once.Do(func() {
		_, _ = fmt.Fprintf(s.notice, "the rest of this output is not kept: the log filter failed (plugins.log_filter): %v\n", err)
	})
}

// Write gives p to the module. Of one that has failed nobody is told: the job is not to fail for it.
func (s *stream) Write(p []byte) (int, error) {
	stalled := time.AfterFunc(filterStall, func() {
		s.cancel(errStalled)
		_ = s.in.CloseWithError(errStalled)
	})
	defer stalled.Stop()
	if _, err := s.in.Write(p); err != nil {
		s.fail(err)
	}
	return len(p), nil
}

// close waits for the module to end, for a while.
func (s *stream) close() {
	_ = s.in.Close()
	timeout := time.AfterFunc(filterStall, func() { s.cancel(errStalled) })
	defer timeout.Stop()
	<-s.done
}

// withoutLogs takes the logs out of the progress of a build: one JSON client.SolveStatus a write.
type withoutLogs struct{ io.Writer }

func (w withoutLogs) Write(p []byte) (int, error) {
	var status map[string]json.RawMessage
	if err := json.Unmarshal(p, &status); err != nil {
		return len(p), nil // not what we know how to filter
	}
	for _, key := range []string{"logs", "warnings"} {
		delete(status, key)
	}
	text, err := json.Marshal(status)
	if err != nil {
		return len(p), nil
	}
	if _, err := w.Writer.Write(text); err != nil {
		return 0, err
	}
	return len(p), nil
}
