package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// Use is one job's use of an entry of a store other than BuildKit's.
type Use struct {
	Store string      `json:"store"` // such as "ci-cache"
	Entry string      `json:"entry"` // as the store names it
	Job   string      `json:"job"`
	Scope scope.Scope `json:"scope"`
	Wrote bool        `json:"wrote,omitempty"` // otherwise it read
	At    time.Time   `json:"at"`
}

// Read notes, later, that a job has read an entry of a store.
func (l *Ledger) Read(store, entry, job string, of scope.Scope) { l.use(store, entry, job, of, false) }

// Wrote notes, later, that a job has written an entry of a store.
func (l *Ledger) Wrote(store, entry, job string, of scope.Scope) { l.use(store, entry, job, of, true) }

func (l *Ledger) use(store, entry, job string, of scope.Scope, wrote bool) {
	at := time.Now()
	l.later(write{do: func(tx *sql.Tx) error {
		whose, err := text(of)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO uses (store, entry, job, scope, wrote, at) VALUES (?, ?, ?, ?, ?, ?)`, store, entry, job, whose, wrote, nano(at))
		return err
	}})
}

func (l *Ledger) usesOf(ctx context.Context, job string) ([]Use, error) {
	return l.uses(ctx, `job = ?`, job)
}

// Users are the uses of an entry, the first one first, of all stores that have one of that name.
func (l *Ledger) Users(ctx context.Context, entry string) ([]Use, error) {
	if err := l.flush(ctx); err != nil {
		return nil, err
	}
	return l.uses(ctx, `entry = ?`, entry)
}

func (l *Ledger) uses(ctx context.Context, where string, args ...any) (out []Use, err error) {
	rows, err := l.db.QueryContext(ctx, `SELECT store, entry, job, scope, wrote, at FROM uses WHERE `+where+` ORDER BY seq`, args...)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var u Use
		var whose string
		var at int64
		if err := rows.Scan(&u.Store, &u.Entry, &u.Job, &whose, &u.Wrote, &at); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(whose), &u.Scope); err != nil {
			return nil, err
		}
		u.At = time.Unix(0, at)
		out = append(out, u)
	}
	return out, rows.Err()
}
