//go:build integration

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner/api"
)

// build builds a directory and returns the job; id is what the build has written into /id.
func (d *daemon) build(dir string, flags ...string) (job, id string) {
	d.t.Helper()
	out := filepath.Join(d.t.TempDir(), "out")
	stdout, stderr, code := d.run(slices.Concat([]string{"build", "--json", "-o", "type=local,dest=" + out}, flags, []string{dir})...)
	var jobs []struct{ ID string }
	if err := json.Unmarshal([]byte(stdout), &jobs); code != 0 || err != nil {
		d.t.Fatalf("build %v: exit code %d, %v: %s", flags, code, err, stderr)
	}
	text, err := os.ReadFile(filepath.Join(out, "id"))
	if err != nil {
		d.t.Fatal(err)
	}
	return jobs[0].ID, string(text)
}

func (d *daemon) explain(job string) (e ledger.Explanation) {
	d.t.Helper()
	stdout, stderr, code := d.run("cache", "explain", "--json", job)
	if err := json.Unmarshal([]byte(stdout), &e); code != 0 || err != nil {
		d.t.Fatalf("explain %s: exit code %d, %v: %s", job, code, err, stderr)
	}
	return e
}

// line is what an explanation says of the step whose name contains a text.
func line(t *testing.T, e ledger.Explanation, text string) ledger.Line {
	t.Helper()
	for _, l := range e.Steps {
		if strings.Contains(l.Step, text) {
			return l
		}
	}
	t.Fatalf("no step %q in %+v", text, e.Steps)
	return ledger.Line{}
}

const explained = `FROM debian:bookworm-slim AS build
ARG WHO=world
RUN echo explain $WHO; cat /proc/sys/kernel/random/uuid >/id
COPY src /src
RUN cat /src/* >/all
FROM scratch
COPY --from=build /all /id /
`

// TestExplain changes one thing at a time and asks why what was run.
func TestExplain(t *testing.T) {
	d := startDaemon(t, "")
	dir := files(t, "Dockerfile", explained, "src/a", "1", "src/b", "2", "other", "x")
	first, _ := d.build(dir)
	e := d.explain(first)
	for _, text := range []string{"RUN echo", "COPY src", "RUN cat", "COPY --from"} {
		if l := line(t, e, text); l.Result != ledger.Ran || !strings.Contains(l.Why, "first build of this target in default") && !strings.Contains(l.Why, "an earlier step") {
			t.Errorf("the first build: %+v", l)
		}
	}
	const earlier = "an earlier step was run anew: "
	steps := []string{"RUN echo", "COPY src", "RUN cat", "COPY --from"}
	for _, c := range []struct {
		name   string
		change func()
		flags  []string
		why    map[string]string // of what is run; the rest is in the cache, written by the first job
	}{
		{"nothing", func() {}, nil, nil},
		{"an ignored file", func() { write(t, dir, "other", "y") }, nil, nil},
		{"a build argument", func() {}, []string{"--build-arg", "WHO=you"}, map[string]string{
			"RUN echo": `the build argument WHO has changed: "world" → "you"`, "COPY src": earlier + `"[build 2/4] RUN echo`, "RUN cat": "the build argument WHO has changed", "COPY --from": earlier + `"[build 4/4] RUN cat`,
		}},
		{"files", func() {
			write(t, dir, "src/a", "changed")
			write(t, dir, "src/c", "3")
			_ = os.Remove(filepath.Join(dir, "src/b"))
		}, nil, map[string]string{
			"COPY src": "src/a changed, src/b removed, src/c added", "RUN cat": earlier + `"[build 3/4] COPY src /src": src/a changed`, "COPY --from": earlier + `"[build 3/4] COPY src /src": src/a changed`,
		}},
		{"an instruction", func() {
			write(t, dir, "Dockerfile", strings.Replace(explained, "RUN cat /src/*", "RUN cat /src/a", 1))
		}, nil, map[string]string{
			"RUN cat": `the instruction has changed: "RUN cat /src/* >/all" → "RUN cat /src/a >/all"`, "COPY --from": earlier + `"[build 4/4] RUN cat`,
		}},
		{"no cache", func() {}, []string{"--no-cache"}, map[string]string{
			"RUN echo": "told not to use the cache", "COPY src": "told not", "RUN cat": "told not", "COPY --from": "told not",
		}},
	} {
		if c.name == "files" { // compare with the build without the argument
			d.build(dir)
		}
		c.change()
		job, _ := d.build(dir, c.flags...)
		e := d.explain(job)
		for _, text := range steps {
			l := line(t, e, text)
			if why, ran := c.why[text]; ran {
				if l.Result != ledger.Ran || !strings.Contains(l.Why, why) {
					t.Errorf("%s: %s: got %s: %s; want it to be run: %s", c.name, text, l.Result, l.Why, why)
				}
			} else if l.Result != ledger.Hit || l.Writer == nil || l.Writer.Scope.String() != "default" {
				t.Errorf("%s: %s: got %+v, want a hit that is written by a job", c.name, text, l)
			} else if text == "RUN echo" && l.Writer.Job != first {
				t.Errorf("%s: %s was written by %s, want %s", c.name, text, l.Writer.Job, first)
			}
		}
		if t.Failed() {
			stdout, _, _ := d.run("cache", "explain", job)
			t.Logf("%s:\n%s", c.name, stdout)
		}
	}
	other, _ := d.build(dir, "--project", "another")
	if l := line(t, d.explain(other), "RUN echo"); l.Result != ledger.Ran || l.Writer != nil || !strings.Contains(l.Why, "first build of this target in another") {
		t.Errorf("in another project: %+v", l)
	}
	if _, stderr, code := d.run("cache", "explain", "nosuchjob"); code != 1 || !strings.Contains(stderr, "nosuchjob") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	stdout, stderr, code := d.run("cache", "explain", other)
	if code != 0 || !strings.Contains(stdout, "RUN echo") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
	t.Logf("\n%s", stdout)
}

