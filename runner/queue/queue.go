// Package queue is the runner.Source of the work that has no forge's queue behind it: what the API, the
// CLI and webhooks submit. It is also the journal: which jobs there are, where they are, and how they ended.
//
// The order of work is River's, on SQLite in one file; the journal's table lies in the same file, so that
// a job and its place in the queue are written in one transaction.
package queue

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/riverqueue/river"

	"github.com/runnerd/runnerd/runner"
)

// Config is what a Queue needs.
type Config struct {
	// Path is the database's file. It is made if need be, with its directory.
	Path string
	// Logs is where the jobs' logs go.
	Logs *runner.LogStore
	// Resolve makes a request ready to run. It is called when a job's turn has come. An error that wraps
	// sandbox.ErrDenied rejects the job, any other ends it as errored. The secrets the job was submitted
	// with are added to Job.Secrets by the queue; SubmittedSecrets finds them in ctx.
	Resolve func(ctx context.Context, r runner.Request) (runner.Job, error)
	Log     *slog.Logger // nil: nothing is logged

	// KeepJobs and KeepFor bound the finished jobs that are kept, with their logs: the newest KeepJobs,
	// none older than KeepFor. 0: 1000 jobs, 7 days.
	KeepJobs int
	KeepFor  time.Duration
}

// The errors that callers tell apart.
var (
	ErrNotFound = errors.New("no such job")
	ErrExists   = errors.New("there is a job of that id already")
	ErrFinished = errors.New("the job has finished")
	ErrClosed   = fmt.Errorf("the queue is closed: %w", io.EOF)
)

// ReasonInterrupted is the Reason of a job that was running when runnerd was killed.
const ReasonInterrupted = "interrupted"

// ReasonSecretsLost is the Reason of a job that was queued when runnerd stopped, which forgot its secrets.
const ReasonSecretsLost = "secrets_lost"

// Info is what the journal knows of a job.
type Info struct {
	runner.Request
	State  runner.State `json:"state"`
	Detail string       `json:"detail,omitempty"` // why, for people, while it is not finished
	// Result is nil until the job is finished.
	Result    *runner.Result `json:"result,omitempty"`
	Submitted time.Time      `json:"submitted"`
	Finished  time.Time      `json:"finished,omitzero"`
}

// Queue is a runner.Source and the journal of its jobs. Its methods may be called from several goroutines.
type Queue struct {
	cfg    Config
	db     *sql.DB // one connection: SQLite has one writer
	reader *sql.DB
	client *river.Client[*sql.Tx]
	bell   *bell

	interrupted []Info
	retire      chan struct{} // something finished
	stop        context.CancelFunc
	background  sync.WaitGroup

	// submit is held by Submit from before the jobs are in the database until they are in jobs, so that a
	// worker that finds one in the database finds it here.
	submit sync.RWMutex

	mu      sync.Mutex
	jobs    map[string]*job // not finished
	waiting []*job          // not handed out, in order
	changed chan struct{}   // closed when Next should look again
	closed  bool
}

// Open opens the queue and its journal. Jobs that were waiting when the last process ended wait again, in
// the same order; those that had begun are finished as errored, and are what Interrupted returns.
//
// One process at a time may have the file open; whoever calls Open sees to that.
func Open(ctx context.Context, c Config) (*Queue, error) {
	if c.Path == "" || c.Logs == nil || c.Resolve == nil {
		return nil, errors.New("queue: Config.Path, Config.Logs and Config.Resolve are needed")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.KeepJobs <= 0 {
		c.KeepJobs = 1000
	}
	if c.KeepFor <= 0 {
		c.KeepFor = 7 * 24 * time.Hour
	}
	q := &Queue{
		cfg:     c,
		bell:    newBell(),
		retire:  make(chan struct{}, 1),
		jobs:    map[string]*job{},
		changed: make(chan struct{}),
	}
	if err := q.open(ctx); err != nil {
		q.closeFiles()
		return nil, fmt.Errorf("open the queue %s: %w", c.Path, explain(err))
	}
	return q, nil
}

func (q *Queue) open(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Dir(q.cfg.Path), 0o700); err != nil {
		return err
	}
	if err := q.openFiles(ctx); err != nil {
		return err
	}
	if err := q.openRiver(ctx); err != nil {
		return err
	}
	if err := q.recover(ctx); err != nil {
		return err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	q.stop = stop
	if err := q.client.Start(background); err != nil {
		stop()
		return err
	}
	q.background.Go(func() { q.retireLoop(background) })
	return nil
}

// Interrupted returns the jobs that had begun when the last process ended, as they were finished by Open.
// Their sandboxes may have left something behind.
func (q *Queue) Interrupted() []Info { return q.interrupted }

// Close ends the queue. Jobs that wait stay in the database for the next Open; so finish those that were
// handed out before. It is safe to call twice.
func (q *Queue) Close() error {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return nil
	}
	q.closed = true
	q.wake()
	q.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := q.client.StopAndCancel(ctx)
	q.stop()
	q.background.Wait()

	q.mu.Lock()
	for _, j := range q.jobs {
		j.closeWatchers()
		if j.log != nil {
			err = errors.Join(err, j.log.Close())
		}
	}
	q.mu.Unlock()
	return errors.Join(err, q.closeFiles())
}

// wake makes Next look again. q.mu is held.
func (q *Queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}
