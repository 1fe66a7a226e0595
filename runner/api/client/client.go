// Package client speaks runnerd's API.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner/api"
)

// Client speaks to one runnerd. It is safe for concurrent use.
type Client struct {
	socket string
	http   *http.Client
}

// New returns a client of the runnerd that listens on socket. Nothing is connected yet.
func New(socket string) *Client {
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", socket)
		},
		DisableCompression: true,
		IdleConnTimeout:    time.Minute,
	}
	return &Client{socket: socket, http: &http.Client{Transport: t}}
}

// Close closes the idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Problem is an answer that is none: RFC 9457.
type Problem struct {
	Status int    `json:"status"`
	Title  string `json:"title"`
	Detail string `json:"detail"`
	Errors []struct {
		Message  string `json:"message"`
		Location string `json:"location"`
	} `json:"errors"`
}

func (p *Problem) Error() string {
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	if text == "validation failed" || text == "" {
		for _, e := range p.Errors {
			text += "; " + strings.TrimPrefix(e.Location, "body.") + ": " + e.Message
		}
		text = strings.TrimPrefix(text, "; ")
	}
	return text
}

// ErrUnreachable is wrapped by the errors of a client whose runnerd does not answer.
var ErrUnreachable = errors.New("cannot reach runnerd")

func (c *Client) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	mend := "start it with 'runnerd serve', or name its socket with --socket"
	switch {
	case errors.Is(err, fs.ErrPermission):
		mend = "permission denied: use sudo, or add yourself to the socket's group"
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
	default:
		mend = err.Error()
	}
	return fmt.Errorf("%w at %s: %s", ErrUnreachable, c.socket, mend)
}

func (c *Client) request(ctx context.Context, method, path string, query url.Values, body io.Reader, kind string) (*http.Response, error) {
	u := url.URL{Scheme: "http", Host: "runnerd", Path: path, RawQuery: query.Encode()}
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	res, err := c.http.Do(r)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if res.StatusCode >= 400 {
		defer func() { _ = res.Body.Close() }()
		return nil, readProblem(res)
	}
	return res, nil
}

func readProblem(res *http.Response) error {
	p := &Problem{Status: res.StatusCode, Title: res.Status}
	text, _ := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	_ = json.Unmarshal(text, p)
	p.Status = res.StatusCode
	return p
}

func call[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (out T, err error) {
	var r io.Reader
	kind := ""
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return out, err
		}
		r, kind = bytes.NewReader(text), "application/json"
	}
	res, err := c.request(ctx, method, path, query, r, kind)
	if err != nil {
		return out, err
	}
	defer func() { _ = res.Body.Close() }()
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return out, c.unreachable(ctx, fmt.Errorf("the answer was cut off: %w", err))
	}
	return out, nil
}

func jobPath(id string, more ...string) string {
	return "/v1/jobs/" + strings.Join(append([]string{id}, more...), "/")
}

// Submit submits a job.
func (c *Client) Submit(ctx context.Context, s api.Submission) (api.Job, error) {
	return call[api.Job](ctx, c, http.MethodPost, "/v1/jobs", nil, s)
}

// Build submits a build.
func (c *Client) Build(ctx context.Context, b api.Build) (api.Accepted, error) {
	return call[api.Accepted](ctx, c, http.MethodPost, "/v1/builds", nil, b)
}

// Job looks at a job.
func (c *Client) Job(ctx context.Context, id string) (api.Job, error) {
	return call[api.Job](ctx, c, http.MethodGet, jobPath(id), nil, nil)
}

// queryOf are the values that are not empty.
func queryOf(values map[string]string) url.Values {
	q := url.Values{}
	for k, v := range values {
		if v != "" {
			q.Set(k, v)
		}
	}
	return q
}

// Jobs lists jobs, the newest first.
func (c *Client) Jobs(ctx context.Context, f api.Filter) ([]api.Job, error) {
	q := queryOf(map[string]string{"state": f.State, "outcome": f.Outcome, "group": f.Group, "project": f.Project, "prefix": f.Prefix})
	if f.Active {
		q.Set("active", "true")
	}
	if f.Limit > 0 {
		q.Set("limit", strconv.Itoa(f.Limit))
	}
	return call[[]api.Job](ctx, c, http.MethodGet, "/v1/jobs", q, nil)
}

