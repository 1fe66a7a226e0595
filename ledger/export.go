package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// Export is the decision whether to export a build's cache to a registry, and what came of it.
type Export struct {
	Job   string      `json:"job"`
	Scope scope.Scope `json:"scope"`
	Ref   string      `json:"ref"`
	At    time.Time   `json:"at"`
	// Spent are the seconds that the steps took that were run, and Bytes what they have written.
	Spent float64 `json:"spent_seconds"`
	Bytes int64   `json:"bytes"`
	Estimate
	Cost float64 `json:"cost_seconds"` // that the export was expected to take
	Pays bool    `json:"pays"`
	Took float64 `json:"took_seconds,omitempty"` // that it took
	// Error is why it was not exported although it pays.
	Error string `json:"error,omitempty"`
}

// Estimate is what is known of a scope's exports.
type Estimate struct {
	Reuse    float64 `json:"reuse"`            // how often a step is found for once that it is run
	Rate     float64 `json:"bytes_per_second"` // of exports
	Overhead float64 `json:"overhead_seconds"` // of an export of nothing
	Measured int     `json:"measured"`         // exports that Rate and Overhead come from
}

// What is assumed of a scope of which nothing is known. As more is known it weighs less.
const (
	assumedReuse    = 1.0
	assumedSteps    = 20       // that weigh as much as the assumption
	assumedRate     = 20 << 20 // bytes a second
	assumedOverhead = 1.0      // seconds
	lastBuilds      = 50       // of which the reuse is measured
	lastExports     = 20
)

// Decide completes e: whether what the build has cost, as often as it is saved elsewhere, is more than the export
// costs.
func (e *Export) Decide(known Estimate) {
	e.Estimate = known
	e.Cost = float64(e.Bytes)/known.Rate + known.Overhead
	e.Pays = e.Spent*known.Reuse > e.Cost
}

// Sentence says what was decided, with the figures.
func (e Export) Sentence() string {
	figures := fmt.Sprintf("%.1f s of steps × %.2f expected reuse = %.1f s saved; %.1f MiB at %.1f MiB/s + %.1f s = %.1f s to export",
		e.Spent, e.Reuse, e.Spent*e.Reuse, float64(e.Bytes)/(1<<20), e.Rate/(1<<20), e.Overhead, e.Cost)
	switch {
	case e.Spent == 0:
		return "the cache is not exported to " + e.Ref + ": no step was run"
	case !e.Pays:
		return "the cache is not exported to " + e.Ref + ", it would not pay: " + figures
	case e.Error != "":
		return "the cache was not exported to " + e.Ref + ": " + e.Error
	case e.Took > 0:
		return fmt.Sprintf("the cache was exported to %s in %.1f s: %s", e.Ref, e.Took, figures)
	}
	return "the cache is exported to " + e.Ref + ", in the background: " + figures
}

// Estimate measures a scope's reuse and exports, by what is written down: it does not wait for what was added just now.
func (l *Ledger) Estimate(ctx context.Context, of scope.Scope) (Estimate, error) {
	out := Estimate{Rate: assumedRate, Overhead: assumedOverhead}
	var run, cached float64
	if err := l.db.QueryRowContext(ctx, `SELECT count(CASE s.state WHEN 'run' THEN 1 END), count(CASE s.state WHEN 'cached' THEN 1 END) FROM steps s
		WHERE s.key <> '' AND json_extract(s.body, '$.numbered') AND json_extract(s.body, '$.source') IS NULL
		AND s.build IN (SELECT seq FROM builds WHERE scope = ? ORDER BY seq DESC LIMIT ?)`, of.ID(), lastBuilds).Scan(&run, &cached); err != nil {
		return out, fmt.Errorf("read the ledger: %w", err)
	}
	out.Reuse = (cached + assumedReuse*assumedSteps) / (run + assumedSteps)
	rows, err := l.db.QueryContext(ctx, `SELECT body FROM exports WHERE scope = ? AND json_extract(body, '$.took_seconds') > 0 ORDER BY seq DESC LIMIT ?`, of.ID(), lastExports)
	if err != nil {
		return out, fmt.Errorf("read the ledger: %w", err)
	}
	exports, err := scanExports(rows)
	if err != nil {
		return out, err
	}
	bytes, seconds := float64(assumedRate), 1.0
	for i, e := range exports {
		bytes, seconds = bytes+float64(e.Bytes), seconds+e.Took
		if i == 0 || e.Took < out.Overhead {
			out.Overhead = e.Took
		}
	}
	out.Rate, out.Measured = bytes/seconds, len(exports)
	return out, nil
}

// Exported notes a decision, later, or what came of it.
func (l *Ledger) Exported(e Export) {
	l.later(write{do: func(tx *sql.Tx) error {
		body, err := text(e)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`DELETE FROM exports WHERE job = ?`, e.Job); err != nil {
			return err
		}
		_, err = tx.Exec(`INSERT INTO exports (job, scope, at, body) VALUES (?, ?, ?, ?)`, e.Job, e.Scope.ID(), nano(e.At), body)
		return err
	}})
}

func (l *Ledger) exports(ctx context.Context, job string) ([]Export, error) {
	rows, err := l.db.QueryContext(ctx, `SELECT body FROM exports WHERE job = ? ORDER BY seq`, job)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return scanExports(rows)
}

func scanExports(rows *sql.Rows) (out []Export, err error) {
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var body string
		var e Export
		if err := rows.Scan(&body); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(body), &e); err != nil {
			return nil, err
		}
		out = append(out, e)
	}
	return out, rows.Err()
}
