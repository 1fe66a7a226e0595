// Package ledger remembers what builds were made of and what came of their steps, so that it can be told why a
// step was run, who wrote what another one found in the cache, and who has read it.
package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/runnerd/runnerd/scope"
)

// ErrUnknown is wrapped by errors of who asks for what the ledger does not know.
var ErrUnknown = errors.New("the ledger does not know it")

// Build is what is known of a job that built a target.
type Build struct {
	Job    string            `json:"job"`
	Scope  scope.Scope       `json:"scope"`
	Target string            `json:"target"`
	Key    string            `json:"key"`            // of what is built, whatever it is built from: Dockerfile, stage, platforms
	Args   map[string]string `json:"args,omitempty"` // build arguments that were given
	Digest string            `json:"digest,omitempty"`
	Failed bool              `json:"failed,omitempty"`
	From   string            `json:"from,omitempty"` // the registry's cache that it imported
	Began  time.Time         `json:"began"`
	Ended  time.Time         `json:"ended"`

	Steps     []Step              `json:"-"` // each after its inputs
	Manifests map[string]Manifest `json:"-"` // by Taken.From
}

// Step is a vertex of a build: an instruction of a Dockerfile, or what surrounds it.
type Step struct {
	Vertex   string    `json:"vertex"`           // BuildKit's digest
	Key      string    `json:"key,omitempty"`    // equal for steps that do the same to the same; empty: not known
	Name     string    `json:"name"`             // "[stage 2/5] RUN make"
	Source   string    `json:"source,omitempty"` // what it loads, such as docker-image://…@sha256:…
	Args     []string  `json:"args,omitempty"`
	Env      []string  `json:"env,omitempty"`
	Dir      string    `json:"dir,omitempty"`
	User     string    `json:"user,omitempty"`
	Platform string    `json:"platform,omitempty"`
	Inputs   []int     `json:"inputs,omitempty"` // in Build.Steps
	Takes    []Taken   `json:"takes,omitempty"`  // local files
	NoCache  bool      `json:"no_cache,omitempty"`
	Numbered bool      `json:"numbered,omitempty"` // an instruction
	State    string    `json:"state,omitempty"`    // Run, Cached, or empty: BuildKit said nothing of it
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Error    string    `json:"error,omitempty"`
}

// What BuildKit says of a step.
const (
	Run    = "run"
	Cached = "cached"
)

// Taken are local files that go into a step.
type Taken struct {
	From    string   `json:"from"`              // a key of Build.Manifests
	Paths   []string `json:"paths"`             // with wildcards; "." for all
	Include []string `json:"include,omitempty"` // patterns
	Exclude []string `json:"exclude,omitempty"`
}

// Manifest are the files that a build asked for, by path.
type Manifest struct {
	Files   map[string]string `json:"files"` // path to mode, size and SHA-256 of the contents, as one text
	Partial string            `json:"partial,omitempty"`
}

// Config is what a Ledger needs.
type Config struct {
	Dir string // its own
	// Takes tells which paths of its manifest t takes.
	Takes func(t Taken) func(path string) bool
	// KeepBuilds and KeepFor bound what is kept: the newest builds, none older. MaxBytes bounds the file: what is
	// oldest goes first. 0: 5000 builds, 90 days, 256 MiB.
	KeepBuilds int
	KeepFor    time.Duration
	MaxBytes   int64
	Log        *slog.Logger // nil: nothing is logged
}

// Ledger is safe for concurrent use.
type Ledger struct {
	cfg Config
	db  *sql.DB

	writes chan write
	done   chan struct{}
	mu     sync.RWMutex // guards the closing of writes
	closed bool
}

// write is something to write down, or with done a sign that everything before it is.
type write struct {
	make func() // what do needs, outside of a transaction
	do   func(tx *sql.Tx) error
	done chan struct{}
}

const schema = `
CREATE TABLE IF NOT EXISTS builds (
	seq    INTEGER PRIMARY KEY AUTOINCREMENT,
	job    TEXT NOT NULL UNIQUE,
	scope  TEXT NOT NULL,
	target TEXT NOT NULL, -- Build.Key
	began  INTEGER NOT NULL,
	ended  INTEGER NOT NULL,
	body   TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS builds_target ON builds (target, scope, seq);
CREATE TABLE IF NOT EXISTS steps (
	build   INTEGER NOT NULL REFERENCES builds (seq) ON DELETE CASCADE,
	n       INTEGER NOT NULL,
	key     TEXT NOT NULL,
	vertex  TEXT NOT NULL,
	state   TEXT NOT NULL,
	started INTEGER NOT NULL,
	ended   INTEGER NOT NULL,
	body    TEXT NOT NULL,
	PRIMARY KEY (build, n)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS steps_key ON steps (key, state, ended) WHERE key <> '';
CREATE INDEX IF NOT EXISTS steps_vertex ON steps (vertex);
CREATE TABLE IF NOT EXISTS manifests (
	sum  TEXT PRIMARY KEY,
	body BLOB NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifests_of (
	build INTEGER NOT NULL REFERENCES builds (seq) ON DELETE CASCADE,
	name  TEXT NOT NULL,
	sum   TEXT NOT NULL,
	PRIMARY KEY (build, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS manifests_of_sum ON manifests_of (sum);
CREATE TABLE IF NOT EXISTS revoked (
	key   TEXT NOT NULL,
	scope TEXT NOT NULL,
	at    INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS revoked_key ON revoked (key);
CREATE TABLE IF NOT EXISTS uses (
	seq   INTEGER PRIMARY KEY AUTOINCREMENT,
	store TEXT NOT NULL,
	entry TEXT NOT NULL,
	job   TEXT NOT NULL,
	scope TEXT NOT NULL,
	wrote INTEGER NOT NULL,
	at    INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS uses_entry ON uses (entry, store);
CREATE INDEX IF NOT EXISTS uses_job ON uses (job);
CREATE TABLE IF NOT EXISTS exports (
	seq   INTEGER PRIMARY KEY AUTOINCREMENT,
	job   TEXT NOT NULL,
	scope TEXT NOT NULL,
	at    INTEGER NOT NULL,
	body  TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS exports_job ON exports (job);
CREATE INDEX IF NOT EXISTS exports_scope ON exports (scope, seq);
`

