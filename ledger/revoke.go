package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// Revocation is what is to be removed with a step's result, and who has used it.
type Revocation struct {
	Entry  string        `json:"entry"`
	Step   string        `json:"step,omitempty"` // its name; empty for an entry of another store than BuildKit's
	Scopes []scope.Scope `json:"scopes"`         // whose caches may hold it
	Users  []User        `json:"users"`          // the first one first
	// Traces tell the records of the step and of all that was built on it.
	Traces []Trace `json:"-"`
	// Targets are the keys of what was built with it.
	Targets []string `json:"-"`

	keys []string
}

// User is a job that has run or read what is revoked, or something that was built on it.
type User struct {
	Job    string      `json:"job"`
	Scope  scope.Scope `json:"scope"`
	Target string      `json:"target,omitempty"`
	Digest string      `json:"digest,omitempty"` // of the image that it made
	At     time.Time   `json:"at"`
	Wrote  bool        `json:"wrote,omitempty"` // it has run the step; otherwise it read it
}

// Trace is what a run of a step is known by. Without times it was run before the ledger began, or elsewhere.
type Trace struct {
	Name           string
	Args           []string
	Started, Ended time.Time
}

var (
	jobStep = regexp.MustCompile(`^([a-z0-9][a-z0-9-]*):(\d+)$`)
	hexKey  = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)
)

// Step finds what an entry names: JOB:N as Explain numbers the steps, a vertex or a key. An error wraps ErrUnknown
// if it names nothing that is known.
func (l *Ledger) Step(ctx context.Context, entry string) (Revocation, error) {
	out := Revocation{Entry: entry}
	if err := l.flush(ctx); err != nil {
		return out, err
	}
	var b *stored
	var err error
	var step Step
	if m := jobStep.FindStringSubmatch(entry); m != nil {
		if b, err = l.build(ctx, m[1]); err != nil {
			return out, err
		}
		n, _ := strconv.Atoi(m[2])
		found := false
		for _, s := range b.Steps {
			if s.Numbered || s.Source != "" {
				if n--; n == 0 {
					step, found = s, true
				}
			}
		}
		if !found {
			return out, fmt.Errorf("%s: %w: see 'runnerd cache explain %s'", entry, ErrUnknown, m[1])
		}
	} else if hexKey.MatchString(entry) {
		if b, err = l.find(ctx, `seq = (SELECT max(build) FROM steps WHERE vertex = ? OR key = ?)`, entry, strings.TrimPrefix(entry, "sha256:")); err != nil {
			return out, err
		}
		if b == nil {
			return out, fmt.Errorf("%s: %w", entry, ErrUnknown)
		}
		step = b.Steps[slices.IndexFunc(b.Steps, func(s Step) bool {
			return s.Vertex == entry || s.Key == strings.TrimPrefix(entry, "sha256:")
		})]
	} else {
		return out, fmt.Errorf("%s: %w: name a step as 'runnerd cache explain' shows it, JOB:STEP", entry, ErrUnknown)
	}
	if step.Source != "" {
		return out, fmt.Errorf("%s is an image, which no job has made: revoke the first step that uses it, or remove the image from its registry", entry)
	}
	out.Step = step.Name
	for _, trust := range []scope.Trust{scope.Trusted, scope.Untrusted} {
		out.Scopes = append(out.Scopes, scope.Scope{Forge: b.Scope.Forge, Project: b.Scope.Project, Trust: trust})
	}
	return out, l.descend(ctx, &out, b, step)
}

// descend finds what was built on a step, in all builds of the scopes that have it.
func (l *Ledger) descend(ctx context.Context, r *Revocation, b *stored, step Step) error {
	builds := []*stored{b}
	if step.Key != "" {
		var err error
		if builds, err = l.having(ctx, step.Key, r.Scopes); err != nil {
			return err
		}
	}
	ran := map[string]bool{} // by key
	unseen := map[string]Trace{}
	for _, b := range builds {
		below := make([]bool, len(b.Steps))
		user := User{Job: b.Job, Scope: b.Scope, Target: b.Target, Digest: b.Digest, At: b.Ended}
		for i, s := range b.Steps {
			if s.Vertex == step.Vertex || step.Key != "" && s.Key == step.Key {
				below[i] = true
				user.Wrote = s.State == Run && !sharedRun(builds, b, s)
			}
			for _, in := range s.Inputs {
				below[i] = below[i] || below[in]
			}
			if !below[i] || s.Source != "" {
				continue
			}
			if s.Key != "" && !slices.Contains(r.keys, s.Key) {
				r.keys = append(r.keys, s.Key)
			}
			trace := Trace{Name: s.Name, Args: s.Args, Started: s.Started, Ended: s.Ended}
			if s.State == Run {
				ran[s.Key] = true
				r.Traces = append(r.Traces, trace)
			} else {
				trace.Started, trace.Ended = time.Time{}, time.Time{}
				unseen[s.Key] = trace
			}
		}
		r.Users = append(r.Users, user)
		if !slices.Contains(r.Targets, b.Key) {
			r.Targets = append(r.Targets, b.Key)
		}
	}
	for key, trace := range unseen {
		if !ran[key] {
			r.Traces = append(r.Traces, trace)
		}
	}
	return nil
}

// sharedRun tells whether another build that began before ran the step for b.
func sharedRun(builds []*stored, b *stored, s Step) bool {
	for _, other := range builds {
		if other.seq == b.seq || other.Scope != b.Scope || !other.Began.Before(b.Began) {
			continue
		}
		for _, o := range other.Steps {
			if o.Key == s.Key && o.State == Run && o.Started.Equal(s.Started) {
				return true
			}
		}
	}
	return false
}

// having are the builds of scopes that have a step, in order, without their manifests.
func (l *Ledger) having(ctx context.Context, key string, scopes []scope.Scope) (out []*stored, err error) {
	rows, err := l.db.QueryContext(ctx, `SELECT b.seq, b.body, s.body FROM builds b JOIN steps s ON s.build = b.seq
		WHERE b.scope IN (?, ?) AND b.seq IN (SELECT build FROM steps WHERE key = ?) ORDER BY b.seq, s.n`, scopes[0].ID(), scopes[1].ID(), key)
	if err != nil {
		return nil, fmt.Errorf("read the ledger: %w", err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		var seq int64
		var build, step string
		if err := rows.Scan(&seq, &build, &step); err != nil {
			return nil, err
		}
		if len(out) == 0 || out[len(out)-1].seq != seq {
			b := &stored{seq: seq}
			if err := json.Unmarshal([]byte(build), &b.Build); err != nil {
				return nil, err
			}
			out = append(out, b)
		}
		last := out[len(out)-1]
		last.Steps = append(last.Steps, Step{})
		if err := json.Unmarshal([]byte(step), &last.Steps[len(last.Steps)-1]); err != nil {
			return nil, err
		}
	}
	return out, rows.Err()
}

// Revoked notes that what r says was removed now.
func (l *Ledger) Revoked(ctx context.Context, r Revocation) error {
	at := nano(time.Now())
	l.later(write{do: func(tx *sql.Tx) error {
		for _, s := range r.Scopes {
			for _, key := range r.keys {
				if _, err := tx.Exec(`INSERT INTO revoked (key, scope, at) VALUES (?, ?, ?)`, key, s.ID(), at); err != nil {
					return err
				}
			}
		}
		return nil
	}})
	return l.flush(ctx)
}
