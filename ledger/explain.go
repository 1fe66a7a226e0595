package ledger

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/scope"
)

// Explanation says of a build where each of its steps came from, and why.
type Explanation struct {
	Job    string      `json:"job"`
	Scope  scope.Scope `json:"scope"`
	Target string      `json:"target"`
	// Before is the job that this build is compared with: the last one before it that built the same. Empty: none.
	Before string `json:"before,omitempty"`
	Steps  []Line `json:"steps"`
	// Exports are the decisions whether to export the build's cache to a registry.
	Exports []Export `json:"exports,omitempty"`
	Uses    []Use    `json:"uses,omitempty"` // of other stores
}

// Line is one step of an Explanation.
type Line struct {
	N       int      `json:"n"` // "JOB:N" names the step
	Step    string   `json:"step"`
	Result  Result   `json:"result"`
	Why     string   `json:"why"`
	Files   []Change `json:"files,omitempty"` // local files that differ from those of the build before
	Seconds float64  `json:"seconds"`         // that running it took
	Writer  *Writer  `json:"writer,omitempty"`
	Vertex  string   `json:"vertex"`
	Key     string   `json:"key,omitempty"`
}

// Result is where a step's result came from.
type Result string

// The results of steps.
const (
	Hit        Result = "hit"         // the cache had it
	Shared     Result = "shared"      // another job ran it at the same time, and this one waited for it
	Ran        Result = "run"         // this job ran it
	Base       Result = "base"        // an image; it is not run
	NotNeeded  Result = "not needed"  // what uses it was in the cache
	NotReached Result = "not reached" // the build failed before
)

// Writer is who ran a step.
type Writer struct {
	Job    string      `json:"job"`
	Scope  scope.Scope `json:"scope"`
	Target string      `json:"target"`
	At     time.Time   `json:"at"`
}

// Change is a local file that differs.
type Change struct {
	Path string `json:"path"`
	How  string `json:"how"` // changed, added or removed
}

// Explain tells why each step of a job's build was run or not. An error wraps ErrUnknown if the ledger has no such
// build.
func (l *Ledger) Explain(ctx context.Context, job string) (Explanation, error) {
	b, err := l.build(ctx, job)
	if err != nil {
		return Explanation{}, err
	}
	e := &explainer{ledger: l, build: b, lines: make([]*Line, len(b.Steps))}
	out := Explanation{Job: job, Scope: b.Scope, Target: b.Target}
	own, above := readable(b.Scope)
	for _, of := range []string{own, above} {
		if e.before == nil {
			if e.before, err = l.find(ctx, `target = ? AND scope = ? AND seq < ? ORDER BY seq DESC LIMIT 1`, b.Key, of, b.seq); err != nil {
				return out, err
			}
		}
	}
	if e.before != nil {
		out.Before = e.before.Job
	}
	n := 0
	for i, s := range b.Steps {
		line, err := e.line(ctx, i)
		if err != nil {
			return out, fmt.Errorf("read the ledger: %w", err)
		}
		if s.Numbered || line.Result == Base {
			n++
			line.N = n
			out.Steps = append(out.Steps, *line)
		}
	}
	if out.Exports, err = l.exports(ctx, job); err != nil {
		return out, err
	}
	out.Uses, err = l.usesOf(ctx, job)
	return out, err
}

// explainer explains one build.
type explainer struct {
	ledger *Ledger
	build  *stored
	before *stored // or nil
	lines  []*Line // by step
}

