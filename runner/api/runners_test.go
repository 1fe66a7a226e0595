package api_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// fakeRunners keeps runners in memory.
type fakeRunners struct {
	mu    sync.Mutex
	known map[string]api.Runner
	err   error // of the next call
}

func (f *fakeRunners) take() error {
	err := f.err
	f.err = nil
	return err
}

func (f *fakeRunners) Runners(context.Context) (all []api.Runner, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.known {
		all = append(all, r)
	}
	return all, f.take()
}

func (f *fakeRunners) Register(_ context.Context, n api.NewRunner) (api.Runner, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := api.Runner{Name: n.Name, URL: n.URL, Ephemeral: n.Ephemeral, Sandbox: sandbox.Nesting{sandbox.Container}}
	if err := f.take(); err != nil {
		return r, err
	}
	f.known[n.Name] = r
	return r, nil
}

func (f *fakeRunners) Verify(_ context.Context, name string) (api.Runner, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known[name], f.take()
}

func (f *fakeRunners) Rotate(ctx context.Context, name string) (api.Runner, error) {
	return f.Verify(ctx, name)
}

func (f *fakeRunners) Unregister(_ context.Context, name string, _ bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.known, name)
	return f.take()
}

func (f *fakeRunners) Forget(name string) { _ = f.Unregister(context.Background(), name, true) }

func (f *fakeRunners) has(name string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, ok := f.known[name]
	return ok
}

func TestRunners(t *testing.T) {
	f := &fakeRunners{known: map[string]api.Runner{}}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Runners = f })
	c := client.New(s.Socket)
	ctx := t.Context()
	if all, err := c.Runners(ctx); err != nil || all == nil || len(all) != 0 {
		t.Error(all, err)
	}
	n := api.NewRunner{Forge: "gitlab", Name: "a", URL: "https://gitlab.example.com", Token: "glrt-12345678"}
	if r, err := c.Register(ctx, n); err != nil || r.Name != "a" {
		t.Error(r, err)
	}
	if _, err := c.Runner(ctx, "b"); err == nil {
		t.Error("there is no b")
	} else {
		status(t, err, http.StatusNotFound, "no runner")
	}
	for _, c := range []struct {
		err    error
		status int
	}{
		{&api.ForgeProblem{Status: 403, Text: "x"}, 403},
		{&api.ForgeProblem{Status: 401, Text: "x"}, 403},
		{&api.ForgeProblem{Status: 410, Text: "x"}, 410},
		{&api.ForgeProblem{Status: 422, Text: "x"}, 422},
		{&api.ForgeProblem{Status: 404, Text: "x"}, 502},
		{&api.ForgeProblem{Status: 500, Text: "x"}, 502},
		{&api.ForgeProblem{Text: "x"}, 502},
		{fmt.Errorf("x: %w", api.ErrRunnerExists), 409},
		{fmt.Errorf("x: %w", api.ErrInvalid), 422},
		{errors.New("x"), 500},
	} {
		f.err = c.err
		_, err := client.New(s.Socket).Register(ctx, n)
		status(t, err, c.status, "x")
	}
	n.Token = "short"
	_, err := c.Register(ctx, n)
	status(t, err, http.StatusUnprocessableEntity, "token")
	n.Token, n.Forge = "glrt-12345678", "svnhub"
	_, err = c.Register(ctx, n)
	status(t, err, http.StatusUnprocessableEntity, "forge")
	if _, err := c.Runner(ctx, "..%2f"); err == nil {
		t.Error("a hostile name is looked up")
	}
	if err := c.Unregister(ctx, "a", true); err != nil || f.has("a") {
		t.Error(err)
	}
}

func TestNoNewRunnersWhileStopping(t *testing.T) {
	f := &fakeRunners{known: map[string]api.Runner{}}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Runners = f })
	c := client.New(s.Socket)
	n := api.NewRunner{Forge: "gitlab", Name: "a", URL: "https://gitlab.example.com", Token: "glrt-12345678"}
	r, end, err := c.RegisterFor(t.Context(), n)
	if err != nil || !r.Ephemeral || !f.has("a") {
		t.Fatal(r, err)
	}
	s.Server.Drain()
	n.Name = "b"
	_, err = c.Register(t.Context(), n)
	status(t, err, http.StatusServiceUnavailable, "stopping")
	end()
	for deadline := time.Now().Add(10 * time.Second); f.has("a"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it outlives its client")
		}
	}
}

func TestEventsAndMetrics(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) {
		c.Events = func(_ context.Context, id string) ([]queue.Event, error) {
			if id != "job" {
				return nil, queue.ErrNotFound
			}
			return []queue.Event{{Time: at, State: runner.Waiting, Detail: "why"}}, nil
		}
		c.Metrics = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("runnerd_jobs 1\n")) })
	})
	c := client.New(s.Socket)
	events, err := c.Events(t.Context(), "job")
	if err != nil || len(events) != 1 || events[0] != (api.Event{Time: at, State: runner.Waiting, Detail: "why"}) {
		t.Error(events, err)
	}
	_, err = c.Events(t.Context(), "other")
	status(t, err, http.StatusNotFound, "no such job")
	if text := get(t, s.Socket, "/metrics", "text/plain"); text != "runnerd_jobs 1\n" {
		t.Errorf("%q", text)
	}
}

func TestWithoutForges(t *testing.T) {
	s := apitest.Start(t, nil)
	_, err := client.New(s.Socket).Runners(t.Context())
	status(t, err, http.StatusNotFound, "")
	if text := get(t, s.Socket, "/metrics", "text/plain"); !strings.Contains(text, "there is no /metrics here") {
		t.Errorf("%q", text)
	}
}