// Cancel cancels a job; reason is a sentence for people.
func (c *Client) Cancel(ctx context.Context, id, reason string) (api.Job, error) {
	return call[api.Job](ctx, c, http.MethodPost, jobPath(id, "cancel"), queryOf(map[string]string{"reason": reason}), nil)
}

// Wait waits until a job is finished.
func (c *Client) Wait(ctx context.Context, id string) (api.Job, error) {
	return call[api.Job](ctx, c, http.MethodGet, jobPath(id, "wait"), nil, nil)
}

// Version asks what the daemon is.
func (c *Client) Version(ctx context.Context) (api.VersionInfo, error) {
	return call[api.VersionInfo](ctx, c, http.MethodGet, "/v1/version", nil, nil)
}

// Health asks whether the daemon takes jobs.
func (c *Client) Health(ctx context.Context) (api.Health, error) {
	return call[api.Health](ctx, c, http.MethodGet, "/v1/health", nil, nil)
}

// Upload uploads a context, a tar stream.
func (c *Client) Upload(ctx context.Context, r io.Reader) (w api.Workspace, err error) {
	res, err := c.request(ctx, http.MethodPost, "/v1/workspaces", nil, r, "application/x-tar")
	if err != nil {
		return w, err
	}
	defer func() { _ = res.Body.Close() }()
	return w, json.NewDecoder(res.Body).Decode(&w)
}

// Explain asks where the results of a build's steps came from.
func (c *Client) Explain(ctx context.Context, id string) (ledger.Explanation, error) {
	return call[ledger.Explanation](ctx, c, http.MethodGet, jobPath(id, "explain"), nil, nil)
}

// Revoke has a cache entry removed.
func (c *Client) Revoke(ctx context.Context, r api.Revoke) (api.Revoked, error) {
	return call[api.Revoked](ctx, c, http.MethodPost, "/v1/cache/revoke", nil, r)
}

// Outputs lists what a finished build has written.
func (c *Client) Outputs(ctx context.Context, id string) ([]api.Output, error) {
	return call[[]api.Output](ctx, c, http.MethodGet, jobPath(id, "outputs"), nil, nil)
}

// Output fetches one output of a build.
func (c *Client) Output(ctx context.Context, id, name string) (io.ReadCloser, error) {
	res, err := c.request(ctx, http.MethodGet, jobPath(id, "outputs", name), nil, nil, "")
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// RemoveOutputs removes a finished build's outputs.
func (c *Client) RemoveOutputs(ctx context.Context, id string) error {
	res, err := c.request(ctx, http.MethodDelete, jobPath(id, "outputs"), nil, nil, "")
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// Log gives fn the frames of a job's log; a frame's data is valid until fn returns.
func (c *Client) Log(ctx context.Context, id string, follow bool, fn func(api.Frame) error) error {
	q := url.Values{}
	if follow {
		q.Set("follow", "true")
	}
	res, err := c.request(ctx, http.MethodGet, jobPath(id, "log"), q, nil, "")
	if err != nil {
		return err
	}
	defer func() { _ = res.Body.Close() }()
	frames := api.NewFrameReader(res.Body)
	for {
		f, err := frames.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return c.unreachable(ctx, fmt.Errorf("the log of job %s was cut off: %w", id, err))
		}
		if err := fn(f); err != nil {
			return err
		}
	}
}

// Resolve finds the one job whose id is given or begins so.
func (c *Client) Resolve(ctx context.Context, prefix string) (string, error) {
	jobs, err := c.Jobs(ctx, api.Filter{Prefix: prefix, Limit: 10000})
	if err != nil {
		return "", err
	}
	for _, j := range jobs {
		if j.ID == prefix {
			return prefix, nil
		}
	}
	switch {
	case len(jobs) == 0 || prefix == "":
		return "", &Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("there is no job %q: see 'runnerd jobs --all'", prefix)}
	case len(jobs) > 1:
		return "", &Problem{Status: http.StatusNotFound, Detail: fmt.Sprintf("%d jobs begin with %q, such as %s and %s: give more of the id", len(jobs), prefix, jobs[0].ID, jobs[1].ID)}
	}
	return jobs[0].ID, nil
}
