package gitlabtest

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// flow runs a pipeline of these jobs, in the stages build, test, deploy.
func flow(t *testing.T, s *Server, jobs ...*ciyaml.Job) int64 {
	t.Helper()
	for _, j := range jobs {
		if j.When == "" {
			j.When = "on_success"
		}
	}
	p, err := s.Run(t.Context(), RunOptions{Pipeline: &ciyaml.Pipeline{Stages: []string{"build", "test", "deploy"}, Jobs: jobs}})
	if err != nil {
		t.Fatal(err)
	}
	return p.ID
}

// statuses are those of a pipeline's jobs, as name=status.
func statuses(s *Server, id int64) string {
	var out []string
	r := s.Report()
	i := slices.IndexFunc(r.Pipelines, func(p Pipeline) bool { return p.ID == id })
	for _, j := range r.Of(r.Pipelines[i]) {
		out = append(out, j.Name+"="+string(j.Status))
	}
	slices.Sort(out)
	return string(r.Pipelines[i].Status) + ": " + strings.Join(out, " ")
}

func check(t *testing.T, s *Server, id int64, want string) {
	t.Helper()
	if got := statuses(s, id); got != want {
		t.Errorf("%s\nnot %s", got, want)
	}
}

func TestStages(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build"}, &ciyaml.Job{Name: "b2", Stage: "build"},
		&ciyaml.Job{Name: "t1", Stage: "test"}, &ciyaml.Job{Name: "d1", Stage: "deploy"},
	)
	check(t, s, id, "pending: b1=pending b2=pending d1=created t1=created")
	b1, b2 := a.take(), a.take()
	check(t, s, id, "running: b1=running b2=running d1=created t1=created")
	a.succeed(b2)
	check(t, s, id, "running: b1=running b2=success d1=created t1=created")
	a.succeed(b1)
	a.succeed(a.take())
	a.succeed(a.take())
	check(t, s, id, "success: b1=success b2=success d1=success t1=success")
	if p, err := s.WaitPipeline(t.Context(), id); err != nil || p.Finished.IsZero() {
		t.Errorf("%+v %v", p, err)
	}
	clean(t, s)
}

func TestFailures(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build"},
		&ciyaml.Job{Name: "t1", Stage: "test"},
		&ciyaml.Job{Name: "t2", Stage: "test", When: "on_failure"},
		&ciyaml.Job{Name: "d1", Stage: "deploy"},
		&ciyaml.Job{Name: "d2", Stage: "deploy", When: "always"},
	)
	b1 := a.take()
	a.fail(b1, 1)
	check(t, s, id, "running: b1=failed d1=created d2=created t1=skipped t2=pending")
	a.succeed(a.take())
	a.succeed(a.take())
	check(t, s, id, "failed: b1=failed d1=skipped d2=success t1=skipped t2=success")
	again, err := s.Retry(b1.ID)
	if err != nil || again.ID == b1.ID || again.RetryOf != b1.ID {
		t.Fatalf("%+v %v", again, err)
	}
	check(t, s, id, "running: b1=pending d1=created d2=success t1=created t2=success")
	a.succeed(a.take())
	check(t, s, id, "running: b1=success d1=created d2=success t1=pending t2=success")
	a.succeed(a.take())
	a.succeed(a.take())
	check(t, s, id, "success: b1=success d1=success d2=success t1=success t2=success")

	id = flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build", AllowFailure: ciyaml.AllowFailure{ExitCodes: []int{42}}},
		&ciyaml.Job{Name: "t1", Stage: "test", AllowFailure: ciyaml.AllowFailure{ExitCodes: []int{42}}},
		&ciyaml.Job{Name: "d1", Stage: "deploy"},
	)
	a.fail(a.take(), 42)
	check(t, s, id, "running: b1=failed d1=created t1=pending")
	a.fail(a.take(), 43)
	check(t, s, id, "failed: b1=failed d1=skipped t1=failed")
	clean(t, s)
}