// pending is how many writes may wait. Who comes later waits with them.
const pending = 256

// Open opens the ledger, making it if there is none. A damaged one is an error that says so.
func Open(ctx context.Context, cfg Config) (_ *Ledger, err error) {
	if cfg.KeepBuilds <= 0 {
		cfg.KeepBuilds = 5000
	}
	if cfg.KeepFor <= 0 {
		cfg.KeepFor = 90 * 24 * time.Hour
	}
	if cfg.MaxBytes <= 0 {
		cfg.MaxBytes = 256 << 20
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the ledger's directory: %w", err)
	}
	path := filepath.Join(cfg.Dir, "ledger.db")
	options := url.Values{"_txlock": {"immediate"}, "_pragma": {
		"busy_timeout(5000)", "journal_mode(WAL)", "synchronous(NORMAL)", "foreign_keys(1)",
	}}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: options.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(4)
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(fmt.Errorf("open the ledger %s: %w: if the file is damaged, move it away; it then begins anew", path, err), db.Close())
	}
	if err := os.Chmod(path, fs.FileMode(0o600)); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	l := &Ledger{cfg: cfg, db: db, writes: make(chan write, pending), done: make(chan struct{})}
	go l.write()
	return l, nil
}

// Close writes down what waits and closes the ledger. What is added later is dropped. Safe to call twice.
func (l *Ledger) Close() error {
	l.mu.Lock()
	closed := l.closed
	l.closed = true
	if !closed {
		close(l.writes)
	}
	l.mu.Unlock()
	<-l.done
	return l.db.Close()
}

// write writes in the background, as many at once as wait: who adds something does not wait for it.
func (l *Ledger) write() {
	defer close(l.done)
	builds := 0
	for w := range l.writes {
		all := []write{w}
		for more := true; more && len(all) < pending; {
			select {
			case w, ok := <-l.writes:
				if more = ok; ok {
					all = append(all, w)
				}
			default:
				more = false
			}
		}
		for _, w := range all { // one that fails takes no other along
			if w.do != nil {
				builds++
				if w.make != nil {
					w.make()
				}
				if err := l.transact(w.do); err != nil {
					l.cfg.Log.Error("the ledger has lost a record", "error", err)
				}
			}
		}
		if builds >= 100 {
			builds = 0
			if err := l.transact(l.retire); err != nil {
				l.cfg.Log.Error("the ledger was not cleaned up", "error", err)
			}
		}
		for _, w := range all {
			if w.done != nil {
				close(w.done)
			}
		}
	}
}

func (l *Ledger) transact(do func(tx *sql.Tx) error) (err error) {
	tx, err := l.db.BeginTx(context.Background(), nil)
	if err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	return tx.Commit()
}

func (l *Ledger) later(w write) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.closed {
		if w.done != nil {
			close(w.done)
		}
		return
	}
	l.writes <- w
}

// flush waits until what was added before is written down.
func (l *Ledger) flush(ctx context.Context) error {
	done := make(chan struct{})
	l.later(write{done: done})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retire removes what is beyond the bounds.
func (l *Ledger) retire(tx *sql.Tx) error {
	before := time.Now().Add(-l.cfg.KeepFor).UnixNano()
	if _, err := tx.Exec(`DELETE FROM builds WHERE ended < ? OR seq <= (SELECT seq FROM builds ORDER BY seq DESC LIMIT 1 OFFSET ?)`, before, l.cfg.KeepBuilds); err != nil {
		return err
	}
	for _, table := range []string{"uses", "exports"} {
		if _, err := tx.Exec(`DELETE FROM `+table+` WHERE at < ? OR seq <= (SELECT seq FROM `+table+` ORDER BY seq DESC LIMIT 1 OFFSET ?)`, before, 20*l.cfg.KeepBuilds); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(`DELETE FROM revoked WHERE at < ?`, before); err != nil {
		return err
	}
	var bytes int64
	row := tx.QueryRow(`SELECT (page_count - freelist_count) * page_size FROM pragma_page_count, pragma_freelist_count, pragma_page_size`)
	if err := row.Scan(&bytes); err != nil {
		return err
	}
	if bytes > l.cfg.MaxBytes { // a quarter, so that this is not done each time
		if _, err := tx.Exec(`DELETE FROM builds WHERE seq IN (SELECT seq FROM builds ORDER BY seq LIMIT max(1, (SELECT count(*) FROM builds) / 4))`); err != nil {
			return err
		}
	}
	_, err := tx.Exec(`DELETE FROM manifests WHERE sum NOT IN (SELECT sum FROM manifests_of)`)
	return err
}

// nano is a time as it is stored: 0 for never.
func nano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func text(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}