// TestRevoke revokes a step that has written a random value, and all that was built on it.
func TestRevoke(t *testing.T) {
	d := startDaemon(t, "")
	dir := files(t, "Dockerfile", strings.Replace(explained, "explain", "revoke", 1), "src/a", "1")
	poisoned, value := d.build(dir)
	reader, again := d.build(dir)
	untrusted, copied := d.build(dir, "--untrusted")
	if again != value {
		t.Fatal("the second build was not cached")
	}
	n := line(t, d.explain(poisoned), "RUN echo").N
	entry := fmt.Sprintf("%s:%d", poisoned, n)
	revoke := func(flags ...string) (r api.Revoked) {
		stdout, stderr, code := d.run(append([]string{"cache", "revoke", "--json", entry}, flags...)...)
		if err := json.Unmarshal([]byte(stdout), &r); code != 0 || err != nil {
			t.Fatalf("revoke: exit code %d, %v: %s", code, err, stderr)
		}
		return r
	}
	dry := revoke("--dry-run")
	if _, same := d.build(dir); same != value || len(dry.Removed) < 4 {
		t.Errorf("a dry run has changed something, or would remove too little: %+v", dry)
	}
	r := revoke()
	if len(r.Removed) != len(dry.Removed) || len(r.Users) != 4 || r.Users[0].Job != poisoned || !r.Users[0].Wrote || r.Users[1].Job != reader || r.Users[1].Wrote || r.Users[2].Job != untrusted {
		t.Errorf("revoked: %+v, dry: %+v", r, dry)
	}
	after, anew := d.build(dir)
	e := d.explain(after)
	if l := line(t, e, "RUN echo"); anew == value || l.Result != ledger.Ran || !strings.Contains(l.Why, "revoked") {
		t.Errorf("after the revocation: %q, was %q: %+v", anew, value, l)
	}
	for _, text := range []string{"COPY src", "RUN cat", "COPY --from"} {
		if l := line(t, e, text); l.Result != ledger.Ran {
			t.Errorf("after the revocation: %+v", l)
		}
	}
	if _, anew := d.build(dir, "--untrusted"); anew == value || anew == copied {
		t.Errorf("the untrusted builder still has %q", anew)
	}
	for _, c := range []struct{ entry, want string }{
		{"nosuchjob:1", "does not know"}, {poisoned + ":99", "does not know"}, {poisoned + ":1", "is an image"}, {"../../etc", "JOB:STEP"},
	} {
		if _, stderr, code := d.run("cache", "revoke", c.entry); code == 0 || !strings.Contains(stderr, c.want) {
			t.Errorf("revoke %s: exit code %d: %s", c.entry, code, stderr)
		}
	}
}

// TestSharedBuilds starts the same build several times at once: it is solved once.
func TestSharedBuilds(t *testing.T) {
	d := startDaemon(t, "")
	d.build(files(t, "Dockerfile", "FROM debian:bookworm-slim AS b\nRUN touch /id\nFROM scratch\nCOPY --from=b /id /\n")) // the builder runs
	for name, context := range map[string][]string{
		"with files":    {"Dockerfile", "FROM debian:bookworm-slim AS b\nCOPY a /\nRUN sleep 2; cat /proc/sys/kernel/random/uuid >/id\nFROM scratch\nCOPY --from=b /id /\n", "a", "shared"},
		"without files": {"Dockerfile", "FROM debian:bookworm-slim AS b\nRUN sleep 2; cat /proc/sys/kernel/random/uuid >/id\nFROM scratch\nCOPY --from=b /id /\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, context...)
			var all sync.WaitGroup
			var mu sync.Mutex
			values, jobs := map[string]int{}, []string{}
			began := time.Now()
			for range 8 {
				all.Go(func() {
					job, value := d.build(dir)
					mu.Lock()
					defer mu.Unlock()
					values[value]++
					jobs = append(jobs, job)
				})
			}
			all.Wait()
			results, writer := map[ledger.Result]int{}, ""
			for _, job := range jobs {
				if l := line(t, d.explain(job), "RUN sleep"); l.Result == ledger.Ran {
					writer = job
				}
			}
			for _, job := range jobs {
				l := line(t, d.explain(job), "RUN sleep")
				results[l.Result]++
				if l.Result == ledger.Shared && l.Writer.Job != writer {
					t.Errorf("shared with %s, and %s ran it", l.Writer.Job, writer)
				}
			}
			t.Logf("%d values, %v, %s", len(values), results, time.Since(began))
			if len(values) != 1 || results[ledger.Ran] != 1 || results[ledger.Shared] != 7 {
				t.Errorf("%v, %v: want one value, one run, seven that shared it", values, results)
			}
		})
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