func TestRetry(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build", Retry: ciyaml.Retry{Max: 2, When: []string{"script_failure"}}},
		&ciyaml.Job{Name: "t1", Stage: "test"},
	)
	for range 2 {
		a.fail(a.take(), 1)
		check(t, s, id, "pending: b1=pending t1=created")
	}
	a.fail(a.take(), 1)
	check(t, s, id, "failed: b1=failed t1=skipped")
	if n := len(s.Jobs()); n != 4 {
		t.Errorf("%d jobs", n)
	}
	clean(t, s)
}

func TestNeeds(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build"}, &ciyaml.Job{Name: "b2", Stage: "build"},
		&ciyaml.Job{Name: "t1", Stage: "test", DAG: true, Needs: []ciyaml.Need{{Job: "b1", Artifacts: true}}, Dependencies: []string{"b1"}},
		&ciyaml.Job{Name: "t2", Stage: "test", DAG: true},
		&ciyaml.Job{Name: "d1", Stage: "deploy", DAG: true, Needs: []ciyaml.Need{{Job: "b2"}}},
	)
	check(t, s, id, "pending: b1=pending b2=pending d1=created t1=created t2=pending")
	b1, b2 := a.take(), a.take()
	a.succeed(b1)
	check(t, s, id, "running: b1=success b2=running d1=created t1=pending t2=pending")
	a.fail(b2, 1)
	check(t, s, id, "running: b1=success b2=failed d1=skipped t1=pending t2=pending")
	clean(t, s)
}

func TestManual(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build", When: "manual", AllowFailure: ciyaml.AllowFailure{Always: true}},
		&ciyaml.Job{Name: "t1", Stage: "test", When: "manual"},
		&ciyaml.Job{Name: "d1", Stage: "deploy"},
	)
	check(t, s, id, "manual: b1=manual d1=created t1=manual")
	byName := map[string]int64{}
	for _, j := range s.Jobs() {
		byName[j.Name] = j.ID
	}
	if err := s.Play(byName["d1"]); err == nil {
		t.Error("a job that is not manual can be played")
	}
	if err := s.Play(byName["t1"]); err != nil {
		t.Error(err)
	}
	a.succeed(a.take())
	check(t, s, id, "running: b1=manual d1=pending t1=success")
	a.succeed(a.take())
	check(t, s, id, "success: b1=manual d1=success t1=success")
	if err := s.Play(byName["b1"]); err != nil {
		t.Error(err)
	}
	a.succeed(a.take())
	check(t, s, id, "success: b1=success d1=success t1=success")
	clean(t, s)
}

func TestDelayedAndResourceGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		id := flow(t, s,
			&ciyaml.Job{Name: "b1", Stage: "build", When: "delayed", StartIn: time.Hour},
			&ciyaml.Job{Name: "b2", Stage: "build", ResourceGroup: "prod"},
			&ciyaml.Job{Name: "b3", Stage: "build", ResourceGroup: "prod"},
		)
		check(t, s, id, "pending: b1=scheduled b2=pending b3=waiting_for_resource")
		a.succeed(a.take())
		check(t, s, id, "running: b1=scheduled b2=success b3=pending")
		a.succeed(a.take())
		check(t, s, id, "scheduled: b1=scheduled b2=success b3=success")
		time.Sleep(time.Hour)
		synctest.Wait()
		check(t, s, id, "running: b1=pending b2=success b3=success")
		clean(t, s)
	})
}

func TestCancelPipeline(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	id := flow(t, s,
		&ciyaml.Job{Name: "b1", Stage: "build"}, &ciyaml.Job{Name: "b2", Stage: "build"},
		&ciyaml.Job{Name: "t1", Stage: "test", When: "always"},
	)
	b1 := a.take()
	if err := s.CancelPipeline(id); err != nil {
		t.Error(err)
	}
	check(t, s, id, "running: b1=canceling b2=canceled t1=canceled")
	want(t, a.final(b1, spec.Update{State: spec.Failed, FailureReason: spec.JobCanceled}, ""), http.StatusOK)
	check(t, s, id, "canceled: b1=canceled b2=canceled t1=canceled")
	clean(t, s)
}
