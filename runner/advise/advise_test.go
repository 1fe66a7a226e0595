package advise

import (
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

var now = time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)

// many are n jobs of a project, as change makes them.
func many(n int, project, name string, change func(*Job)) (all []Job) {
	for range n {
		j := Job{Project: project, Name: name, Nesting: sandbox.Nesting{sandbox.Container}, Image: "debian", Ended: now}
		j.Result.Usage.Parts = []sandbox.Part{{Name: sandbox.PartScript, Payload: true, CPU: time.Second}}
		j.Result.Times = runner.Times{Accepted: now, Admitted: now, Opened: now.Add(5 * time.Millisecond)}
		if change != nil {
			change(&j)
		}
		all = append(all, j)
	}
	return all
}

func withEngine(e sandbox.EngineUse) func(*Job) {
	return func(j *Job) {
		j.Nesting = sandbox.Nesting{sandbox.Container, sandbox.DinD}
		j.Result.Usage.Engine = &e
		j.Result.Usage.SetUp = []sandbox.Stage{{Name: sandbox.StageEngine, Took: 200 * time.Millisecond}, {Name: sandbox.StageDockerd, Took: time.Second}, {Name: sandbox.StageDisk, Took: time.Hour}}
		j.Result.Usage.TearDown = []sandbox.Stage{{Name: sandbox.StageDockerd, Took: 500 * time.Millisecond}}
	}
}

func images(names ...string) sandbox.EngineUse {
	e := sandbox.EngineUse{Started: true}
	for _, n := range names {
		e.Images = append(e.Images, sandbox.PulledImage{Image: n, Times: 1, Took: 2 * time.Second})
	}
	return e
}

func TestAdvice(t *testing.T) {
	built := images("postgres:17")
	built.Built = true
	for name, c := range map[string]struct {
		jobs    []Job
		kind    Kind
		about   string
		seconds float64
	}{
		"an engine that is never used": {many(20, "a", "lint", withEngine(sandbox.EngineUse{Started: true})), DropEngine, "lint", 20 * 1.5},
		"a service in an engine":       {many(20, "a", "test", withEngine(images("postgres:17"))), Flatten, "postgres:17", 20 * 3.5},
		"an image again and again":     {many(40, "a", "test", withEngine(built)), KeepImage, "postgres:17", 39 * 2},
		"cold sandboxes": {many(20, "a", "test", func(j *Job) {
			j.Result.Times.Opened = j.Result.Times.Admitted.Add(210 * time.Millisecond)
		}), KeepReady, "container with debian", 20 * .2},
		"more memory than is used": {many(20, "a", "test", func(j *Job) {
			j.Limits.Memory, j.Result.Usage.MemoryPeak = 8<<30, 100<<20
			j.Result.Times.Accepted = now.Add(-3 * time.Second)
		}), LowerMemory, "test", 20 * 3},
	} {
		t.Run(name, func(t *testing.T) {
			r := About(c.jobs, now.Add(-time.Hour))
			if len(r.Advice) == 0 || r.Verdict != "" {
				t.Fatalf("%+v", r)
			}
			for _, a := range r.Advice {
				if a.Kind == c.kind {
					if a.Subject != c.about || a.SavedSeconds < c.seconds-.01 || a.SavedSeconds > c.seconds+.01 || a.Jobs != len(c.jobs) || a.Text == "" {
						t.Errorf("%+v, want %s and %.1f s", a, c.about, c.seconds)
					}
					return
				}
			}
			t.Errorf("no such advice in %+v", r.Advice)
		})
	}
}

// TestSilence holds that there is no advice without a reason, and that this is said.
func TestSilence(t *testing.T) {
	running := func(j *Job) { // its engine runs what was built elsewhere
		withEngine(sandbox.EngineUse{Started: true, Built: true})(j)
		j.Result.Usage.Parts = append(j.Result.Usage.Parts, sandbox.Part{Name: sandbox.PartContainers, Payload: true, CPU: time.Second})
	}
	for name, c := range map[string]struct {
		jobs []Job
		want string
	}{
		"too few":             {many(19, "a", "lint", withEngine(sandbox.EngineUse{})), "Too little to go by: of 19 jobs"},
		"none":                {nil, "Too little to go by: of 0 jobs"},
		"nothing is known":    {many(30, "a", "lint", func(j *Job) { j.Result.Usage.Parts = nil }), "Too little to go by: of 0 jobs"},
		"long ago":            {many(30, "a", "lint", func(j *Job) { j.Ended = now.Add(-48 * time.Hour) }), "Too little to go by: of 0 jobs"},
		"all is well":         {many(30, "a", "test", nil), "Nothing to say: in 30 jobs"},
		"the engine is used":  {many(30, "a", "test", running), "Nothing to say"},
		"a few of many names": {append(many(30, "a", "test", nil), many(4, "a", "lint", withEngine(sandbox.EngineUse{}))...), "Nothing to say"},
	} {
		t.Run(name, func(t *testing.T) {
			r := About(c.jobs, now.Add(-time.Hour))
			if len(r.Advice) > 0 || !strings.HasPrefix(r.Verdict, c.want) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestMostFirst(t *testing.T) {
	r := About(append(many(20, "small", "lint", withEngine(sandbox.EngineUse{})), many(40, "large", "lint", withEngine(sandbox.EngineUse{}))...), now.Add(-time.Hour))
	if len(r.Advice) != 2 || r.Advice[0].Project != "large" {
		t.Errorf("%+v", r.Advice)
	}
}
