package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/riverqueue/river"

	"github.com/runnerd/runnerd/runner"
)

// recover puts the queue in order after the end of the last process, however it ended. The journal tells
// the truth; River's table is made anew from it, so that nothing can run twice.
func (q *Queue) recover(ctx context.Context) error {
	tx, err := q.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()

	rows, err := tx.QueryContext(ctx, "SELECT "+infoColumns+", cancelled FROM jobs WHERE state <> 'finished' ORDER BY seq")
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	type end struct {
		seq  int64
		info Info
	}
	var ends []end
	for rows.Next() {
		var cancelled string
		seq, secrets, i, err := scanInfo(rows, &cancelled)
		if err != nil {
			return err
		}
		begun := i.State != runner.Queued && i.State != runner.Waiting
		res := afterRestart(begun, cancelled, secrets)
		if res == nil {
			i.State, i.Detail = runner.Queued, ""
			j := newJob(q, seq, i, nil)
			q.jobs[i.ID] = j
			q.waiting = append(q.waiting, j)
			continue
		}
		res.Times.Accepted = i.Submitted
		i.State, i.Detail, i.Finished, i.Result = runner.Finished, "", time.Now(), res
		ends = append(ends, end{seq, i})
		if begun {
			q.interrupted = append(q.interrupted, i)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}

	for _, e := range ends {
		if err := writeResult(ctx, tx, e.seq, e.info); err != nil {
			return fmt.Errorf("write the result of job %s: %w", e.info.ID, err)
		}
		q.say(e.info)
	}
	for _, statement := range []string{"DELETE FROM river_job", "UPDATE jobs SET state = 'queued', detail = '' WHERE state <> 'finished'"} {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return err
		}
	}
	if len(q.waiting) > 0 {
		places := make([]river.InsertManyParams, len(q.waiting))
		for i, j := range q.waiting {
			places[i] = river.InsertManyParams{Args: place{ID: j.info.ID}}
		}
		if _, err := q.client.InsertManyFastTx(ctx, tx, places); err != nil {
			return err
		}
	}
	return tx.Commit()
}

// afterRestart is the result of a job that cannot go on after a restart, nil if it can.
func afterRestart(begun bool, cancelled string, secrets bool) *runner.Result {
	switch {
	case begun:
		return &runner.Result{
			Outcome: runner.Errored, Reason: ReasonInterrupted,
			Message: "runnerd was stopped while this job ran; its sandbox was removed",
		}
	case cancelled != "":
		return &runner.Result{Outcome: runner.Cancelled, Message: cancelled}
	case secrets:
		return &runner.Result{
			Outcome: runner.Errored, Reason: ReasonSecretsLost,
			Message: "runnerd was restarted while this job waited, and secrets are kept in memory only: submit it again, or retry it where it came from",
		}
	}
	return nil
}
