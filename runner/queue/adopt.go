package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Adopt puts a job that has another source into the journal, so that it is known here like those that were submitted:
// it is listed, has its log, and can be cancelled. It is handed out at once, as an Assignment that has its Request and
// no steps, and Next never returns it. Tell its Reporter of the job's life. A restart never runs it.
func (q *Queue) Adopt(ctx context.Context, r runner.Request) (runner.Assignment, error) {
	if err := sandbox.CheckID(r.ID); err != nil {
		return runner.Assignment{}, fmt.Errorf("adopt: %w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return runner.Assignment{}, fmt.Errorf("adopt job %s: %w", r.ID, err)
	}
	j := newJob(q, 0, Info{Request: r, State: runner.Waiting, Submitted: time.Now()}, nil)
	j.assigned = true

	q.submit.Lock() // not while the queue is closed
	defer q.submit.Unlock()
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return runner.Assignment{}, ErrClosed
	}
	if j.log, err = q.cfg.Logs.Open(r.ID); err != nil {
		return runner.Assignment{}, fmt.Errorf("adopt job %s: %w", r.ID, err)
	}
	close(j.opened)
	// As if it had secrets: what it is made of is not here, so it cannot wait for the next process.
	if err := insertJob(ctx, q.db, j, string(text), true); err != nil {
		return runner.Assignment{}, fmt.Errorf("adopt job %s: %w", r.ID, errors.Join(explain(err), j.log.Close()))
	}
	q.mu.Lock()
	q.jobs[r.ID] = j
	q.mu.Unlock()
	return runner.Assignment{Job: runner.Job{Request: r}, Reporter: j, Cancel: j.cancel}, nil
}
