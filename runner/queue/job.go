package queue

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/runnerd/runnerd/runner"
)

// job is a job that is not finished. It is the runner.Reporter of its assignment. What can change is
// guarded by Queue.mu.
type job struct {
	q       *Queue
	seq     int64
	secrets []string
	cancel  chan struct{} // closed when nobody wants the job any more
	done    chan struct{} // closed when it is finished

	info      Info
	arrived   bool // River has handed it to us
	assigned  bool // it was handed out, or finished without
	cancelled string
	isCancel  bool
	finishing bool
	watchers  map[chan Info]func() bool // what ends the watch of the context
	log       *runner.Log
	opened    chan struct{} // closed when log is set
}

func newJob(q *Queue, seq int64, i Info, secrets []string) *job {
	return &job{
		q: q, seq: seq, info: i, secrets: secrets,
		cancel: make(chan struct{}), done: make(chan struct{}), opened: make(chan struct{}), watchers: map[chan Info]func() bool{},
	}
}

// Stream is the job's log.
func (j *job) Stream(s runner.Stream) io.Writer { return j.log.Stream(s) }

// State writes the job's state to the journal.
func (j *job) State(ctx context.Context, s runner.State, detail string) {
	q := j.q
	if _, err := q.db.ExecContext(ctx, "UPDATE jobs SET state = ?, detail = ? WHERE seq = ? AND state <> 'finished'", s, detail, j.seq); err != nil {
		q.cfg.Log.Error("the state of a job was not written", "id", j.info.ID, "state", s, "error", explain(err))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if j.finishing {
		return
	}
	j.info.State, j.info.Detail = s, detail
	j.tell()
}

// Decided does nothing: who waits for the job here is to find nothing of it left.
func (j *job) Decided(context.Context, runner.Result) error { return nil }

// Finish writes the job's result to the journal. A second call does nothing and returns an error that
// wraps ErrFinished. Should writing fail, those who wait are told the result nevertheless.
func (j *job) Finish(ctx context.Context, r runner.Result) error {
	q := j.q
	q.mu.Lock()
	if j.finishing {
		q.mu.Unlock()
		return fmt.Errorf("job %s: %w", j.info.ID, ErrFinished)
	}
	j.finishing = true
	if r.Outcome == runner.Cancelled && r.Reason == "" && j.cancelled != "" {
		r.Message = j.cancelled
	}
	r.Times.Accepted = j.info.Submitted
	info := j.info
	q.mu.Unlock()

	info.State, info.Detail, info.Result, info.Finished = runner.Finished, "", &r, time.Now()
	err := writeResult(ctx, q.db, j.seq, info)
	if err != nil {
		err = fmt.Errorf("write the result of job %s: %w", info.ID, explain(err))
		q.cfg.Log.Error("the result of a job was not written", "id", info.ID, "error", err)
	}
	if j.log != nil {
		_ = j.log.Close()
	} else {
		q.say(info)
	}

	q.mu.Lock()
	j.info = info
	j.tell()
	j.closeWatchers()
	delete(q.jobs, info.ID)
	q.mu.Unlock()
	close(j.done)
	select {
	case q.retire <- struct{}{}:
	default:
	}
	return err
}

func writeResult(ctx context.Context, db execer, seq int64, i Info) error {
	text, err := json.Marshal(i.Result)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, "UPDATE jobs SET state = 'finished', detail = '', result = ?, finished = ? WHERE seq = ? AND state <> 'finished'",
		string(text), i.Finished.UnixNano(), seq)
	return err
}

// execer is the database or a transaction.
type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Cancel ends a job: one that waits in the queue is finished as cancelled at once, of any other
// Assignment.Cancel is closed. reason is a sentence for people. The error wraps ErrNotFound or ErrFinished
// if there is nothing to cancel; cancelling twice is no error.
func (q *Queue) Cancel(ctx context.Context, id, reason string) error {
	if reason == "" {
		reason = "the job was cancelled"
	}
	q.mu.Lock()
	j := q.jobs[id]
	if j == nil {
		q.mu.Unlock()
		if _, err := q.Get(ctx, id); err != nil {
			return err
		}
		return fmt.Errorf("job %s: %w", id, ErrFinished)
	}
	if j.isCancel {
		q.mu.Unlock()
		return nil
	}
	j.isCancel, j.cancelled = true, reason
	close(j.cancel)
	queued := !j.assigned
	j.assigned = true
	if queued {
		q.wake()
	}
	q.mu.Unlock()
	if !queued {
		// Should the process end before the job does, the next one must not run it.
		if _, err := q.db.ExecContext(context.WithoutCancel(ctx), "UPDATE jobs SET cancelled = ? WHERE seq = ?", reason, j.seq); err != nil {
			return fmt.Errorf("write that job %s is cancelled: %w", id, explain(err))
		}
		return nil
	}
	return j.Finish(context.WithoutCancel(ctx), runner.Result{Outcome: runner.Cancelled, Message: reason})
}
