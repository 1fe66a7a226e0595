package ledger

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/scope"
)

var (
	trusted   = scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}
	untrusted = scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Untrusted}
	foreign   = scope.Scope{Forge: scope.Local, Project: "q", Trust: scope.Trusted}
)

func open(t *testing.T, cfg Config) *Ledger {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	cfg.Takes = func(tk Taken) func(string) bool {
		return func(path string) bool { return strings.HasPrefix(path, tk.Paths[0]) }
	}
	l, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// clock gives each build a minute of its own.
type clock struct{ now time.Time }

// build is one of an image, a COPY of a file and a RUN; states are those of the last two.
func (c *clock) build(job string, of scope.Scope, file, command string, states ...string) Build {
	c.now = c.now.Add(time.Minute)
	b := Build{Job: job, Scope: of, Target: "app", Key: "app", Began: c.now, Ended: c.now.Add(30 * time.Second), Steps: []Step{
		{Vertex: "v0", Key: "base1", Name: "[1/3] FROM debian", Source: "docker-image://debian@sha256:1"},
		{Vertex: "sha256:" + job + "1", Key: "copy " + file, Name: "[2/3] COPY a /", Inputs: []int{0}, Takes: []Taken{{From: ".", Paths: []string{"a"}}}, Numbered: true},
		{Vertex: "sha256:" + job + "2", Key: "run " + file + command, Name: "[3/3] RUN " + command, Args: []string{"sh", "-c", command}, Inputs: []int{1}, Numbered: true},
	}, Manifests: map[string]Manifest{".": {Files: map[string]string{"a": file, "b": job}}}}
	for i, s := range states {
		if b.Steps[i+1].State = s; s == Run {
			b.Steps[i+1].Started, b.Steps[i+1].Ended = c.now.Add(time.Second), c.now.Add(time.Duration(i+2)*time.Second)
		}
	}
	return b
}

func explain(t *testing.T, l *Ledger, job string) Explanation {
	t.Helper()
	e, err := l.Explain(t.Context(), job)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestExplain(t *testing.T) {
	c := &clock{time.Now().Add(-time.Hour)}
	for name, test := range map[string]struct {
		builds []Build // the last one is explained
		copied string  // result, writer and part of the reason
		ran    string
	}{
		"first":              {[]Build{c.build("j1", trusted, "x", "make", Run, Run)}, "run: the first build of this target in p", "run: the first build"},
		"another project's":  {[]Build{c.build("j1", foreign, "x", "make", Run, Run), c.build("j2", trusted, "x", "make", Run, Run)}, "run: the first build", "run: the first build"},
		"an untrusted one's": {[]Build{c.build("j1", untrusted, "x", "make", Run, Run), c.build("j2", trusted, "x", "make", Run, Run)}, "run: the first build", "run: the first build"},
		"hit":                {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "x", "make", Cached, Cached)}, "hit by j1: nothing", "hit by j1: nothing"},
		"from above":         {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", untrusted, "x", "make", Cached, Cached)}, "hit by j1: nothing", "hit by j1: nothing"},
		"never from below":   {[]Build{c.build("j1", untrusted, "x", "make", Run, Run), c.build("j2", trusted, "x", "make", Cached, Cached)}, "hit: who wrote it is not known", "hit: who wrote it is not known"},
		"older than it":      {[]Build{c.build("j2", trusted, "x", "make", Cached, Cached)}, "hit: who wrote it is not known", "hit: who wrote it is not known"},
		"a file":             {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "y", "make", Run, Run)}, "run: a changed", `run: an earlier step was run anew: "[2/3] COPY a /": a changed`},
		"the first writer":   {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "y", "make", Run, Run), c.build("j3", trusted, "x", "make", Cached, Cached)}, "hit by j1: nothing", "hit by j1: nothing"},
		"an instruction":     {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "x", "make -j2", Cached, Run)}, "hit by j1: nothing", `run: the instruction has changed: "RUN make" → "RUN make -j2"`},
		"evicted":            {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "x", "make", Cached, Run)}, "hit by j1: nothing", "run: job j1 had the same at"},
		"the same output":    {[]Build{c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", trusted, "y", "make", Run, Cached)}, "run: a changed", `hit: "[2/3] COPY a /" was run anew and left the same files`},
		"not reached":        {[]Build{failed(c.build("j1", trusted, "x", "make", Run))}, "run: the first build", "not reached: the build ended"},
		"not needed":         {[]Build{c.build("j1", trusted, "x", "make", "", Cached)}, "not needed: what uses it", "hit: who wrote it is not known"},
		"a build argument":   {[]Build{with(c.build("j1", trusted, "x", "make", Run, Run), "1"), with(c.build("j2", trusted, "x", "make", Cached, Run), "2")}, "hit by j1: nothing", `run: the build argument V has changed: "1" → "2"`},
		"the base":           {[]Build{c.build("j1", trusted, "x", "make", Run, Run), moving(c.build("j2", trusted, "x", "make", Run, Run))}, "run: debian has moved: sha256:1 → sha256:2", `run: an earlier step was run anew: "[2/3] COPY a /": debian has moved`},
		"no cache":           {[]Build{c.build("j1", trusted, "x", "make", Run, Run), fresh(c.build("j2", trusted, "x", "make", Cached, Run))}, "hit by j1: nothing", "run: the build was told not to use the cache"},
		"too many files":     {[]Build{c.build("j1", trusted, "x", "make", Run, Run), keyless(c.build("j2", trusted, "x", "make", Run, Cached))}, "run: not known: there are too many", "hit: it was found; the files"},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, Config{})
			for _, b := range test.builds {
				l.Add(b)
			}
			e := explain(t, l, test.builds[len(test.builds)-1].Job)
			for i, want := range []string{test.copied, test.ran} {
				got := e.Steps[i+1]
				text := string(got.Result)
				if got.Writer != nil {
					text += " by " + got.Writer.Job
				}
				if text += ": " + got.Why; !strings.HasPrefix(text, want) {
					t.Errorf("%s: got %s, want %s", got.Step, text, want)
				}
			}
		})
	}
}

