package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"path"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// ArtifactOptions say what is uploaded.
type ArtifactOptions struct {
	Type     string // archive, trace, junit, …
	Format   string // zip, gzip, raw
	ExpireIn string // as it is in the .gitlab-ci.yml
	Name     string // the file's
}

// uploadTries is how often an upload is tried while the server is not available, maxHops how many redirections are
// followed.
const (
	uploadTries = 6
	maxHops     = 5
)

// UploadArtifact uploads what body writes as an artifact of a job (POST jobs/:id/artifacts). body is called again for
// each try, and not before the last call has returned; its error is returned as it is. The error wraps ErrForbidden if
// the job is over, and ErrTooLarge. A redirection to elsewhere than this forge's API is followed without the job's token.
func (c *Client) UploadArtifact(ctx context.Context, job spec.Job, o ArtifactOptions, body func(w io.Writer) error) error {
	query := url.Values{}
	for key, value := range map[string]string{"artifact_type": o.Type, "artifact_format": o.Format, "expire_in": o.ExpireIn} {
		if value != "" {
			query.Set(key, value)
		}
	}
	where := c.url(fmt.Sprintf("jobs/%d/artifacts", job.ID), query)
	again := pause{least: backoffMin, most: backoffMax}
	hops := 0
	for try := 1; ; try++ {
		next, err := c.upload(ctx, where, job.Token, o.Name, body)
		if next != nil {
			if hops++; hops > maxHops {
				return fmt.Errorf("upload %s: more than %d redirections", o.Name, maxHops)
			}
			where = next
			try--
			continue
		}
		var status *StatusError
		var own *bodyError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &own):
			return own.error
		case ctx.Err() != nil:
			return fmt.Errorf("upload %s: %w", o.Name, context.Cause(ctx))
		case try == uploadTries || errors.As(err, &status) && !temporary(status.Status):
			return fmt.Errorf("upload %s: %w", o.Name, err)
		}
		if err := sleep(ctx, again.next(err)); err != nil {
			return fmt.Errorf("upload %s: %w", o.Name, err)
		}
	}
}

// bodyError is the error of who writes what is uploaded: trying again would not help.
type bodyError struct{ error }

// upload makes one try. next is where the server wants it instead.
func (c *Client) upload(ctx context.Context, where *url.URL, token, name string, body func(w io.Writer) error) (next *url.URL, err error) {
	r, w := io.Pipe()
	pipe := &failing{w: w}
	form := multipart.NewWriter(pipe)
	wrote := make(chan error, 1)
	go func() {
		part, err := form.CreateFormFile("file", name)
		if err == nil {
			err = body(part)
		}
		if err == nil {
			err = form.Close()
		}
		_ = w.CloseWithError(err)
		wrote <- err
	}()
	// The writer ends when nobody reads. An error of its own is the cause of any other.
	defer func() {
		_ = r.Close()
		if wrong := <-wrote; wrong != nil && !pipe.failed {
			err = &bodyError{wrong}
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, where.String(), r)
	if err != nil {
		return nil, err
	}
	req.Header = c.headerFor(where, token)
	req.Header.Set("Content-Type", form.FormDataContentType())
	res, err := c.plain.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	switch res.StatusCode {
	case http.StatusCreated, http.StatusOK:
		return nil, nil
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return location(res)
	}
	return nil, statusError(res)
}

// failing knows whether a write has failed.
type failing struct {
	w      io.Writer
	failed bool
}

func (f *failing) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	f.failed = f.failed || err != nil
	return n, err
}

// headerFor has the token if the URL is one of this forge's API: object storage must not see it, wherever it is.
func (c *Client) headerFor(where *url.URL, token string) http.Header {
	if where.Scheme != c.base.Scheme || where.Host != c.base.Host || !strings.HasPrefix(path.Clean(where.Path), c.base.Path) {
		return http.Header{}
	}
	return header(headerJobToken, token)
}

func location(res *http.Response) (*url.URL, error) {
	next, err := res.Location()
	if err == nil && next.Scheme != "https" && next.Scheme != "http" {
		err = fmt.Errorf("a redirection to %s", cut(next.Scheme))
	}
	if err != nil {
		return nil, fmt.Errorf("the server answered %d: %w", res.StatusCode, err)
	}
	return next, nil
}

// DownloadArtifact writes the artifacts of a job to w (GET jobs/:id/artifacts), directly from object storage if the
// server says so. It is tried again as long as nothing was written. The error wraps ErrForbidden, ErrUnauthorized or
// ErrNotFound if they cannot be had.
func (c *Client) DownloadArtifact(ctx context.Context, dep spec.Dependency, w io.Writer) error {
	doing := fmt.Sprintf("download the artifacts of %s (%d)", dep.Name, dep.ID)
	again := pause{least: backoffMin, most: backoffMax}
	for try := 1; ; try++ {
		n, err := c.download(ctx, dep, w)
		var status *StatusError
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return fmt.Errorf("%s: %w", doing, context.Cause(ctx))
		case n > 0 || try == tries || errors.As(err, &status) && !temporary(status.Status):
			return fmt.Errorf("%s: %w", doing, err)
		}
		if err := sleep(ctx, again.next(err)); err != nil {
			return fmt.Errorf("%s: %w", doing, err)
		}
	}
}

func (c *Client) download(ctx context.Context, dep spec.Dependency, w io.Writer) (written int64, err error) {
	where := c.url(fmt.Sprintf("jobs/%d/artifacts", dep.ID), url.Values{"direct_download": {"true"}})
	for range maxHops {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, where.String(), nil)
		if err != nil {
			return 0, err
		}
		req.Header = c.headerFor(where, dep.Token)
		req.Header.Set("Accept", "*/*")
		res, err := c.plain.Do(req)
		if err != nil {
			return 0, err
		}
		next, n, err := downloaded(res, w)
		if next == nil {
			return n, err
		}
		where = next
	}
	return 0, fmt.Errorf("more than %d redirections", maxHops)
}

// downloaded takes one answer: next is where to go on.
func downloaded(res *http.Response, w io.Writer) (next *url.URL, written int64, err error) {
	defer func() { _ = res.Body.Close() }()
	switch res.StatusCode {
	case http.StatusOK:
		written, err = io.Copy(w, res.Body)
		return nil, written, err
	case http.StatusFound, http.StatusTemporaryRedirect:
		next, err = location(res)
		return next, 0, err
	}
	return nil, 0, statusError(res)
}
