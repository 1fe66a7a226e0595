package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/hashicorp/go-retryablehttp"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Upstream is a registry whose images this one fetches when they are asked for.
type Upstream struct {
	Host string // as in the names of images: docker.io
	URL  string // where it answers: https://registry-1.docker.io
	// Username and Password are the operator's there; empty: images are fetched anonymously. All jobs may read what
	// is fetched.
	Username, Password string
}

const (
	dialTimeout   = 5 * time.Second
	answerTimeout = 30 * time.Second // for the head of an answer
	stallTimeout  = time.Minute      // for the next byte of one
	tries         = 4                // of one request, when the upstream is overloaded
	maxRetryWait  = 10 * time.Second // between them
	restAfterDown = 10 * time.Second // before an upstream that does not answer is asked again
)

// manifestTypes are the media types of manifests that are understood.
var manifestTypes = strings.Join([]string{
	imagespec.MediaTypeImageManifest, imagespec.MediaTypeImageIndex,
	"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
}, ", ")

// upstream asks an Upstream.
type upstream struct {
	Upstream
	client *http.Client

	mu        sync.Mutex
	auth      docker.Authorizer
	restUntil time.Time // it is not asked before
	down      error     // why
}

func newUpstream(u Upstream) (*upstream, error) {
	if parsed, err := url.Parse(u.URL); err != nil || parsed.Host == "" || parsed.Scheme != "https" && parsed.Scheme != "http" {
		return nil, fmt.Errorf("the upstream %s: %q is not the URL of a registry: write it like https://registry-1.docker.io", u.Host, u.URL)
	}
	u.URL = strings.TrimSuffix(u.URL, "/")
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DialContext = (&net.Dialer{Timeout: dialTimeout}).DialContext
	transport.TLSHandshakeTimeout, transport.ResponseHeaderTimeout = dialTimeout, answerTimeout
	retrying := retryablehttp.NewClient()
	retrying.HTTPClient = &http.Client{Transport: transport}
	retrying.Logger, retrying.RetryMax, retrying.RetryWaitMin, retrying.RetryWaitMax = nil, tries-1, 200*time.Millisecond, maxRetryWait
	retrying.CheckRetry, retrying.ErrorHandler = worthRetrying, retryablehttp.PassthroughErrorHandler
	up := &upstream{Upstream: u, client: retrying.StandardClient()}
	up.auth = up.newAuth()
	return up, nil
}

func (u *upstream) newAuth() docker.Authorizer {
	return docker.NewDockerAuthorizer(
		docker.WithAuthClient(u.client),
		docker.WithAuthCreds(func(string) (string, string, error) { return u.Username, u.Password, nil }),
	)
}

// forgetTokens makes the next request ask for a token: an Authorizer remembers its failures, too.
func (u *upstream) forgetTokens() docker.Authorizer {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.auth = u.newAuth()
	return u.auth
}

// worthRetrying retries an overloaded upstream that does not want a longer rest, and one that broke the connection, but
// not one that cannot be reached.
func worthRetrying(ctx context.Context, res *http.Response, err error) (bool, error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return false, nil
	}
	if res != nil && retryAfter(res) > maxRetryWait {
		return false, nil
	}
	return retryablehttp.DefaultRetryPolicy(ctx, res, err)
}

// retryAfter reads Retry-After (RFC 9110, 10.2.3); 0: it is not there.
func retryAfter(res *http.Response) time.Duration {
	text := res.Header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return time.Until(at)
	}
	return 0
}

// errNotThere is wrapped when an upstream does not have something, or not for us.
var errNotThere = errors.New("not there, or not for everybody")

