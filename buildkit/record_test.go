package buildkit

import (
	"strings"
	"sync"
	"testing"

	"github.com/moby/buildkit/client"
)

// recordOf builds and returns what is recorded of it.
func (d *daemon) recordOf(t testing.TB, b Build) (out Record, err error) {
	t.Helper()
	b.Record = func(r Record) { r.Complete(t.Context()); out = r }
	_, err = b.Run(t.Context(), d.Client, nil)
	return out, err
}

// step is the one whose name contains a text.
func (r Record) step(t testing.TB, text string) Step {
	t.Helper()
	for _, s := range r.Steps {
		if strings.Contains(s.Name, text) {
			return s
		}
	}
	t.Fatalf("no step %q in %+v", text, r.Steps)
	return Step{}
}

const recorded = `FROM debian:bookworm-slim AS build
ARG WHO=world
RUN echo record $WHO; sleep 0.2; cat /proc/sys/kernel/random/uuid >/id
COPY --exclude=skipped src /src
RUN --mount=type=bind,source=conf,target=/conf cat /conf/* /src/* >/all
FROM scratch
COPY --from=build /all /id /
`

// testRecord holds what is known of a build: what each step is made of, that its key stands for that and for
// nothing else, and what came of it.
func testRecord(t *testing.T, d *daemon) {
	files := []string{"Dockerfile", recorded, ".dockerignore", "**/*.log", "src/a", "1", "src/b.log", "x", "src/skipped", "s", "conf/c", "2", "other", "o"}
	first, err := d.recordOf(t, workspace(t, files...))
	if err != nil {
		t.Fatal(err)
	}
	run, copied, bound, last := first.step(t, "RUN echo"), first.step(t, "COPY --exclude"), first.step(t, "RUN --mount"), first.step(t, "COPY --from")
	for _, s := range []Step{run, copied, bound, last} {
		if s.State != StepRun || s.Key == "" || s.Started.IsZero() || !s.Numbered {
			t.Errorf("the first time: %+v", s)
		}
	}
	if from := first.Steps[run.Inputs[0]]; !strings.Contains(from.Source, "@sha256:") || run.Args[2] != "echo record $WHO; sleep 0.2; cat /proc/sys/kernel/random/uuid >/id" {
		t.Errorf("run: %+v of %+v", run, from)
	}
	m := first.Manifests[copied.Takes[0].From]
	if taken := m.Taken(copied.Takes[0]); len(taken) != 2 || taken[1].Path != "src/a" || taken[1].Sum != "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b" {
		t.Errorf("COPY takes %+v of %+v", taken, m)
	}
	for _, f := range m.Files {
		if strings.HasSuffix(f.Path, ".log") || f.Path == "other" {
			t.Errorf("%s is recorded, and was not asked for", f.Path)
		}
	}

	// Another directory with the same files.
	second, err := d.recordOf(t, workspace(t, files...))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range first.Steps {
		if s.Numbered {
			if again := second.step(t, s.Name); again.State != StepCached || again.Key != s.Key {
				t.Errorf("the second time: %+v, not %+v", again, s)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(b *Build, dir string)
		run    []string // what is run again; everything else is not, and has the same key
	}{
		"file":     {func(b *Build, dir string) { writeFile(t, dir, "src/a", "changed") }, []string{"COPY --exclude", "RUN --mount", "COPY --from"}},
		"bound":    {func(b *Build, dir string) { writeFile(t, dir, "conf/c", "changed") }, []string{"RUN --mount", "COPY --from"}},
		"excluded": {func(b *Build, dir string) { writeFile(t, dir, "src/skipped", "changed") }, nil},
		"ignored":  {func(b *Build, dir string) { writeFile(t, dir, "src/c.log", "changed") }, nil},
		"argument": {func(b *Build, dir string) { b.Plan.Targets["default"] = withArg(b.Plan.Targets["default"]) }, []string{"RUN echo", "COPY --exclude", "RUN --mount", "COPY --from"}},
	} {
		b := workspace(t, files...)
		c.change(&b, b.Dir)
		r, err := d.recordOf(t, b)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{"RUN echo", "COPY --exclude", "RUN --mount", "COPY --from"} {
			want := StepCached
			for _, again := range c.run {
				if again == text {
					want = StepRun
				}
			}
			if s := r.step(t, text); s.State != want || (s.Key == first.step(t, text).Key) != (want == StepCached) {
				t.Errorf("%s: %s is %q, want %q: %+v", name, text, s.State, want, s)
			}
		}
	}
	again := workspace(t, files...)
	target := again.Plan.Targets["default"]
	target.NoCache = true
	again.Plan.Targets["default"] = target
	if r, err := d.recordOf(t, again); err != nil || r.step(t, "RUN echo").State != StepRun || !r.step(t, "RUN echo").NoCache {
		t.Errorf("without cache: %+v, %v", r.Steps, err)
	}
	broken, err := d.recordOf(t, workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN exit 3\nRUN true\n"))
	if s := broken.step(t, "RUN exit"); err == nil || s.Error == "" || s.State != StepRun || broken.step(t, "RUN true").State != "" {
		t.Errorf("a broken build: %+v, %v", broken.Steps, err)
	}
	testRecordShared(t, d)
}

// testRecordShared holds what is recorded of a step that several builds have at once: BuildKit runs it for one of
// them, and of the others it says nothing, if local files go into it.
func testRecordShared(t *testing.T, d *daemon) {
	var records [4]Record
	var all sync.WaitGroup
	for i := range records {
		all.Go(func() {
			b := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nCOPY a /\nRUN sleep 1; cat /proc/sys/kernel/random/uuid >/id\n", "a", "shared")
			b.Record = func(r Record) { r.Complete(t.Context()); records[i] = r }
			if _, err := b.Run(t.Context(), d.Client, func(*client.SolveStatus) {}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	var ran []Step
	for _, r := range records {
		s := r.step(t, "RUN sleep")
		if s.Key != records[0].step(t, "RUN sleep").Key || s.State == StepCached {
			t.Errorf("%+v", s)
		}
		if s.State == StepRun {
			ran = append(ran, s)
		}
	}
	if len(ran) != 1 {
		t.Errorf("the step ran in %d builds, and the others waited for it: %+v", len(ran), ran)
	}
}

func withArg(t Target) Target {
	t.Args = map[string]string{"WHO": "you"}
	return t
}