// line explains a step. Its inputs come before it, so that they are explained.
func (e *explainer) line(ctx context.Context, i int) (*Line, error) {
	s := e.build.Steps[i]
	line := &Line{Step: s.Name, Vertex: s.Vertex, Key: s.Key}
	e.lines[i] = line
	if s.Source != "" {
		line.Result, line.Why = Base, e.base(s)
		return line, nil
	}
	other, err := e.meanwhile(ctx, s)
	if err != nil {
		return nil, err
	}
	switch {
	case s.State == Cached:
		line.Result = Hit
	case other != nil && other.state == Run:
		line.Result, line.Writer = Shared, &other.Writer
		line.Why = "job " + other.Job + " ran it at the same time"
		return line, nil
	case other != nil && s.State == "":
		line.Result = Hit
	case s.State == Run:
		line.Result, line.Seconds = Ran, s.Ended.Sub(s.Started).Seconds()
		line.Why, line.Files, err = e.why(ctx, i)
		return line, err
	case e.build.Failed:
		line.Result, line.Why = NotReached, "the build ended before it"
		return line, nil
	default:
		line.Result, line.Why = NotNeeded, "what uses it was in the cache"
		return line, nil
	}
	if line.Writer, err = e.writer(ctx, s.Key); err != nil {
		return nil, err
	}
	line.Why = e.hit(i, line.Writer)
	return line, nil
}

// hit says what is known of a hit.
func (e *explainer) hit(i int, w *Writer) string {
	switch s := e.build.Steps[i]; {
	case w != nil:
		return "nothing that goes into it has changed"
	case s.Key == "":
		return "it was found; the files that go into it are too many to be compared"
	}
	if in, cause := e.anew(i); in >= 0 {
		return fmt.Sprintf("%q was run anew and left the same files (%s)", e.build.Steps[in].Name, cause)
	}
	if e.build.From != "" {
		return "no job of this machine wrote it since the ledger began: from " + e.build.From + ", or older"
	}
	return "who wrote it is not known: it is older than the ledger, or an imported cache had it"
}

// run is a step of another build.
type run struct {
	Writer
	state string
}

// meanwhile finds another job of the scope that had the same step at the same time: BuildKit runs it once, for the
// first of them. Of that job the others are told nothing, or the very same times.
func (e *explainer) meanwhile(ctx context.Context, s Step) (*run, error) {
	if s.Key == "" || s.State == Cached {
		return nil, nil
	}
	own := e.build.Scope.ID()
	if s.State == Run {
		r, err := e.ledger.run(ctx, `s.key = ? AND s.state = 'run' AND s.started = ? AND b.scope = ? AND (b.began, b.seq) < (?, ?) ORDER BY b.began, b.seq LIMIT 1`,
			s.Key, nano(s.Started), own, nano(e.build.Began), e.build.seq)
		return r, err
	}
	return e.ledger.run(ctx, `s.key = ? AND s.state <> '' AND b.scope = ? AND b.seq <> ? AND s.ended >= ? AND s.started <= ? ORDER BY s.state = 'run' DESC, b.began, b.seq LIMIT 1`,
		s.Key, own, e.build.seq, nano(e.build.Began), nano(e.build.Ended))
}

// writer is who ran a step last before this build ended, in a scope that it may read.
func (e *explainer) writer(ctx context.Context, key string) (*Writer, error) {
	if key == "" {
		return nil, nil
	}
	own, above := readable(e.build.Scope)
	r, err := e.ledger.run(ctx, `s.key = ? AND s.state = 'run' AND json_extract(s.body, '$.error') IS NULL AND b.scope IN (?, ?) AND b.seq <> ? AND s.ended <= ? ORDER BY s.ended DESC, b.began, b.seq LIMIT 1`,
		key, own, above, e.build.seq, nano(e.build.Ended))
	if r == nil {
		return nil, err
	}
	return &r.Writer, err
}

func (l *Ledger) run(ctx context.Context, where string, args ...any) (*run, error) {
	var body string
	var r run
	var ended int64
	err := l.db.QueryRowContext(ctx, `SELECT b.body, s.state, s.ended FROM steps s JOIN builds b ON b.seq = s.build WHERE `+where, args...).Scan(&body, &r.state, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	var b Build
	if err == nil {
		err = json.Unmarshal([]byte(body), &b)
	}
	r.Writer = Writer{Job: b.Job, Scope: b.Scope, Target: b.Target, At: time.Unix(0, ended)}
	return &r, err
}
