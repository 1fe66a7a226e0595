// Package apitest has an API server with a backend that keeps everything in memory, for tests of clients.
package apitest

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
)

// Backend is an api.Backend. Jobs run at once, by Run.
type Backend struct {
	// Run is the life of a job. ctx ends when it is cancelled, with runner.ErrCancelled as the cause.
	Run func(ctx context.Context, r runner.Request, secrets []string, log func(runner.Stream, string)) runner.Result

	mu     sync.Mutex
	jobs   []*job
	closed bool
	wg     sync.WaitGroup
}

type job struct {
	info    queue.Info
	secrets []string
	log     []runner.Frame
	changed chan struct{}
	cancel  context.CancelCauseFunc
	reason  string
}

func (j *job) touch() {
	close(j.changed)
	j.changed = make(chan struct{})
}

func (b *Backend) find(id string) (*job, error) {
	if b.closed {
		panic("apitest: the backend is used after the test")
	}
	for _, j := range b.jobs {
		if j.info.ID == id {
			return j, nil
		}
	}
	return nil, fmt.Errorf("job %s: %w", id, queue.ErrNotFound)
}

// Submit runs the jobs.
func (b *Backend) Submit(_ context.Context, requests []runner.Request, secrets map[string][]string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range requests {
		if j, _ := b.find(r.ID); j != nil {
			return fmt.Errorf("%s: %w", r.ID, queue.ErrExists)
		}
	}
	for _, r := range requests {
		ctx, cancel := context.WithCancelCause(context.Background())
		j := &job{info: queue.Info{Request: r, State: runner.Queued, Submitted: time.Now()}, secrets: secrets[r.ID], changed: make(chan struct{}), cancel: cancel}
		b.jobs = append(b.jobs, j)
		b.wg.Go(func() { b.run(ctx, j) })
	}
	return nil
}

func (b *Backend) run(ctx context.Context, j *job) {
	defer j.cancel(nil)
	b.mu.Lock()
	j.info.State = runner.Running
	j.touch()
	b.mu.Unlock()
	res := b.Run(ctx, j.info.Request, j.secrets, func(s runner.Stream, text string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		j.log = append(j.log, runner.Frame{Stream: s, Time: time.Now(), Data: []byte(text)})
		j.touch()
	})
	b.mu.Lock()
	defer b.mu.Unlock()
	if ctx.Err() != nil {
		res = runner.Result{Outcome: runner.Cancelled, Message: j.reason}
	}
	j.info.State, j.info.Result, j.info.Finished = runner.Finished, &res, time.Now()
	j.touch()
}

// Get looks at a job.
func (b *Backend) Get(_ context.Context, id string) (queue.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, err := b.find(id)
	if err != nil {
		return queue.Info{}, err
	}
	return j.info, nil
}

// List lists jobs.
func (b *Backend) List(_ context.Context, f queue.Filter) ([]queue.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var infos []queue.Info
	for _, j := range slices.Backward(b.jobs) {
		i := j.info
		if (f.State == "" || f.State == i.State) && (f.Group == "" || f.Group == i.Group) && (!f.Active || i.State != runner.Finished) &&
			(f.Project == "" || f.Project == i.Scope.Project) && (f.Limit == 0 || len(infos) < f.Limit) {
			infos = append(infos, i)
		}
	}
	return infos, nil
}

// Cancel cancels a job.
func (b *Backend) Cancel(_ context.Context, id, reason string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, err := b.find(id)
	if err != nil {
		return err
	}
	if j.info.State == runner.Finished {
		return fmt.Errorf("job %s: %w", id, queue.ErrFinished)
	}
	if j.reason == "" {
		j.reason = reason
	}
	j.cancel(runner.ErrCancelled)
	return nil
}

// Watch watches a job.
func (b *Backend) Watch(ctx context.Context, id string) (<-chan queue.Info, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	j, err := b.find(id)
	if err != nil {
		return nil, err
	}
	c := make(chan queue.Info)
	go func() {
		defer close(c)
		for {
			b.mu.Lock()
			i, changed := j.info, j.changed
			b.mu.Unlock()
			select {
			case c <- i:
			case <-ctx.Done():
				return
			}
			if i.State == runner.Finished {
				return
			}
			select {
			case <-changed:
			case <-ctx.Done():
				return
			}
		}
	}()
	return c, nil
}

// Logs reads a log.
func (b *Backend) Logs(ctx context.Context, id string, follow bool, fn func(runner.Frame) error) error {
	for n := 0; ; {
		b.mu.Lock()
		j, err := b.find(id)
		if err != nil {
			b.mu.Unlock()
			return err
		}
		frames, changed, finished := j.log[n:], j.changed, j.info.State == runner.Finished
		b.mu.Unlock()
		for _, f := range frames {
			if err := fn(f); err != nil {
				return err
			}
		}
		n += len(frames)
		if len(frames) == 0 && (finished || !follow) {
			return nil
		}
		if len(frames) == 0 {
			select {
			case <-changed:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
}

// Server is a running API.
type Server struct {
	*api.Server
	Socket      string
	Backend     *Backend
	Attachments *api.Attachments
	Workspaces  string // the directory
}

// Start starts an API on a socket in a temporary directory, until the end of the test. configure may be nil.
func Start(t testing.TB, configure func(*api.Config, *Backend)) *Server {
	t.Helper()
	dir := t.TempDir()
	ws, err := api.NewWorkspaces(filepath.Join(dir, "workspaces"), 1<<20, 1000)
	if err != nil {
		t.Fatal(err)
	}
	b := &Backend{Run: func(context.Context, runner.Request, []string, func(runner.Stream, string)) runner.Result {
		return runner.Result{Outcome: runner.Succeeded}
	}}
	c := api.Config{Backend: b, Workspaces: ws, Attachments: api.NewAttachments(), Version: api.VersionInfo{Version: "test"}}
	if configure != nil {
		configure(&c, b)
	}
	s, err := api.New(c)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	if len(socket) > 100 {
		socket = filepath.Join("/tmp", strings.ReplaceAll(filepath.Base(dir), "/", "")+fmt.Sprint(time.Now().UnixNano()))
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
		b.mu.Lock()
		for _, j := range b.jobs {
			j.cancel(runner.ErrCancelled)
		}
		b.mu.Unlock()
		b.wg.Wait()
		s.Close()
	})
	return &Server{Server: s, Socket: socket, Backend: b, Attachments: c.Attachments, Workspaces: filepath.Join(dir, "workspaces")}
}
