package queue

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
)

func events(t *testing.T, q *Queue, id string) (all []string) {
	t.Helper()
	got, err := q.Events(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	last := time.Time{}
	for _, e := range got {
		if e.Time.Before(last) || time.Since(e.Time) > time.Minute {
			t.Errorf("%s at %s, after %s", e.State, e.Time, last)
		}
		last = e.Time
		all = append(all, string(e.State)+" "+e.Detail)
	}
	return all
}

func TestEvents(t *testing.T) {
	dir := t.TempDir()
	q := open(t, config(t, dir))
	submit(t, q, "a", "b")
	a := next(t, q)
	ctx := t.Context()
	for range 2 { // the same once more is no event
		a.State(ctx, runner.Waiting, "waiting for 1 GiB of memory")
	}
	a.State(ctx, runner.Waiting, "waiting for its turn")
	a.State(ctx, runner.Opening, "")
	a.State(ctx, runner.Running, "")
	a.State(ctx, runner.Closing, "")
	if live, err := q.Count(ctx); err != nil || !slices.Contains(live, Live{runner.Closing, "script", 1}) || !slices.Contains(live, Live{runner.Queued, "script", 1}) {
		t.Error(live, err)
	}
	if err := a.Finish(ctx, runner.Result{Outcome: runner.Failed, Message: "exit code 3"}); err != nil {
		t.Fatal(err)
	}
	want := []string{"queued ", "waiting waiting for 1 GiB of memory", "waiting waiting for its turn", "opening ", "running ", "closing ", "finished failed: exit code 3"}
	if got := events(t, q, "a"); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if _, err := q.Events(ctx, "c"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	b := next(t, q)
	b.State(ctx, runner.Running, "")
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	c := config(t, dir)
	c.KeepJobs = 1
	q = open(t, c)
	if got := events(t, q, "b"); len(got) != 3 || got[2] != "finished errored: runnerd was stopped while this job ran; its sandbox was removed" {
		t.Errorf("%q", got)
	}
	if err := q.Retire(ctx); err != nil {
		t.Fatal(err)
	}
	var left int
	if err := q.reader.QueryRow("SELECT count(*) FROM events").Scan(&left); err != nil || left != 3 {
		t.Errorf("%d events are left, want those of b: %v", left, err)
	}
}

func TestStatesAreLogged(t *testing.T) {
	var log strings.Builder
	c := config(t, t.TempDir())
	c.Log = slog.New(slog.NewTextHandler(&log, nil))
	q := open(t, c)
	submit(t, q, "a")
	if err := q.Cancel(t.Context(), "a", "nobody wants it"); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`msg="job state" job=a source=script project=p state=queued detail=""`,
		`msg="job state" job=a source=script project=p state=finished detail="cancelled: nobody wants it"`,
	} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("%s is missing in:\n%s", want, log.String())
		}
	}
}

func TestEventsAreBounded(t *testing.T) {
	q := open(t, config(t, t.TempDir()))
	submit(t, q, "a")
	a := next(t, q)
	for i := range 1000 {
		a.State(t.Context(), runner.Waiting, fmt.Sprintf("waiting for job %d", i))
	}
	a.State(t.Context(), runner.Running, "")
	finish(t, a, runner.Succeeded)
	got := events(t, q, "a")
	if len(got) > 200 || got[len(got)-1] != "finished succeeded" || got[len(got)-2] != "running " {
		t.Errorf("%d: %q", len(got), got[len(got)-3:])
	}
}
