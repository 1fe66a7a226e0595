package api_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
)

type planned []api.Target

func (p planned) Plan(context.Context, string, api.Build) ([]api.Target, error) { return p, nil }

// TestAgents holds that a job reaches the agents it was given, while it runs, and no others.
func TestAgents(t *testing.T) {
	agents, ask, end := api.NewAgents(), make(chan struct{}), make(chan struct{})
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		c.Agents, c.Builder = agents, planned{{Request: runner.Request{Name: "a"}}}
		b.Run = func(ctx context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			<-ask
			running, stop := context.WithCancel(ctx)
			for range 3 { // one after another, each with a connection of its own
				conn, err := agents.Dial(running, r.ID, "my/key")
				if err != nil {
					t.Error(err)
					break
				}
				b := make([]byte, 4)
				if _, err := io.WriteString(conn, "ping"); err != nil {
					t.Error(err)
				}
				if _, err := io.ReadFull(conn, b); err != nil || string(b) != "PING" {
					t.Errorf("%q, %v", b, err)
				}
				if b[0] == 'P' {
					stop()
					if _, err := conn.Read(b); err == nil {
						t.Error("the connection outlives the job")
					}
					running, stop = context.WithCancel(ctx)
				}
			}
			stop()
			if _, err := agents.Dial(ctx, r.ID, "other"); !errors.Is(err, api.ErrNoClient) {
				t.Errorf("an agent that was not given: %v", err)
			}
			<-end
			return runner.Result{Outcome: runner.Succeeded}
		}
	})
	c, ctx := client.New(s.Socket), t.Context()
	ws, err := c.Upload(ctx, bytes.NewReader(tarOf(entry{name: "Dockerfile", data: "FROM x"})))
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := c.Build(ctx, api.Build{Workspace: ws.ID, SSH: []string{"my/key"}})
	if err != nil {
		t.Fatal(err)
	}
	id := accepted.Jobs[0].ID
	served := make(chan error, 1)
	go func() {
		served <- c.ServeAgent(ctx, id, "my/key", func(conn io.ReadWriteCloser) {
			defer conn.Close()
			b := make([]byte, 4)
			if _, err := io.ReadFull(conn, b); err == nil {
				_, _ = io.WriteString(conn, "PING")
				_, _ = io.Copy(io.Discard, conn)
			}
		})
	}()
	status(t, c.ServeAgent(ctx, id, "other", nil), 404, "no ssh agent")
	status(t, c.ServeAgent(ctx, "nope", "my/key", nil), 404, "no such job")
	close(ask)
	close(end)
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := agents.Dial(ctx, id, "nobody"); !errors.Is(err, api.ErrNoClient) {
		t.Error(err)
	}
	if ws, err = c.Upload(ctx, bytes.NewReader(tarOf(entry{name: "Dockerfile", data: "FROM x"}))); err != nil {
		t.Fatal(err)
	}
	_, err = c.Build(ctx, api.Build{Workspace: ws.ID, SSH: []string{"x", "x"}})
	status(t, err, 422, "comes twice")
}
