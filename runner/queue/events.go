package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/runner"
)

// Event is a change of a job's state.
type Event struct {
	Time   time.Time // to the millisecond
	State  runner.State
	Detail string // as of Info; of a finished job its outcome and message
}

// eventSchema keeps each change of a job's state, whoever makes it, for as long as the job is kept. A job that waits
// tells a new reason whenever another one comes or goes; of those the first are kept, so that a job has 200 events at
// most.
const eventSchema = `
CREATE TABLE IF NOT EXISTS events (
	seq    INTEGER NOT NULL REFERENCES jobs (seq) ON DELETE CASCADE,
	at     INTEGER NOT NULL, -- unix milliseconds
	state  TEXT NOT NULL,
	detail TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS events_seq ON events (seq);
CREATE TRIGGER IF NOT EXISTS events_submitted AFTER INSERT ON jobs BEGIN
	INSERT INTO events VALUES (NEW.seq, NEW.submitted / 1000000, NEW.state, NEW.detail);
END;
CREATE TRIGGER IF NOT EXISTS events_changed AFTER UPDATE OF state, detail ON jobs
WHEN OLD.state <> NEW.state OR OLD.detail <> NEW.detail AND NEW.state = 'waiting' AND (SELECT count(*) FROM events WHERE seq = NEW.seq) < 190 BEGIN
	INSERT INTO events VALUES (NEW.seq, CAST(unixepoch('subsec') * 1000 AS INTEGER), NEW.state, CASE
		WHEN NEW.state <> 'finished' THEN NEW.detail
		WHEN coalesce(NEW.result ->> 'message', '') = '' THEN coalesce(NEW.result ->> 'outcome', '')
		ELSE (NEW.result ->> 'outcome') || ': ' || (NEW.result ->> 'message') END);
END;
`

// say logs the changes of state that the runner does not see: of jobs that wait here, and that end without their turn.
func (q *Queue) say(i Info) {
	detail := i.Detail
	if i.Result != nil {
		detail = string(i.Result.Outcome) + ": " + i.Result.Message
	}
	q.cfg.Log.Info("job state", "job", i.ID, "source", i.Kind, "project", i.Scope.String(), "state", i.State, "detail", detail)
}

// Events returns the changes of a job's state, the first one first. The error wraps ErrNotFound if there is no such job.
func (q *Queue) Events(ctx context.Context, id string) ([]Event, error) {
	rows, err := q.reader.QueryContext(ctx, "SELECT at, events.state, events.detail FROM events JOIN jobs USING (seq) WHERE id = ? ORDER BY events.rowid", id)
	if err != nil {
		return nil, fmt.Errorf("look up the events of job %s: %w", id, explain(err))
	}
	defer func() { _ = rows.Close() }()
	var events []Event
	for rows.Next() {
		var at int64
		var e Event
		if err := rows.Scan(&at, &e.State, &e.Detail); err != nil {
			return nil, fmt.Errorf("look up the events of job %s: %w", id, explain(err))
		}
		e.Time = time.UnixMilli(at)
		events = append(events, e)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("look up the events of job %s: %w", id, explain(err))
	}
	if len(events) == 0 { // of an older runnerd's job there are none
		if _, err := q.Get(ctx, id); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// Live is how many jobs there are in a state.
type Live struct {
	State runner.State
	Kind  string // as of runner.Request
	Jobs  int
}

// Count counts the jobs that are not finished.
func (q *Queue) Count(ctx context.Context) ([]Live, error) {
	rows, err := q.reader.QueryContext(ctx, "SELECT state, coalesce(request ->> 'kind', ''), count(*) FROM jobs WHERE state <> 'finished' GROUP BY 1, 2")
	if err != nil {
		return nil, fmt.Errorf("count the jobs: %w", explain(err))
	}
	defer func() { _ = rows.Close() }()
	var all []Live
	for rows.Next() {
		var l Live
		if err := rows.Scan(&l.State, &l.Kind, &l.Jobs); err != nil {
			return nil, fmt.Errorf("count the jobs: %w", explain(err))
		}
		all = append(all, l)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("count the jobs: %w", explain(err))
	}
	return all, nil
}