// open asks for something below a repository, from an offset on. Its error wraps errNotThere, or the upstream is down.
// The caller closes the answer's body.
func (u *upstream) open(ctx context.Context, method, repository, what string, offset int64) (*http.Response, error) {
	u.mu.Lock()
	resting, down := time.Now().Before(u.restUntil), u.down
	u.mu.Unlock()
	if resting {
		return nil, down
	}
	res, err := u.do(docker.WithScope(ctx, "repository:"+repository+":pull"), method, "/v2/"+repository+"/"+what, offset)
	if ctx.Err() != nil {
		if err == nil {
			_ = res.Body.Close()
		}
		return nil, context.Cause(ctx)
	}
	rest := restAfterDown
	if err == nil {
		switch code := res.StatusCode; {
		case code == http.StatusOK, code == http.StatusPartialContent:
			return res, nil
		case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound:
			err = fmt.Errorf("%s/%s at %s: %w", u.Host, repository, u.URL, errNotThere)
		default:
			err = fmt.Errorf("%s answers %s", u.URL, res.Status)
			rest = max(rest, retryAfter(res))
		}
		_ = res.Body.Close()
	}
	if !errors.Is(err, errNotThere) {
		u.mu.Lock()
		u.restUntil, u.down = time.Now().Add(rest), fmt.Errorf("the upstream %s is down: %w", u.Host, err)
		err = u.down
		u.mu.Unlock()
	}
	return nil, err
}

// do sends a request, with a token if the upstream wants one.
func (u *upstream) do(ctx context.Context, method, path string, offset int64) (*http.Response, error) {
	u.mu.Lock()
	auth := u.auth
	u.mu.Unlock()
	for round := 1; ; round++ {
		req, err := http.NewRequestWithContext(ctx, method, u.URL+path, nil)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Accept-Encoding", "identity")
		if strings.Contains(path, "/manifests/") {
			req.Header.Set("Accept", manifestTypes)
		}
		if offset > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		}
		if err := auth.Authorize(ctx, req); err != nil {
			u.forgetTokens()
			return nil, refusedToken(err)
		}
		res, err := u.client.Do(req)
		if err != nil || res.StatusCode != http.StatusUnauthorized {
			return res, err
		}
		if req.Header.Get("Authorization") != "" { // a token that has expired, or that is not enough
			auth = u.forgetTokens()
		}
		if err := auth.AddResponses(ctx, []*http.Response{res}); err != nil || round == 3 {
			return res, nil // the refusal stands
		}
		_ = res.Body.Close()
	}
}

// refusedToken tells a refusal by the issuer of tokens from its being down.
func refusedToken(err error) error {
	var status remoteerrors.ErrUnexpectedStatus
	if errors.As(err, &status) && status.StatusCode >= 400 && status.StatusCode < 500 && status.StatusCode != http.StatusTooManyRequests {
		return fmt.Errorf("%w: %w", errNotThere, err)
	}
	return err
}

// copyTo appends a blob to to, which says how much it has; it goes on after a connection that broke. size is told once,
// before the first byte; -1: the upstream does not say.
func (u *upstream) copyTo(ctx context.Context, to io.Writer, repository, digest string, size func(int64)) error {
	var written, total int64 = 0, -1
	for failed := 0; ; {
		before := written
		res, err := u.open(ctx, http.MethodGet, repository, "blobs/"+digest, written)
		if err == nil {
			if written == 0 && before == 0 && total < 0 {
				total = res.ContentLength
				size(total)
			}
			if written > 0 && res.StatusCode == http.StatusOK { // it knows no ranges
				_, err = io.CopyN(io.Discard, res.Body, written)
			}
			if err == nil {
				var n int64
				n, err = io.Copy(to, stalling(res.Body))
				written += n
			}
			_ = res.Body.Close()
			if err == nil && (total < 0 || written >= total) {
				return nil
			}
			if err == nil {
				err = io.ErrUnexpectedEOF
			}
		}
		var local *localError
		if ctx.Err() != nil || errors.Is(err, errNotThere) || errors.As(err, &local) || total >= 0 && written > total {
			return err
		}
		if failed++; written > before {
			failed = 1
		}
		if failed >= tries {
			return fmt.Errorf("fetch %s of %s/%s, %d of %d bytes: %w", digest, u.Host, repository, written, total, err)
		}
		select {
		case <-time.After(time.Duration(failed) * 200 * time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// localError is trouble of our own disk.
type localError struct{ error }

func (e *localError) Unwrap() error { return e.error }

// stalling ends a body that sends nothing for stallTimeout.
func stalling(body io.ReadCloser) io.Reader { return &stallReader{body: body} }

type stallReader struct{ body io.ReadCloser }

func (s *stallReader) Read(p []byte) (int, error) {
	timer := time.AfterFunc(stallTimeout, func() { _ = s.body.Close() })
	n, err := s.body.Read(p)
	if !timer.Stop() && err != nil {
		err = fmt.Errorf("nothing came for %s: %w", stallTimeout, err)
	}
	return n, err
}
