package ledger

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"

	"github.com/runnerd/runnerd/scope"
)

// Add writes down a build, later.
func (l *Ledger) Add(b Build) { l.later(write{do: b.insert}) }

// AddLater writes down a build that it has made when it comes to it, one after the other.
func (l *Ledger) AddLater(made func() Build) {
	var b Build
	l.later(write{make: func() { b = made() }, do: func(tx *sql.Tx) error { return b.insert(tx) }})
}

func (b Build) insert(tx *sql.Tx) error {
	body, err := text(b)
	if err != nil {
		return err
	}
	result, err := tx.Exec(`INSERT INTO builds (job, scope, target, began, ended, body) VALUES (?, ?, ?, ?, ?, ?)`,
		b.Job, b.Scope.ID(), b.Key, nano(b.Began), nano(b.Ended), body)
	if err != nil {
		return fmt.Errorf("job %s: %w", b.Job, err)
	}
	seq, err := result.LastInsertId()
	if err != nil {
		return err
	}
	add, err := tx.Prepare(`INSERT INTO steps (build, n, key, vertex, state, started, ended, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	defer func() { _ = add.Close() }()
	for n, s := range b.Steps {
		if body, err = text(s); err != nil {
			return err
		}
		if _, err := add.Exec(seq, n, s.Key, s.Vertex, s.State, nano(s.Started), nano(s.Ended), body); err != nil {
			return fmt.Errorf("job %s: %w", b.Job, err)
		}
	}
	for name, m := range b.Manifests {
		if err := m.insert(tx, seq, name); err != nil {
			return fmt.Errorf("job %s: %w", b.Job, err)
		}
	}
	return nil
}

// insert keeps a manifest once, however many builds have it.
func (m Manifest) insert(tx *sql.Tx, build int64, name string) error {
	plain, err := json.Marshal(m) // maps are written in order
	if err != nil {
		return err
	}
	hash := sha256.Sum256(plain)
	sum := hex.EncodeToString(hash[:])
	var known bool
	if err := tx.QueryRow(`SELECT EXISTS (SELECT 1 FROM manifests WHERE sum = ?)`, sum).Scan(&known); err != nil {
		return err
	}
	if !known {
		packed, err := pack(plain)
		if err != nil {
			return err
		}
		if _, err := tx.Exec(`INSERT INTO manifests (sum, body) VALUES (?, ?)`, sum, packed); err != nil {
			return err
		}
	}
	_, err = tx.Exec(`INSERT INTO manifests_of (build, name, sum) VALUES (?, ?, ?)`, build, name, sum)
	return err
}

// stored is a build with its number in the ledger.
type stored struct {
	Build
	seq int64
}

// find returns the first build that a query finds: "seq, body", or none.
func (l *Ledger) find(ctx context.Context, where string, args ...any) (*stored, error) {
	var s stored
	var body string
	err := l.db.QueryRowContext(ctx, `SELECT seq, body FROM builds WHERE `+where, args...).Scan(&s.seq, &body)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(body), &s.Build)
	}
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	return &s, l.fill(ctx, &s)
}

// fill reads the steps and manifests of a build.
func (l *Ledger) fill(ctx context.Context, s *stored) error {
	rows, err := l.db.QueryContext(ctx, `SELECT body FROM steps WHERE build = ? ORDER BY n`, s.seq)
	if err != nil {
		return err
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var body string
		var step Step
		if err := rows.Scan(&body); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(body), &step); err != nil {
			return err
		}
		s.Steps = append(s.Steps, step)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	manifests, err := l.db.QueryContext(ctx, `SELECT name, body FROM manifests_of JOIN manifests USING (sum) WHERE build = ?`, s.seq)
	if err != nil {
		return err
	}
	defer func() { _ = manifests.Close() }()
	s.Manifests = map[string]Manifest{}
	for manifests.Next() {
		var name string
		var packed []byte
		var m Manifest
		if err := manifests.Scan(&name, &packed); err != nil {
			return err
		}
		plain, err := unpack(packed)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(plain, &m); err != nil {
			return err
		}
		s.Manifests[name] = m
	}
	return manifests.Err()
}

// build returns a job's build, or an error that wraps ErrUnknown.
func (l *Ledger) build(ctx context.Context, job string) (*stored, error) {
	if err := l.flush(ctx); err != nil {
		return nil, err
	}
	b, err := l.find(ctx, `job = ?`, job)
	if err == nil && b == nil {
		err = fmt.Errorf("job %s: %w: it built nothing, has not ended, or is older than what is kept", job, ErrUnknown)
	}
	return b, err
}

// readable are the ids of the scopes whose caches s may read, its own first.
func readable(s scope.Scope) (own, above string) {
	own = s.ID()
	if a, ok := s.Above(); ok {
		return own, a.ID()
	}
	return own, own
}

// maxManifest bounds what is unpacked, bytes.
const maxManifest = 64 << 20

func pack(plain []byte) ([]byte, error) {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	err := w.Close()
	return out.Bytes(), err
}

func unpack(packed []byte) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(r, maxManifest))
}
