package queue

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/riverqueue/river"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Submit puts jobs at the end of the queue, in their order, all of them or none. secrets are those of each
// job, by its id; they are kept in memory only. An id that was used before gives an error that wraps
// ErrExists.
func (q *Queue) Submit(ctx context.Context, requests []runner.Request, secrets map[string][]string) error {
	if len(requests) == 0 {
		return nil
	}
	jobs := make([]*job, len(requests))
	texts := make([]string, len(requests))
	now := time.Now()
	for i, r := range requests {
		if err := sandbox.CheckID(r.ID); err != nil {
			return fmt.Errorf("submit: %w", err)
		}
		text, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("submit job %s: %w", r.ID, err)
		}
		texts[i] = string(text)
		jobs[i] = newJob(q, 0, Info{Request: r, State: runner.Queued, Submitted: now}, secrets[r.ID])
	}

	q.submit.Lock()
	defer q.submit.Unlock()
	q.mu.Lock()
	closed := q.closed
	q.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := q.insert(ctx, jobs, texts); err != nil {
		what := "submit job " + requests[0].ID
		if len(requests) > 1 {
			what = fmt.Sprintf("submit %d jobs", len(requests))
		}
		return fmt.Errorf("%s: %w", what, explain(err))
	}
	for _, j := range jobs {
		q.say(j.info)
	}
	q.mu.Lock()
	for _, j := range jobs {
		q.jobs[j.info.ID] = j
		q.waiting = append(q.waiting, j)
	}
	q.mu.Unlock()
	q.bell.ring()
	return nil
}

// insertJob writes a new job to the journal, and its place there to j.
func insertJob(ctx context.Context, db execer, j *job, request string, secrets bool) error {
	r := j.info.Request
	res, err := db.ExecContext(ctx, insertStatement, r.ID, r.Scope.Project, r.Group, request, secrets, j.info.State, j.info.Submitted.UnixNano())
	if err != nil {
		return exists(err, r.ID)
	}
	j.seq, err = res.LastInsertId()
	return err
}

const insertStatement = "INSERT INTO jobs (id, project, grp, request, secrets, state, submitted) VALUES (?, ?, ?, ?, ?, ?, ?)"

// exists makes the error of an id that was used before one that wraps ErrExists.
func exists(err error, id string) error {
	var e *sqlite.Error
	if errors.As(err, &e) && e.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE {
		return fmt.Errorf("%s: %w", id, ErrExists)
	}
	return err
}

func (q *Queue) insert(ctx context.Context, jobs []*job, texts []string) error {
	tx, err := q.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	places := make([]river.InsertManyParams, len(jobs))
	for i, j := range jobs {
		if err := insertJob(ctx, tx, j, texts[i], len(j.secrets) > 0); err != nil {
			return err
		}
		places[i] = river.InsertManyParams{Args: place{ID: j.info.ID}}
	}
	if _, err := q.client.InsertManyFastTx(ctx, tx, places); err != nil {
		return err
	}
	return tx.Commit()
}
