package queue

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"modernc.org/sqlite" // the driver "sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/runnerd/runnerd/runner"
)

// schema is the journal. seq is the order of submission. Times are unix nanoseconds, 0 for never.
const schema = `
CREATE TABLE IF NOT EXISTS jobs (
	seq       INTEGER PRIMARY KEY AUTOINCREMENT,
	id        TEXT NOT NULL UNIQUE,
	project   TEXT NOT NULL,
	grp       TEXT NOT NULL,
	request   TEXT NOT NULL,
	secrets   INTEGER NOT NULL,
	state     TEXT NOT NULL,
	detail    TEXT NOT NULL DEFAULT '',
	cancelled TEXT NOT NULL DEFAULT '', -- why, from when the job was told to end
	result    TEXT NOT NULL DEFAULT '',
	submitted INTEGER NOT NULL,
	finished  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_unfinished ON jobs (seq) WHERE state <> 'finished';
CREATE INDEX IF NOT EXISTS jobs_grp ON jobs (grp) WHERE grp <> '';
`

// busyTimeout is how long a statement waits for another connection's lock.
const busyTimeout = 5 * time.Second

func dsn(path string, pragmas ...string) string {
	v := url.Values{}
	for _, p := range append([]string{fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}, pragmas...) {
		v.Add("_pragma", p)
	}
	v.Set("_txlock", "immediate")
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: v.Encode()}).String()
}

func (q *Queue) openFiles(ctx context.Context) (err error) {
	// In WAL mode with synchronous=NORMAL a commit does not wait for the disk: it survives the death of
	// the process, and a loss of power may undo the last ones, never tear one.
	q.db, err = sql.Open("sqlite", dsn(q.cfg.Path, "journal_mode(WAL)", "synchronous(NORMAL)", "foreign_keys(1)"))
	if err != nil {
		return err
	}
	q.db.SetMaxOpenConns(1)
	if _, err := q.db.ExecContext(ctx, schema+eventSchema); err != nil {
		return err
	}
	if err := os.Chmod(q.cfg.Path, 0o600); err != nil {
		return err
	}
	q.reader, err = sql.Open("sqlite", dsn(q.cfg.Path, "query_only(1)"))
	if err != nil {
		return err
	}
	q.reader.SetMaxOpenConns(4)
	return nil
}

func (q *Queue) closeFiles() error {
	var errs []error
	if q.reader != nil {
		errs = append(errs, q.reader.Close())
	}
	if q.db != nil {
		errs = append(errs, q.db.Close())
	}
	return errors.Join(errs...)
}

// explain says how to mend what SQLite's errors tell.
func explain(err error) error {
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return err
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_FULL:
		return fmt.Errorf("the disk is full: make room where the state directory is: %w", err)
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED:
		return fmt.Errorf("another process has locked the database: is there a second runnerd on this state directory? %w", err)
	case sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT:
		return fmt.Errorf("the file is damaged or no database: move it away to start with an empty queue: %w", err)
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM:
		return fmt.Errorf("the database cannot be opened for writing: check the owner and mode of the state directory: %w", err)
	case sqlite3.SQLITE_IOERR:
		return fmt.Errorf("reading or writing the disk failed: %w", err)
	}
	return err
}

const infoColumns = "seq, request, secrets, state, detail, result, submitted, finished"

// scanInfo reads infoColumns, and what is selected after them into more.
func scanInfo(row interface{ Scan(...any) error }, more ...any) (seq int64, secrets bool, i Info, err error) {
	var request, result string
	var submitted, finished int64
	if err = row.Scan(append([]any{&seq, &request, &secrets, &i.State, &i.Detail, &result, &submitted, &finished}, more...)...); err != nil {
		return
	}
	if err = json.Unmarshal([]byte(request), &i.Request); err != nil {
		err = fmt.Errorf("the request of job %d in the journal: %w", seq, err)
		return
	}
	if result != "" {
		i.Result = new(runner.Result)
		if err = json.Unmarshal([]byte(result), i.Result); err != nil {
			err = fmt.Errorf("the result of job %s in the journal: %w", i.ID, err)
			return
		}
	}
	i.Submitted, i.Finished = moment(submitted), moment(finished)
	return
}

func moment(nano int64) time.Time {
	if nano == 0 {
		return time.Time{}
	}
	return time.Unix(0, nano)
}

// Get returns what is known of a job, or an error that wraps ErrNotFound.
func (q *Queue) Get(ctx context.Context, id string) (Info, error) {
	_, _, i, err := scanInfo(q.reader.QueryRowContext(ctx, "SELECT "+infoColumns+" FROM jobs WHERE id = ?", id))
	if errors.Is(err, sql.ErrNoRows) {
		return Info{}, fmt.Errorf("job %s: %w", id, ErrNotFound)
	}
	if err != nil {
		return Info{}, fmt.Errorf("look up job %s: %w", id, explain(err))
	}
	return i, nil
}

// Filter says which jobs to list. The zero value lists all.
type Filter struct {
	State   runner.State // only those in this state
	Group   string       // only those of this group
	Project string       // only those of this project
	Active  bool         // only those that are not finished
	Limit   int          // at most so many
}

// List returns the jobs that pass f, newest first.
func (q *Queue) List(ctx context.Context, f Filter) ([]Info, error) {
	where, args := []string{"1"}, []any{}
	for _, c := range []struct{ column, value string }{{"state", string(f.State)}, {"grp", f.Group}, {"project", f.Project}} {
		if c.value != "" {
			where, args = append(where, c.column+" = ?"), append(args, c.value)
		}
	}
	if f.Active {
		where = append(where, "state <> 'finished'")
	}
	limit := -1
	if f.Limit > 0 {
		limit = f.Limit
	}
	rows, err := q.reader.QueryContext(ctx, "SELECT "+infoColumns+" FROM jobs WHERE "+strings.Join(where, " AND ")+" ORDER BY seq DESC LIMIT ?", append(args, limit)...)
	if err != nil {
		return nil, fmt.Errorf("list the jobs: %w", explain(err))
	}
	defer func() { _ = rows.Close() }()
	var infos []Info
	for rows.Next() {
		_, _, i, err := scanInfo(rows)
		if err != nil {
			return nil, fmt.Errorf("list the jobs: %w", explain(err))
		}
		infos = append(infos, i)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list the jobs: %w", explain(err))
	}
	return infos, nil
}
