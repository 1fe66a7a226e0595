package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// world is a fake GitLab and a runner of it, in virtual time.
type world struct {
	t      *testing.T
	fake   *fake
	dir    string
	config Config
	runner runner.Config
	run    func(ctx context.Context, a Assigned, out runner.Output) (sandbox.Exit, error)

	mu     sync.Mutex
	events []Event
	ran    map[int64]int
	opened int
	local  map[string]*local
	log    lockedText

	manager *Manager
	drain   context.CancelCauseFunc
	ended   chan struct{}
}

// virtual runs a test in a world of its own.
func virtual(t *testing.T, f func(t *testing.T, w *world)) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir)
		defer w.end()
		f(t, w)
	})
}

func newWorld(t *testing.T, dir string) *world {
	w := &world{t: t, fake: newFake(t), dir: dir, ran: map[int64]int{}, local: map[string]*local{}}
	rs, err := OpenRegistrations(filepath.Join(dir, "runners"))
	if err != nil {
		t.Fatal(err)
	}
	if len(rs.List()) == 0 {
		if err := rs.Add(Registration{Name: "r", URL: "https://gitlab.example.com", Token: fakeToken, Limits: sandbox.Limits{CPU: 1000, Memory: 1 << 30}}); err != nil {
			t.Fatal(err)
		}
	}
	w.runner = runner.Config{
		Open:      w.open,
		Policy:    sandbox.Policy{MaxDepth: 1, May: map[sandbox.Kind][]sandbox.Kind{"": {sandbox.Container}}},
		Admission: runner.NewAdmission(runner.Capacity{CPU: 4000, Memory: 8 << 30, Jobs: 4}),
		Drain:     time.Minute,
	}
	w.config = Config{
		Dir: filepath.Join(dir, "gitlab"), Runners: rs, Prepare: w.prepare, Adopt: w.adopt,
		Client: func(r Registration) (*Client, error) {
			return NewClient(r.URL, ClientOptions{Transport: w.fake, Info: spec.Info{Name: "runnerd", Executor: r.Executor}})
		},
		Observe: func(e Event) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.events = append(w.events, e)
		},
		Log: slog.New(slog.NewTextHandler(&w.log, nil)),
	}
	return w
}

// start begins to ask for jobs and to run them.
func (w *world) start() {
	w.t.Helper()
	w.config.Room = w.runner.Admission.WaitRoom
	m, err := NewManager(w.config)
	if err != nil {
		w.t.Fatal(err)
	}
	r, err := runner.New(w.runner)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	w.manager, w.drain, w.ended = m, cancel, make(chan struct{})
	ended := w.ended
	go func() {
		defer close(ended)
		var both sync.WaitGroup
		both.Go(func() { _ = m.Run(ctx) })
		both.Go(func() { _ = r.Run(ctx, m) })
		both.Wait()
	}()
}

// end stops all of it, as SIGTERM does.
func (w *world) end() {
	if w.manager == nil {
		return
	}
	w.drain(errors.New("stopped by terminated"))
	<-w.ended
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := w.manager.Close(ctx); err != nil {
		w.t.Error(err)
	}
	w.manager = nil
}

// nothingLeft fails the test if files of jobs are left.
func (w *world) nothingLeft() {
	w.t.Helper()
	entries, err := os.ReadDir(w.config.Dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		w.t.Errorf("%s is left", e.Name())
	}
}

func (w *world) prepare(_ context.Context, a Assigned) (runner.Job, error) {
	for _, v := range a.Job.Variables {
		if v.Key == "PREPARE" {
			return runner.Job{}, errors.New(v.Value)
		}
	}
	return runner.Job{
		Request: runner.Request{ID: a.ID, Name: a.Job.JobInfo.Name, Kind: "gitlab", Nesting: sandbox.Nesting{sandbox.Container}, Limits: a.Registration.Limits},
		Steps:   []runner.Step{worldStep{w, a}},
	}, nil
}

type worldStep struct {
	w *world
	a Assigned
}

func (worldStep) Name() string { return "script" }

func (s worldStep) Run(ctx context.Context, _ sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	s.w.mu.Lock()
	s.w.ran[s.a.Job.ID]++
	run := s.w.run
	s.w.mu.Unlock()
	if run == nil {
		run = says(fmt.Sprintf("hello from job %d\n", s.a.Job.ID), 0)
	}
	return run(ctx, s.a, out)
}

func (w *world) runs(id int64) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ran[id]
}

// phases are those of a job, in order.
func (w *world) phases(id int64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []string
	for _, e := range w.events {
		if e.Job == id {
			all = append(all, string(e.Phase))
		}
	}
	return strings.Join(all, " ")
}

func (w *world) open(context.Context, runner.Job) (sandbox.Sandbox, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	return worldSandbox{}, nil
}

type worldSandbox struct{}

func (worldSandbox) ID() string { return "fake" }
func (worldSandbox) Exec(context.Context, sandbox.Process) (sandbox.Exit, error) {
	return sandbox.Exit{}, errors.New("the fake runs nothing")
}
func (worldSandbox) Usage(context.Context) (sandbox.Usage, error) { return sandbox.Usage{}, nil }
func (worldSandbox) Close(context.Context) error                  { return nil }

// local is what this machine's journal has of a job.
type local struct {
	w      *world
	mu     sync.Mutex
	text   strings.Builder
	states []runner.State
	result *runner.Result
	cancel chan struct{}
}

func (w *world) adopt(_ context.Context, r runner.Request) (runner.Assignment, error) {
	if err := sandbox.CheckID(r.ID); err != nil {
		return runner.Assignment{}, err
	}
	l := &local{w: w, cancel: make(chan struct{})}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.local[r.ID] = l
	return runner.Assignment{Job: runner.Job{Request: r}, Reporter: l, Cancel: l.cancel}, nil
}

// only is the one job that there was.
func (w *world) only() *local {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.local) != 1 {
		w.t.Fatalf("%d jobs", len(w.local))
	}
	for _, l := range w.local {
		return l
	}
	return nil
}

func (l *local) Stream(runner.Stream) io.Writer { return l }

func (l *local) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.result != nil {
		l.w.t.Errorf("a write after the end: %q", p)
	}
	return l.text.Write(p)
}

func (l *local) State(_ context.Context, s runner.State, _ string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.states = append(l.states, s)
}

func (l *local) Decided(context.Context, runner.Result) error { return nil }

func (l *local) Finish(_ context.Context, r runner.Result) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.result != nil {
		l.w.t.Error("finished twice")
	}
	l.result = &r
	return nil
}

func (l *local) ended() *runner.Result {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.result
}

func (l *local) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

type lockedText struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// wait lets virtual time pass until something is so.
func (w *world) wait(most time.Duration, what string, so func() bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	step := min(max(most/2000, time.Millisecond), time.Second)
	for !so() {
		if time.Since(began) > most {
			w.t.Fatalf("after %s: not yet %s\ncalls:\n%s\nlog:\n%s", most, what, strings.Join(w.fake.calls, "\n"), w.log.String())
		}
		time.Sleep(step)
	}
	return time.Since(began)
}

// over waits until a job has ended at the server.
func (w *world) over(id int64, most time.Duration) fakeJob {
	w.t.Helper()
	w.wait(most, "the end of the job", func() bool {
		s := w.fake.job(id).state
		return s == "success" || s == "failed"
	})
	return w.fake.job(id)
}
