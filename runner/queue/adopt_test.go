package queue

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
)

// TestAdopt is about jobs of another source.
func TestAdopt(t *testing.T) {
	dir := t.TempDir()
	q := open(t, config(t, dir))
	ctx := t.Context()
	adopt := func(id string) runner.Assignment {
		t.Helper()
		r := request(id)
		r.Kind = "gitlab"
		a, err := q.Adopt(ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	a, b, c := adopt("a"), adopt("b"), adopt("c")
	if _, err := q.Adopt(ctx, request("a")); !errors.Is(err, ErrExists) && err == nil {
		t.Error("the same id twice:", err)
	}
	if _, err := q.Adopt(ctx, request("A?")); err == nil {
		t.Error("a bad id is accepted")
	}
	if i := get(t, q, "a"); i.State != runner.Waiting || i.Kind != "gitlab" {
		t.Errorf("%+v", i)
	}
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if j, err := q.Next(short); err == nil {
		t.Errorf("Next hands out %s", j.ID)
	}

	// It has its log, can be watched and cancelled, and ends.
	if _, err := io.WriteString(a.Stream(runner.Stdout), "hello"); err != nil {
		t.Fatal(err)
	}
	a.State(ctx, runner.Running, "")
	if i := get(t, q, "a"); i.State != runner.Running {
		t.Errorf("%+v", i)
	}
	if err := q.Cancel(ctx, "a", "not needed"); err != nil {
		t.Fatal(err)
	}
	<-a.Cancel
	if err := a.Finish(ctx, runner.Result{Outcome: runner.Cancelled}); err != nil {
		t.Fatal(err)
	}
	if i := get(t, q, "a"); i.State != runner.Finished || i.Result.Message != "not needed" {
		t.Errorf("%+v", i.Result)
	}
	var text string
	if err := q.Logs(ctx, "a", true, func(f runner.Frame) error { text += string(f.Data); return nil }); err != nil || text != "hello" {
		t.Errorf("%q %v", text, err)
	}

	// The next process runs none of them.
	b.State(ctx, runner.Running, "")
	_ = c
	if err := q.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := q.Adopt(ctx, request("d")); !errors.Is(err, ErrClosed) {
		t.Error("after Close:", err)
	}
	q = open(t, config(t, dir))
	for id, reason := range map[string]string{"b": ReasonInterrupted, "c": ReasonSecretsLost} {
		if i := get(t, q, id); i.State != runner.Finished || i.Result.Outcome != runner.Errored || i.Result.Reason != reason {
			t.Errorf("%s: %+v", id, i)
		}
	}
}
