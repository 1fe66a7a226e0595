package gitlab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Verify asks whether a runner's token is valid (POST runners/verify). The error wraps ErrForbidden if it is not, and
// ErrUnprocessable for a runner whose owner is gone.
func (c *Client) Verify(ctx context.Context, token, systemID string) (spec.Registered, error) {
	var r spec.Registered
	info := c.options.Info
	_, err := c.do(ctx, call{
		method: http.MethodPost, path: "runners/verify", header: headerRunnerToken, token: token,
		body: spec.VerifyRequest{Token: token, SystemID: systemID, Info: &info}, status: http.StatusOK, answer: &r,
	})
	if errors.Is(err, errNotJSON) { // an old GitLab answers in words
		return spec.Registered{Token: token}, nil
	}
	return r, err
}

// Register registers a runner by a legacy registration token (POST runners). Info is filled in. The error wraps
// ErrForbidden if the token is not valid, and ErrGone if the server has no such tokens any more.
func (c *Client) Register(ctx context.Context, req spec.RegisterRequest) (spec.Registered, error) {
	var r spec.Registered
	req.Info = c.options.Info
	_, err := c.do(ctx, call{
		method: http.MethodPost, path: "runners", header: headerRunnerToken, token: req.Token,
		body: req, status: http.StatusCreated, answer: &r,
	})
	return r, err
}

// Unregister removes a runner with all its managers (DELETE runners).
func (c *Client) Unregister(ctx context.Context, token string) error {
	_, err := c.do(ctx, call{
		method: http.MethodDelete, path: "runners", header: headerRunnerToken, token: token,
		body: spec.VerifyRequest{Token: token}, status: http.StatusNoContent,
	})
	return err
}

// UnregisterManager removes this machine from a runner (DELETE runners/managers).
func (c *Client) UnregisterManager(ctx context.Context, token, systemID string) error {
	_, err := c.do(ctx, call{
		method: http.MethodDelete, path: "runners/managers", header: headerRunnerToken, token: token,
		body: spec.VerifyRequest{Token: token, SystemID: systemID}, status: http.StatusNoContent,
	})
	return err
}

// ResetToken gives a runner a new token; the old one is void at once.
func (c *Client) ResetToken(ctx context.Context, token string) (spec.Registered, error) {
	var r spec.Registered
	_, err := c.do(ctx, call{
		method: http.MethodPost, path: "runners/reset_authentication_token", header: headerRunnerToken, token: token,
		body: spec.VerifyRequest{Token: token}, status: http.StatusCreated, answer: &r,
	})
	return r, err
}

// ResetTokenAs is ResetToken by a personal access token, for a runner whose own token is void.
func (c *Client) ResetTokenAs(ctx context.Context, id int64, accessToken string) (spec.Registered, error) {
	var r spec.Registered
	_, err := c.do(ctx, call{
		method: http.MethodPost, path: fmt.Sprintf("runners/%d/reset_authentication_token", id), header: headerPrivateToken, token: accessToken,
		status: http.StatusCreated, answer: &r,
	})
	return r, err
}

// Given is the answer to a request for a job.
type Given struct {
	Job        *spec.Job // nil: there was none
	LastUpdate string    // is to go into the next request, also after an error
	RequestID  string    // as the server's log has it
}

// RequestJob asks for a job (POST jobs/request). The server holds the request until there is one, for a minute or so.
// When ctx ends while the answer has begun to come, the answer is still read: the job is ours.
func (c *Client) RequestJob(ctx context.Context, req spec.JobRequest) (Given, error) {
	// What the end of ctx cancels is the wait, not the answer.
	calling, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { cancel(context.Cause(ctx)) })
	defer stop()

	req.Info = c.options.Info
	job := new(spec.Job)
	res, err := c.do(calling, call{
		method: http.MethodPost, path: "jobs/request", header: headerRunnerToken, token: req.Token,
		body: req, status: http.StatusCreated, answer: job, answered: func() { stop() },
	})
	given := Given{LastUpdate: req.LastUpdate}
	if res != nil {
		given.RequestID = requestID(res)
		if told := res.Header.Get(headerLastUpdate); told != "" {
			given.LastUpdate = told
		}
		if res.StatusCode == http.StatusNoContent {
			return given, nil
		}
	}
	if err == nil && (job.ID <= 0 || job.Token == "") {
		err = errors.New("POST jobs/request: the server gave a job without an id or token")
	}
	if err == nil {
		given.Job = job
	}
	return given, err
}

// Remote is what an answer says of a job.
type Remote struct {
	Status   int           // HTTP's; 0: there was no answer
	State    spec.State    // of the header Job-Status; empty: it does not say
	Interval time.Duration // between updates; 0: it does not say
}

// Over reports whether the server wants nothing more of the job.
func (r Remote) Over() bool {
	return r.State == spec.Canceled || r.State == spec.Failed || r.Status == http.StatusForbidden
}

// maxInterval bounds the time between updates that a server may ask for (gitlab-runner, common/consts.go).
const maxInterval = 15 * time.Minute

func remote(res *http.Response) (r Remote) {
	if res == nil {
		return r
	}
	r.Status, r.State = res.StatusCode, spec.State(res.Header.Get(headerJobStatus))
	if n, err := strconv.Atoi(res.Header.Get(headerInterval)); err == nil && n > 0 {
		r.Interval = min(time.Duration(n)*time.Second, maxInterval)
	}
	return r
}

// UpdateJob tells a job's state (PUT jobs/:id). Info is filled in. err is nil for 200 only, so 202, which asks for the
// same again later, is a *StatusError, too; Remote says what there is to know in any case.
func (c *Client) UpdateJob(ctx context.Context, id int64, u spec.Update) (Remote, error) {
	u.Info = c.options.Info
	res, err := c.do(ctx, call{
		method: http.MethodPut, path: fmt.Sprintf("jobs/%d", id), header: headerJobToken, token: u.Token, body: u, status: http.StatusOK,
	})
	return remote(res), err
}

// PatchTrace appends to a job's log at an offset in bytes (PATCH jobs/:id/trace). next is how much the server has, -1 if
// it does not say. data must not be empty. The error wraps ErrRange if the offset is not what the server has.
func (c *Client) PatchTrace(ctx context.Context, id int64, token string, offset int64, data []byte, debug bool) (next int64, r Remote, err error) {
	res, err := c.do(ctx, call{
		method: http.MethodPatch, path: fmt.Sprintf("jobs/%d/trace", id), query: url.Values{"debug_trace": {strconv.FormatBool(debug)}},
		header: headerJobToken, token: token, raw: data, status: http.StatusAccepted,
		contentRange: fmt.Sprintf("%d-%d", offset, offset+int64(len(data))-1), // inclusive, without the total
	})
	next = -1
	if res != nil {
		if _, end, ok := strings.Cut(res.Header.Get("Range"), "-"); ok {
			if n, err := strconv.ParseInt(end, 10, 64); err == nil && n >= 0 {
				next = n
			}
		}
	}
	return next, remote(res), err
}
