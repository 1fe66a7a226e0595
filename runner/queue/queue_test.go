package queue

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// place where a test's queue lies.
func config(t testing.TB, dir string) Config {
	t.Helper()
	logs, err := runner.NewLogStore(filepath.Join(dir, "logs"), 0)
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Path: filepath.Join(dir, "state", "jobs.db"),
		Logs: logs,
		Log:  slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		Resolve: func(_ context.Context, r runner.Request) (runner.Job, error) {
			return runner.Job{Request: r}, nil
		},
	}
}

func open(t testing.TB, c Config) *Queue {
	t.Helper()
	q, err := Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := q.Close(); err != nil {
			t.Error("close:", err)
		}
	})
	return q
}

func request(id string) runner.Request {
	return runner.Request{ID: id, Scope: scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}, Nesting: sandbox.Nesting{sandbox.Container}, Kind: "script", Payload: []byte(`{}`)}
}

func submit(t testing.TB, q *Queue, ids ...string) {
	t.Helper()
	var rs []runner.Request
	for _, id := range ids {
		rs = append(rs, request(id))
	}
	if err := q.Submit(t.Context(), rs, nil); err != nil {
		t.Fatal(err)
	}
}

func next(t testing.TB, q *Queue) runner.Assignment {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	a, err := q.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func get(t testing.TB, q *Queue, id string) Info {
	t.Helper()
	i, err := q.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func finish(t testing.TB, a runner.Assignment, o runner.Outcome) {
	t.Helper()
	if err := a.Finish(t.Context(), runner.Result{Outcome: o}); err != nil {
		t.Fatal(err)
	}
}

func TestOneJob(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	if err := q.Submit(t.Context(), []runner.Request{request("one")}, map[string][]string{"one": {"hunter22"}}); err != nil {
		t.Fatal(err)
	}
	if i := get(t, q, "one"); i.State != runner.Queued || i.Scope.Project != "p" || i.Submitted.IsZero() {
		t.Errorf("queued: %+v", i)
	}
	a := next(t, q)
	if a.ID != "one" || !slices.Equal(a.Secrets, []string{"hunter22"}) {
		t.Errorf("assignment: %+v", a.Job)
	}
	watch, err := q.Watch(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	if i := <-watch; i.State != runner.Queued {
		t.Errorf("first: %s", i.State)
	}
	a.State(t.Context(), runner.Waiting, "waiting for 1 GiB")
	if i := <-watch; i.State != runner.Waiting || i.Detail != "waiting for 1 GiB" {
		t.Errorf("then: %+v", i)
	}
	if i := get(t, q, "one"); i.State != runner.Waiting || i.Detail != "waiting for 1 GiB" {
		t.Errorf("in the journal: %+v", i)
	}
	a.State(t.Context(), runner.Running, "")
	_, _ = io.WriteString(a.Stream(runner.Stdout), "hello")
	if err := a.Finish(t.Context(), runner.Result{Outcome: runner.Failed, ExitCode: 3}); err != nil {
		t.Fatal(err)
	}
	if err := a.Finish(t.Context(), runner.Result{}); !errors.Is(err, ErrFinished) {
		t.Errorf("finished twice: %v", err)
	}
	last := Info{}
	for i := range watch {
		last = i
	}
	waited, err := q.Wait(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	for name, i := range map[string]Info{"watch": last, "wait": waited, "get": get(t, q, "one")} {
		if i.State != runner.Finished || i.Result == nil || i.Result.ExitCode != 3 || i.Finished.IsZero() || i.Result.Times.Accepted.IsZero() {
			t.Errorf("%s: %+v", name, i)
		}
	}
	var text strings.Builder
	if err := q.Logs(t.Context(), "one", true, func(f runner.Frame) error { text.Write(f.Data); return nil }); err != nil || text.String() != "hello" {
		t.Errorf("log: %q, %v", text.String(), err)
	}
}

func TestOrder(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	var want []string
	for i := range 40 {
		var ids []string
		for k := range 1 + i%7 {
			ids = append(ids, fmt.Sprintf("job-%d-%d", i, k))
		}
		submit(t, q, ids...)
		want = append(want, ids...)
	}
	for _, id := range want {
		if a := next(t, q); a.ID != id {
			t.Fatalf("%s, want %s", a.ID, id)
		}
	}
}

func TestSubmitIsAllOrNothing(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	submit(t, q, "a")
	err := q.Submit(t.Context(), []runner.Request{request("b"), request("a")}, nil)
	if !errors.Is(err, ErrExists) {
		t.Errorf("%v, want ErrExists", err)
	}
	if _, err := q.Get(t.Context(), "b"); !errors.Is(err, ErrNotFound) {
		t.Errorf("half a submission is in the journal: %v", err)
	}
	if err := q.Submit(t.Context(), []runner.Request{request("../x")}, nil); err == nil {
		t.Error("a bad id is taken")
	}
	if err := q.Submit(t.Context(), []runner.Request{request("c"), request("c")}, nil); !errors.Is(err, ErrExists) {
		t.Errorf("twice in one submission: %v", err)
	}
	if a := next(t, q); a.ID != "a" {
		t.Errorf("next: %s", a.ID)
	}
	submit(t, q, "d")
	if a := next(t, q); a.ID != "d" {
		t.Errorf("next: %s", a.ID)
	}
}

func TestCancel(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	submit(t, q, "runs", "waits", "after")
	a := next(t, q)
	if err := q.Cancel(t.Context(), "waits", "not needed"); err != nil {
		t.Fatal(err)
	}
	if i := get(t, q, "waits"); i.State != runner.Finished || i.Result.Outcome != runner.Cancelled || i.Result.Message != "not needed" {
		t.Errorf("a queued job: %+v", i)
	}
	for range 2 {
		if err := q.Cancel(t.Context(), "runs", "by somebody"); err != nil {
			t.Fatal(err)
		}
	}
	<-a.Cancel
	finish(t, a, runner.Cancelled)
	if i := get(t, q, "runs"); i.Result.Message != "by somebody" {
		t.Errorf("a running job: %+v", i.Result)
	}
	if err := q.Cancel(t.Context(), "runs", ""); !errors.Is(err, ErrFinished) {
		t.Errorf("a finished job: %v", err)
	}
	if err := q.Cancel(t.Context(), "nobody", ""); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown job: %v", err)
	}
	if a := next(t, q); a.ID != "after" {
		t.Errorf("next: %s", a.ID)
	}
	var empty int
	if err := q.Logs(t.Context(), "waits", true, func(runner.Frame) error { empty++; return nil }); err != nil || empty != 0 {
		t.Errorf("the log of a job that never ran: %d frames, %v", empty, err)
	}
	if err := q.Logs(t.Context(), "nobody", false, func(runner.Frame) error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("the log of an unknown job: %v", err)
	}
}

func TestResolveFails(t *testing.T) {
	c := config(t, t.TempDir())
	c.Resolve = func(ctx context.Context, r runner.Request) (runner.Job, error) {
		switch r.ID {
		case "denied":
			return runner.Job{}, fmt.Errorf("no: %w", sandbox.ErrDenied)
		case "broken":
			return runner.Job{}, errors.New("no such kind")
		case "panics":
			panic("ouch")
		}
		if s := SubmittedSecrets(ctx); len(s) != 1 {
			return runner.Job{}, fmt.Errorf("secrets: %q", s)
		}
		return runner.Job{Request: r}, nil
	}
	q := open(t, c)
	submit(t, q, "denied", "broken", "panics")
	if err := q.Submit(t.Context(), []runner.Request{request("good")}, map[string][]string{"good": {"s"}}); err != nil {
		t.Fatal(err)
	}
	if a := next(t, q); a.ID != "good" {
		t.Errorf("next: %s", a.ID)
	}
	for id, want := range map[string]runner.Outcome{"denied": runner.Rejected, "broken": runner.Errored, "panics": runner.Errored} {
		if i := get(t, q, id); i.Result == nil || i.Result.Outcome != want {
			t.Errorf("%s: %+v", id, i.Result)
		}
	}
}

func TestList(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	for i := range 6 {
		r := request(fmt.Sprint("job-", i))
		r.Group, r.Scope.Project = fmt.Sprint("g", i%2), fmt.Sprint("p", i%3)
		if err := q.Submit(t.Context(), []runner.Request{r}, nil); err != nil {
			t.Fatal(err)
		}
	}
	finish(t, next(t, q), runner.Succeeded)
	for _, c := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "5 4 3 2 1 0"},
		{Filter{Limit: 2}, "5 4"},
		{Filter{Group: "g1"}, "5 3 1"},
		{Filter{Project: "p0"}, "3 0"},
		{Filter{State: runner.Finished}, "0"},
		{Filter{Active: true, Group: "g0"}, "4 2"},
		{Filter{Group: "' OR 1 --"}, ""},
	} {
		infos, err := q.List(t.Context(), c.f)
		var got []string
		for _, i := range infos {
			got = append(got, strings.TrimPrefix(i.ID, "job-"))
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, %v, want %s", c.f, got, err, c.want)
		}
	}
}

func TestWaitEnds(t *testing.T) {
	c := config(t, t.TempDir())
	q := open(t, c)
	submit(t, q, "one")
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	if _, err := q.Wait(ctx, "one"); !errors.Is(err, gone) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if _, err := q.Wait(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("for an unknown job: %v", err)
	}
	watch, err := q.Watch(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	<-watch
	waited := make(chan error)
	go func() { _, err := q.Next(t.Context()); waited <- err }() // takes the one
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	go func() { _, err := q.Next(t.Context()); waited <- err }()
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; !errors.Is(err, ErrClosed) || !errors.Is(err, io.EOF) {
		t.Errorf("Next of a closed queue: %v", err)
	}
	for range watch { //nolint:revive // it ends
	}
	if err := q.Submit(t.Context(), []runner.Request{request("two")}, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Submit to a closed queue: %v", err)
	}
}

func TestReopen(t *testing.T) {
	c := config(t, t.TempDir())
	q := open(t, c)
	submit(t, q, "done", "waits", "opens", "runs", "closes", "unwanted", "queued-1")
	if err := q.Submit(t.Context(), []runner.Request{request("secret")}, map[string][]string{"secret": {"hunter22"}}); err != nil {
		t.Fatal(err)
	}
	submit(t, q, "queued-2")
	finish(t, next(t, q), runner.Succeeded)
	for _, s := range []runner.State{runner.Waiting, runner.Opening, runner.Running, runner.Closing} {
		next(t, q).State(t.Context(), s, "for something")
	}
	next(t, q).State(t.Context(), runner.Waiting, "for something")
	if err := q.Cancel(t.Context(), "unwanted", "no more"); err != nil {
		t.Fatal(err)
	}
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}

	for round := range 2 {
		q = open(t, c)
		var ids []string
		for _, i := range q.Interrupted() {
			ids = append(ids, i.ID)
		}
		if want := []string{"opens", "runs", "closes"}; round == 0 && !slices.Equal(ids, want) || round == 1 && len(ids) > 0 {
			t.Errorf("round %d: interrupted %v", round, ids)
		}
		for _, id := range []string{"opens", "runs", "closes"} {
			if i := get(t, q, id); i.Result == nil || i.Result.Outcome != runner.Errored || i.Result.Reason != ReasonInterrupted {
				t.Errorf("%s: %+v", id, i)
			}
		}
		if i := get(t, q, "waits"); i.State != runner.Queued || i.Detail != "" {
			t.Errorf("waits: %+v", i)
		}
		if round == 0 {
			if err := q.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	submit(t, q, "new")
	for _, want := range []string{"waits", "queued-1", "queued-2", "new"} {
		a := next(t, q)
		if a.ID != want {
			t.Errorf("next is %s, want %s", a.ID, want)
		}
		finish(t, a, runner.Succeeded)
	}
	if i := get(t, q, "unwanted"); i.Result == nil || i.Result.Outcome != runner.Cancelled || i.Result.Message != "no more" {
		t.Errorf("a job that was cancelled before the restart: %+v", i.Result)
	}
	if i := get(t, q, "secret"); i.Result == nil || i.Result.Outcome != runner.Errored || i.Result.Reason != ReasonSecretsLost {
		t.Errorf("a job whose secrets are lost: %+v", i.Result)
	}
}

func TestRetire(t *testing.T) {
	c := config(t, t.TempDir())
	c.KeepJobs = 3
	q := open(t, c)
	for i := range 8 {
		submit(t, q, fmt.Sprint("job-", i))
		if i < 7 {
			a := next(t, q)
			_, _ = io.WriteString(a.Stream(runner.Stdout), "x")
			finish(t, a, runner.Succeeded)
		}
	}
	if err := q.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	infos, err := q.List(t.Context(), Filter{})
	if err != nil || len(infos) != 4 || infos[0].ID != "job-7" || infos[3].ID != "job-4" {
		t.Errorf("%d jobs are left: %+v, %v", len(infos), infos, err)
	}
	logs, err := os.ReadDir(filepath.Join(filepath.Dir(filepath.Dir(c.Path)), "logs"))
	if err != nil || len(logs) != 3 {
		t.Errorf("logs left: %v, %v", logs, err)
	}
	q.cfg.KeepFor = time.Nanosecond
	if err := q.Retire(t.Context()); err != nil {
		t.Fatal(err)
	}
	if infos, err := q.List(t.Context(), Filter{}); err != nil || len(infos) != 1 {
		t.Errorf("of a time long ago %d jobs are left, %v", len(infos), err)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	c := config(t, t.TempDir())
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.Path, []byte(strings.Repeat("this is no database ", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a file that is no database: %v", err)
	}
	c.Path = filepath.Join(c.Path, "under-a-file")
	if _, err := Open(t.Context(), c); err == nil {
		t.Error("a directory that is a file")
	}
	if _, err := Open(t.Context(), Config{}); err == nil {
		t.Error("the zero Config")
	}
}

// TestFullDisk lets SQLite believe that the disk is full.
func TestFullDisk(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	submit(t, q, "before", "running")
	if _, err := q.db.ExecContext(t.Context(), "PRAGMA max_page_count = 1"); err != nil {
		t.Fatal(err)
	}
	big := request("big")
	big.Payload = []byte(`"` + strings.Repeat("x", 1<<20) + `"`)
	if err := q.Submit(t.Context(), []runner.Request{big}, nil); err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("submit: %v", err)
	}
	next(t, q)
	a := next(t, q)
	err := a.Finish(t.Context(), runner.Result{Outcome: runner.Failed, Message: strings.Repeat("x", 1<<20)})
	if err == nil || !strings.Contains(err.Error(), "disk is full") {
		t.Errorf("finish: %v", err)
	}
	if _, err := q.db.ExecContext(t.Context(), "PRAGMA max_page_count = 1000000"); err != nil {
		t.Fatal(err)
	}
	submit(t, q, "after")
	if a := next(t, q); a.ID != "after" {
		t.Errorf("next: %s", a.ID)
	}
}

type okSandbox struct{ id string }

func (s okSandbox) ID() string { return s.id }
func (s okSandbox) Exec(context.Context, sandbox.Process) (sandbox.Exit, error) {
	return sandbox.Exit{}, nil
}
func (s okSandbox) Usage(context.Context) (sandbox.Usage, error) { return sandbox.Usage{}, nil }
func (s okSandbox) Close(context.Context) error                  { return nil }

type execStep struct{}

func (execStep) Name() string { return "exec" }
func (execStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	_, _ = io.WriteString(out.Stream(runner.Stdout), "hello\n")
	return on.Exec(ctx, sandbox.Process{Args: []string{"true"}})
}

// TestThousandJobs runs them through a Runner, with cancels from several sides.
func TestThousandJobs(t *testing.T) {
	c := config(t, t.TempDir())
	var ran sync.Map
	c.Resolve = func(_ context.Context, r runner.Request) (runner.Job, error) {
		return runner.Job{Request: r, Steps: []runner.Step{execStep{}}}, nil
	}
	q := open(t, c)
	r, err := runner.New(runner.Config{
		Open: func(_ context.Context, j runner.Job) (sandbox.Sandbox, error) {
			if _, twice := ran.LoadOrStore(j.ID, true); twice {
				t.Errorf("job %s runs twice", j.ID)
			}
			return okSandbox{j.ID}, nil
		},
		Policy:    sandbox.DefaultPolicy(),
		Admission: runner.NewAdmission(runner.Capacity{CPU: 1000, Memory: 1 << 30, Jobs: 16}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() { defer close(stopped); _ = r.Run(ctx, q) }()

	const n = 1000
	start := time.Now()
	var outcomes [2]atomic.Int32
	var wg sync.WaitGroup
	for batch := range 10 {
		wg.Go(func() {
			var ids []string
			for i := range n / 10 {
				ids = append(ids, fmt.Sprintf("job-%d-%d", batch, i))
			}
			submit(t, q, ids...)
			for i, id := range ids {
				if i%10 == 3 {
					for range 2 {
						wg.Go(func() {
							if err := q.Cancel(t.Context(), id, "test"); err != nil && !errors.Is(err, ErrFinished) {
								t.Error(err)
							}
						})
					}
				}
				wg.Go(func() {
					i, err := q.Wait(t.Context(), id)
					switch {
					case err != nil:
						t.Error(err)
					case i.Result.Outcome == runner.Succeeded:
						outcomes[0].Add(1)
					case i.Result.Outcome == runner.Cancelled:
						outcomes[1].Add(1)
					default:
						t.Errorf("job %s: %+v", id, i.Result)
					}
				})
			}
		})
	}
	wg.Wait()
	t.Logf("%d succeeded, %d cancelled in %s", outcomes[0].Load(), outcomes[1].Load(), time.Since(start).Round(time.Millisecond))
	if outcomes[0].Load()+outcomes[1].Load() != n || outcomes[0].Load() < n*9/10 {
		t.Error("jobs are missing")
	}
	cancel()
	<-stopped
	if active, err := q.List(t.Context(), Filter{Active: true}); err != nil || len(active) != 0 {
		t.Errorf("still active: %d, %v", len(active), err)
	}
}

// BenchmarkSubmitToNext is the way of one job through the queue; the metric is the median.
func BenchmarkSubmitToNext(b *testing.B) {
	c := config(b, b.TempDir())
	q := open(b, c)
	var times []time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		submit(b, q, fmt.Sprint("job-", i))
		a := next(b, q)
		times = append(times, time.Since(start))
		finish(b, a, runner.Succeeded)
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds()), "p99-µs")
}