func failed(b Build) Build { b.Failed = true; return b }

func with(b Build, v string) Build {
	b.Args = map[string]string{"V": v}
	b.Steps[2].Env, b.Steps[2].Key = []string{"V=" + v}, b.Steps[2].Key+v
	return b
}

func moving(b Build) Build {
	b.Steps[0].Source, b.Steps[0].Key = "docker-image://debian@sha256:2", "base2"
	b.Steps[1].Key += " on base2"
	b.Steps[2].Key += " on base2"
	return b
}

func fresh(b Build) Build { b.Steps[2].NoCache = true; return b }

func keyless(b Build) Build {
	b.Steps[1].Key, b.Steps[2].Key = "", ""
	b.Manifests["."] = Manifest{Files: map[string]string{"a": "x"}, Partial: "more than 1 files"}
	return b
}

// TestShared holds that of builds that have a step at once one is said to have run it, and who.
func TestShared(t *testing.T) {
	c := &clock{time.Now().Add(-time.Hour)}
	first := c.build("j1", trusted, "x", "make", Run, Run)
	told, silent, later := c.build("j2", trusted, "x", "make", Run, Run), c.build("j3", trusted, "x", "make"), c.build("j4", trusted, "x", "make", Run, Run)
	told.Began, silent.Began = first.Began.Add(time.Millisecond), first.Began.Add(2*time.Millisecond)
	told.Steps[2], silent.Ended = first.Steps[2], first.Ended
	l := open(t, Config{})
	for _, b := range []Build{silent, told, first, later} { // in the order in which they end
		l.Add(b)
	}
	for job, want := range map[string]Result{"j1": Ran, "j2": Shared, "j3": Shared, "j4": Ran} {
		if got := explain(t, l, job).Steps[2]; got.Result != want || want == Shared && got.Writer.Job != "j1" {
			t.Errorf("%s: %+v, want %s", job, got, want)
		}
	}
}

