package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/runner"
)

// How often finished jobs are looked through: after one has finished, but not more often than the first;
// and in any case after the second.
const (
	retireEvery = 10 * time.Second
	retireAtAll = time.Hour
)

func (q *Queue) retireLoop(ctx context.Context) {
	for {
		if err := q.Retire(ctx); err != nil && ctx.Err() == nil {
			q.cfg.Log.Error("old jobs were not removed", "error", err)
		}
		select {
		case <-time.After(retireEvery):
		case <-ctx.Done():
			return
		}
		select {
		case <-q.retire:
		case <-time.After(retireAtAll):
		case <-ctx.Done():
			return
		}
	}
}

// Retire removes the finished jobs that are over Config.KeepJobs or older than Config.KeepFor, with their
// logs. The queue does so by itself.
func (q *Queue) Retire(ctx context.Context) error {
	rows, err := q.reader.QueryContext(ctx, `SELECT seq, id FROM jobs WHERE state = 'finished' AND (finished < ? OR seq NOT IN
		(SELECT seq FROM jobs WHERE state = 'finished' ORDER BY seq DESC LIMIT ?)) ORDER BY seq`, time.Now().Add(-q.cfg.KeepFor).UnixNano(), q.cfg.KeepJobs)
	if err != nil {
		return fmt.Errorf("look for old jobs: %w", explain(err))
	}
	type old struct {
		seq int64
		id  string
	}
	var olds []old
	for rows.Next() {
		var o old
		if err := rows.Scan(&o.seq, &o.id); err != nil {
			_ = rows.Close()
			return fmt.Errorf("look for old jobs: %w", explain(err))
		}
		olds = append(olds, o)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("look for old jobs: %w", explain(err))
	}
	var errs []error
	for _, o := range olds {
		// The log first: a log without a job would never be found again.
		if err := q.cfg.Logs.Remove(o.id); err != nil && !errors.Is(err, runner.ErrNoLog) {
			errs = append(errs, err)
			continue
		}
		if _, err := q.db.ExecContext(ctx, "DELETE FROM jobs WHERE seq = ?", o.seq); err != nil {
			errs = append(errs, fmt.Errorf("remove job %s: %w", o.id, explain(err)))
		}
	}
	if _, err := q.db.ExecContext(ctx, "DELETE FROM river_job WHERE state IN ('completed', 'cancelled', 'discarded')"); err != nil {
		errs = append(errs, fmt.Errorf("remove old places in the queue: %w", explain(err)))
	}
	return errors.Join(errs...)
}
