package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/runnerd/runnerd/runner/api"
)

func runnerPath(name string, more string) string { return "/v1/runners/" + url.PathEscape(name) + more }

// Runners lists the daemon's runners.
func (c *Client) Runners(ctx context.Context) ([]api.Runner, error) {
	return call[[]api.Runner](ctx, c, http.MethodGet, "/v1/runners", nil, nil)
}

// Runner looks at a runner.
func (c *Client) Runner(ctx context.Context, name string) (api.Runner, error) {
	return call[api.Runner](ctx, c, http.MethodGet, runnerPath(name, ""), nil, nil)
}

// Register makes the daemon a forge's runner, for good.
func (c *Client) Register(ctx context.Context, n api.NewRunner) (api.Runner, error) {
	n.Ephemeral = false
	return call[api.Runner](ctx, c, http.MethodPost, "/v1/runners", nil, n)
}

// RegisterFor makes the daemon a forge's runner until end is called, ctx ends, or this process does.
func (c *Client) RegisterFor(ctx context.Context, n api.NewRunner) (r api.Runner, end func(), err error) {
	n.Ephemeral = true
	text, err := json.Marshal(n)
	if err != nil {
		return r, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	res, err := c.request(ctx, http.MethodPost, "/v1/runners", nil, bytes.NewReader(text), "application/json")
	if err != nil {
		cancel()
		return r, nil, err
	}
	end = func() {
		cancel()
		_ = res.Body.Close()
	}
	if err := json.NewDecoder(res.Body).Decode(&r); err != nil {
		err = c.unreachable(ctx, fmt.Errorf("the answer was cut off: %w", err)) // before ctx is ended
		end()
		return r, nil, err
	}
	return r, end, nil
}

// VerifyRunner has the daemon ask the forge whether it knows a runner.
func (c *Client) VerifyRunner(ctx context.Context, name string) (api.Runner, error) {
	return call[api.Runner](ctx, c, http.MethodPost, runnerPath(name, "/verify"), nil, nil)
}

// RotateRunner has the forge give a runner another token.
func (c *Client) RotateRunner(ctx context.Context, name string) (api.Runner, error) {
	return call[api.Runner](ctx, c, http.MethodPost, runnerPath(name, "/rotate"), nil, nil)
}

// Unregister makes the daemon a runner no more; with keep nothing is said to the forge.
func (c *Client) Unregister(ctx context.Context, name string, keep bool) error {
	q := url.Values{}
	if keep {
		q.Set("keep_on_server", "true")
	}
	res, err := c.request(ctx, http.MethodDelete, runnerPath(name, ""), q, nil, "")
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// Events lists the changes of a job's state, the first one first.
func (c *Client) Events(ctx context.Context, id string) ([]api.Event, error) {
	return call[[]api.Event](ctx, c, http.MethodGet, jobPath(id, "events"), nil, nil)
}
