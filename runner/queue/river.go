package queue

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver"
	"github.com/riverqueue/river/riverdriver/riversqlite"
	"github.com/riverqueue/river/rivermigrate"
)

const (
	riverQueue = "jobs"
	// fetchInterval is how often River looks for jobs that nobody has rung the bell for: never needed, but
	// for an error while it fetched.
	fetchInterval = 5 * time.Second
	// maxWorkers bounds the jobs that River has handed to us, whether they wait in memory or run.
	maxWorkers = 4096
)

// place is a job's place in River's queue; everything else is in the journal.
type place struct {
	ID string `json:"id"`
}

func (place) Kind() string { return "job" }

// One attempt: a job never runs twice. The client takes no part in River's maintenance either, which would
// rescue and retry.
func (place) InsertOpts() river.InsertOpts {
	return river.InsertOpts{Queue: riverQueue, MaxAttempts: 1}
}

func (q *Queue) openRiver(ctx context.Context) error {
	d := driver{riversqlite.New(q.db), q.bell}
	log := q.cfg.Log.With("component", "river")
	m, err := rivermigrate.New(d, &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if _, err := m.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return err
	}
	workers := river.NewWorkers()
	river.AddWorker(workers, &worker{q: q})
	q.client, err = river.NewClient(d, &river.Config{
		Queues:                 map[string]river.QueueConfig{riverQueue: {MaxWorkers: maxWorkers}},
		Workers:                workers,
		FetchCooldown:          river.FetchCooldownMin,
		FetchPollInterval:      fetchInterval,
		JobTimeout:             -1,
		MaxAttempts:            1,
		LeaderElectionDisabled: true,
		Logger:                 slog.New(quiet{log.Handler()}),
	})
	return err
}

// worker holds a job's place in River for as long as the job lives.
type worker struct {
	river.WorkerDefaults[place]
	q *Queue
}

func (w *worker) Work(ctx context.Context, p *river.Job[place]) error {
	q := w.q
	q.submit.RLock()
	q.mu.Lock()
	j := q.jobs[p.Args.ID]
	if j != nil {
		j.arrived = true
		q.wake()
	}
	q.mu.Unlock()
	q.submit.RUnlock()
	if j == nil {
		return nil // it was cancelled before its turn
	}
	select {
	case <-j.done:
		return nil
	case <-ctx.Done():
		return ctx.Err() // the queue is closed; the journal knows what becomes of the job
	}
}

// driver is River's SQLite driver with a bell instead of its notifications, which are rows in a table that
// it polls every 50 ms. The process that inserts jobs is the one that works them, so a channel will do.
type driver struct {
	*riversqlite.Driver
	bell *bell
}

var _ riverdriver.Driver[*sql.Tx] = driver{}

func (d driver) SupportsListener() bool     { return true }
func (d driver) SupportsListenNotify() bool { return false } // no rows in its table

func (d driver) GetListener(*riverdriver.GetListenenerParams) riverdriver.Listener { return d.bell }

// bell tells River that there are new jobs.
type bell struct{ rung chan struct{} }

func newBell() *bell { return &bell{make(chan struct{}, 1)} }

// ring may be called whenever jobs are committed; River fetches until there are no more.
func (b *bell) ring() {
	select {
	case b.rung <- struct{}{}:
	default:
	}
}

func (b *bell) WaitForNotification(ctx context.Context) (*riverdriver.Notification, error) {
	select {
	case <-b.rung:
		return &riverdriver.Notification{Topic: "river_insert", Payload: `{"queue":"` + riverQueue + `"}`}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *bell) Close(context.Context) error            { return nil }
func (b *bell) Connect(context.Context) error          { return nil }
func (b *bell) Listen(context.Context, string) error   { return nil }
func (b *bell) Unlisten(context.Context, string) error { return nil }
func (b *bell) Ping(context.Context) error             { return nil }
func (b *bell) Schema() string                         { return "" }
func (b *bell) SetAfterConnectExec(string)             {}

// quiet passes on what River warns of, but not that jobs were cancelled by Close.
type quiet struct{ slog.Handler }

func (h quiet) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && h.Handler.Enabled(ctx, l)
}

func (h quiet) Handle(ctx context.Context, r slog.Record) error {
	cancelled := false
	r.Attrs(func(a slog.Attr) bool {
		if err, ok := a.Value.Any().(error); ok && errors.Is(err, context.Canceled) {
			cancelled = true
		}
		return !cancelled
	})
	if cancelled {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

func (h quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{h.Handler.WithAttrs(attrs)} }
func (h quiet) WithGroup(name string) slog.Handler       { return quiet{h.Handler.WithGroup(name)} }
