package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

func TestEventsOfAJob(t *testing.T) {
	at := time.Now()
	s := daemonFor(t, func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{}, nil }, func(c *api.Config, _ *apitest.Backend) {
		c.Events = func(context.Context, string) ([]queue.Event, error) {
			return []queue.Event{
				{Time: at, State: runner.Queued},
				{Time: at.Add(1500 * time.Millisecond), State: runner.Waiting, Detail: "waiting for\x1b[2J memory"},
				{Time: at.Add(3 * time.Second), State: runner.Finished, Detail: "failed: exit code 3"},
			}, nil
		}
	})
	code, _, errs := runnerd(t, s.Socket, "", "run", "--detach", "--name", "n", "true")
	expect(t, "run", code, 0, errs)
	_, out, _ := runnerd(t, s.Socket, "", "jobs", "--all", "--json")
	id := strings.Split(strings.SplitAfter(out, `"id": "`)[1], `"`)[0]
	code, out, errs = runnerd(t, s.Socket, "", "events", id[:5])
	expect(t, "events", code, 0, out+errs, "queued    1.5s", "waiting for [2J memory", "finished        failed: exit code 3")
	code, out, errs = runnerd(t, s.Socket, "", "events", id, "--json")
	expect(t, "json", code, 0, out+errs, `"state": "waiting"`)
	code, _, errs = runnerd(t, s.Socket, "", "events", "nobody")
	expect(t, "no job", code, 1, errs, "nobody")
}