func TestRevoke(t *testing.T) {
	c := &clock{time.Now().Add(-time.Hour)}
	l := open(t, Config{})
	for _, b := range []Build{
		c.build("j1", trusted, "x", "make", Run, Run), c.build("j2", untrusted, "x", "make", Cached, Cached),
		c.build("j3", trusted, "x", "make test", Cached, Run), c.build("j4", trusted, "y", "make", Run, Run), c.build("j5", foreign, "x", "make", Run, Run),
	} {
		l.Add(b)
	}
	r, err := l.Step(t.Context(), "j2:2")
	if err != nil {
		t.Fatal(err)
	}
	var users, names []string
	for _, u := range r.Users {
		users = append(users, fmt.Sprint(u.Job, " ", u.Wrote))
	}
	for _, tr := range r.Traces {
		names = append(names, tr.Name)
	}
	if !slices.Equal(users, []string{"j1 true", "j2 false", "j3 false"}) || !slices.Equal(names, []string{"[2/3] COPY a /", "[3/3] RUN make", "[3/3] RUN make test"}) || len(r.Scopes) != 2 || r.Scopes[0] != trusted {
		t.Errorf("users %v, traces %v, scopes %v", users, names, r.Scopes)
	}
	if byVertex, err := l.Step(t.Context(), "sha256:"+strings.Repeat("0", 64)); !errors.Is(err, ErrUnknown) {
		t.Errorf("a vertex that is not known: %+v, %v", byVertex, err)
	}
	for _, entry := range []string{"j9:1", "j1:9", "j1:0", "", "../x", "j1:" + strings.Repeat("9", 40)} {
		if _, err := l.Step(t.Context(), entry); !errors.Is(err, ErrUnknown) {
			t.Errorf("%q: %v", entry, err)
		}
	}
	if _, err := l.Step(t.Context(), "j1:1"); err == nil || errors.Is(err, ErrUnknown) {
		t.Errorf("an image: %v", err)
	}
	if err := l.Revoked(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	c.now = time.Now()
	l.Add(c.build("j6", trusted, "x", "make", Run, Run))
	if got := explain(t, l, "j6").Steps[1]; got.Result != Ran || !strings.HasPrefix(got.Why, "a changed") && !strings.Contains(got.Why, "revoked") {
		t.Errorf("%+v", got)
	}
}

// TestRetention holds that the newest builds are kept, and the file stays small.
func TestRetention(t *testing.T) {
	c := &clock{time.Now().Add(-time.Hour)}
	dir := t.TempDir()
	l := open(t, Config{Dir: dir, KeepBuilds: 10})
	for i := range 400 {
		l.Add(c.build(fmt.Sprint("j", i), trusted, "x", "make", Run, Run))
	}
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.transact(l.retire); err != nil {
		t.Fatal(err)
	}
	var builds, steps, manifests int
	if err := l.db.QueryRow(`SELECT (SELECT count(*) FROM builds), (SELECT count(*) FROM steps), (SELECT count(*) FROM manifests)`).Scan(&builds, &steps, &manifests); err != nil {
		t.Fatal(err)
	}
	if builds != 10 || steps != 30 || manifests != 10 {
		t.Errorf("%d builds, %d steps, %d manifests are kept", builds, steps, manifests)
	}
	if _, err := l.Explain(t.Context(), "j0"); !errors.Is(err, ErrUnknown) {
		t.Errorf("the oldest: %v", err)
	}
	explain(t, l, "j399")
	l.cfg.MaxBytes = 1
	if err := l.transact(l.retire); err != nil {
		t.Fatal(err)
	}
	if err := l.db.QueryRow(`SELECT count(*) FROM builds`).Scan(&builds); err != nil || builds >= 10 {
		t.Errorf("%d builds in a ledger that is too large: %v", builds, err)
	}
}

// TestReopened holds that what was added is there after a close, and that a damaged file is no silent loss.
func TestReopened(t *testing.T) {
	dir := t.TempDir()
	c := &clock{time.Now()}
	l := open(t, Config{Dir: dir})
	l.Add(c.build("j1", trusted, "x", "make", Run, Run))
	l.AddLater(func() Build { return c.build("j3", trusted, "y", "make", Run, Run) })
	l.Wrote("ci-cache", "e1", "j1", trusted)
	l.Read("ci-cache", "e1", "j2", untrusted)
	if err := errors.Join(l.Close(), l.Close()); err != nil {
		t.Fatal(err)
	}
	l.Add(c.build("j2", trusted, "x", "make")) // is dropped
	again := open(t, Config{Dir: dir})
	if e := explain(t, again, "j1"); len(e.Steps) != 3 || len(e.Uses) != 1 || !e.Uses[0].Wrote {
		t.Errorf("%+v", e)
	}
	explain(t, again, "j3")
	if users, err := again.Users(t.Context(), "e1"); err != nil || len(users) != 2 || users[1].Job != "j2" || users[1].Scope != untrusted {
		t.Errorf("%+v, %v", users, err)
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "ledger.db"), []byte(strings.Repeat("no database ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), Config{Dir: damaged}); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("a damaged file: %v", err)
	}
}

// TestExport holds that what pays is decided from what was measured.
func TestExport(t *testing.T) {
	l := open(t, Config{})
	known, err := l.Estimate(t.Context(), trusted)
	if err != nil || known.Measured != 0 || known.Reuse != assumedReuse {
		t.Fatalf("%+v, %v", known, err)
	}
	dear, cheap := Export{Job: "j1", Scope: trusted, Spent: 60, Bytes: 100 << 20}, Export{Job: "j2", Scope: trusted, Spent: 2, Bytes: 100 << 20}
	dear.Decide(known)
	cheap.Decide(known)
	if !dear.Pays || cheap.Pays || cheap.Cost != 6 {
		t.Errorf("%+v, %+v", dear, cheap)
	}
	// The registry is slow, and nothing is ever used again.
	c := &clock{time.Now().Add(-time.Hour)}
	for i := range 50 {
		l.Add(c.build(fmt.Sprint("b", i), trusted, fmt.Sprint(i), "make", Run, Run))
	}
	dear.Took = 500
	l.Exported(dear)
	if err := l.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if known, err = l.Estimate(t.Context(), trusted); err != nil || known.Measured != 1 || known.Reuse > 0.2 || known.Rate > 1<<20 {
		t.Errorf("%+v, %v", known, err)
	}
	dear.Took = 0
	if dear.Decide(known); dear.Pays || !strings.Contains(dear.Sentence(), "would not pay: 60.0 s of steps × 0.17") {
		t.Errorf("%s", dear.Sentence())
	}
	if other, err := l.Estimate(t.Context(), foreign); err != nil || other.Measured != 0 {
		t.Errorf("another scope's: %+v, %v", other, err)
	}
}
