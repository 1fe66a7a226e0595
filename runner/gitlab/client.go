package gitlab

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/hashicorp/go-retryablehttp"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// The headers of GitLab's API (gitlab-runner, common/consts.go and network/gitlab.go). Tokens are in the body, too.
const (
	headerRunnerToken  = "RUNNER-TOKEN"
	headerJobToken     = "JOB-TOKEN"
	headerPrivateToken = "PRIVATE-TOKEN" // personal access tokens
	headerRequestID    = "X-Request-Id"
	headerLastUpdate   = "X-GitLab-Last-Update"
	headerJobStatus    = "Job-Status"
	headerInterval     = "X-GitLab-Trace-Update-Interval"
)

const (
	// maxAnswer bounds an answer in bytes: a job with all its variables takes less than 1 MiB.
	maxAnswer = 64 << 20
	// callTimeout bounds one try of a call. A request for a job is held by the server for 50 s unless it is configured
	// otherwise (Workhorse's -apiCiLongPollingDuration).
	callTimeout = 2 * time.Minute
	// idleConns is how many connections to a forge are kept: each job that runs sends its log.
	idleConns = 64
)

// ClientOptions say how a forge is spoken to. The zero value will do.
type ClientOptions struct {
	Info   spec.Info // what the server is told of the runner
	CAFile string    // as Registration has it
	// Transport takes the place of one of the client's own; CAFile is then without effect.
	Transport http.RoundTripper
	// Observe, when not nil, is told of every try of every call, for metrics.
	Observe func(Call)
}

// Call is one try of a call of the API.
type Call struct {
	Method   string
	Endpoint string // the path, with {id} for numbers
	Status   int    // HTTP's; 0: there was no answer
	Took     time.Duration
}

// Client speaks with the runner API of one forge. It is safe for use by several goroutines.
type Client struct {
	base    *url.URL // with the path of the API
	options ClientOptions
	plain   *http.Client          // for artifacts: no timeout, no retries, and redirections are ours to judge
	api     *retryablehttp.Client // for all else
}

// NewClient returns a client of the forge at a URL, which is one as NormalURL returns. The error is about the URL or
// the file of certificates.
func NewClient(forge string, o ClientOptions) (*Client, error) {
	normal, err := NormalURL(forge)
	if err != nil {
		return nil, err
	}
	base, err := url.Parse(normal + "/api/v4/")
	if err != nil {
		return nil, err
	}
	if o.Transport == nil {
		if o.Transport, err = newTransport(o.CAFile); err != nil {
			return nil, err
		}
	}
	if o.Observe != nil {
		o.Transport = observed{o.Transport, o.Observe, base.Path}
	}
	c := &Client{base: base, options: o}
	noRedirects := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.plain = &http.Client{Transport: o.Transport, CheckRedirect: noRedirects}
	c.api = retryablehttp.NewClient()
	c.api.HTTPClient = &http.Client{Transport: o.Transport, CheckRedirect: noRedirects, Timeout: callTimeout}
	c.api.Logger, c.api.ErrorHandler = nil, retryablehttp.PassthroughErrorHandler
	c.api.RetryMax, c.api.RetryWaitMin, c.api.RetryWaitMax = tries-1, backoffMin, backoffMax
	c.api.CheckRetry, c.api.Backoff = worthRetrying, backoff
	return c, nil
}

func newTransport(caFile string) (http.RoundTripper, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.MaxIdleConnsPerHost = idleConns
	if caFile == "" {
		return t, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("the forge's certificates: %w", err)
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("the forge's certificates: %s holds none in PEM", caFile)
	}
	t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	return t, nil
}

// call is one call of the API.
type call struct {
	method, path string
	query        url.Values
	header       string // the name of the header that has the token
	token        string
	body         any    // as JSON; nil: raw
	raw          []byte // as text/plain, with its range
	contentRange string
	status       int    // the one that was hoped for
	answer       any    // where its JSON goes; nil: nowhere
	answered     func() // when not nil, is called when there is an answer, before it is read
}

// do makes a call and returns the answer's status and headers, with any error that is not one of the connection. Its
// body has been read.
func (c *Client) do(ctx context.Context, k call) (*http.Response, error) {
	res, err := c.send(ctx, k)
	if res != nil {
		defer func() { _ = res.Body.Close() }()
	}
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", k.method, k.path, err)
	}
	if k.answered != nil {
		k.answered()
	}
	if res.StatusCode != k.status {
		return res, fmt.Errorf("%s %s: %w", k.method, k.path, statusError(res))
	}
	if k.answer == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(res.Body, maxMessage))
		return res, nil
	}
	if !isJSON(res.Header) {
		return res, fmt.Errorf("%s %s: %w: %q: is the URL that of a GitLab?", k.method, k.path, errNotJSON, cut(res.Header.Get("Content-Type")))
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxAnswer)).Decode(k.answer); err != nil {
		return res, fmt.Errorf("%s %s: read the answer: %w", k.method, k.path, err)
	}
	return res, nil
}

// errNotJSON is wrapped by the error of a call whose answer is none of GitLab's.
var errNotJSON = errors.New("the answer is not JSON")

func (c *Client) send(ctx context.Context, k call) (*http.Response, error) {
	var body []byte
	contentType := ""
	switch {
	case k.body != nil:
		text, err := json.Marshal(k.body)
		if err != nil {
			return nil, err
		}
		body, contentType = text, "application/json"
	case k.raw != nil:
		body, contentType = k.raw, "text/plain"
	}
	u := c.url(k.path, k.query)
	req, err := retryablehttp.NewRequestWithContext(ctx, k.method, u.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header = header(k.header, k.token)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	if k.contentRange != "" {
		req.Header.Set("Content-Range", k.contentRange)
	}
	return c.api.Do(req)
}

func (c *Client) url(path string, query url.Values) *url.URL {
	u := *c.base
	u.Path += path
	u.RawQuery = query.Encode()
	return &u
}

// header is what all requests have.
func header(name, token string) http.Header {
	h := http.Header{"Accept": {"application/json"}}
	h.Set(headerRequestID, newRequestID())
	if token != "" {
		h.Set(name, token)
	}
	return h
}

// newRequestID is 128 random bits, as GitLab writes them.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func isJSON(h http.Header) bool {
	kind, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && kind == "application/json"
}

// observed tells of each try.
type observed struct {
	http.RoundTripper
	tell func(Call)
	base string
}

func (o observed) RoundTrip(req *http.Request) (*http.Response, error) {
	began := time.Now()
	res, err := o.RoundTripper.RoundTrip(req)
	k := Call{Method: req.Method, Endpoint: endpoint(req.URL.Path, o.base), Took: time.Since(began)}
	if res != nil {
		k.Status = res.StatusCode
	}
	o.tell(k)
	return res, err
}

// endpoint is a path without what differs between jobs.
func endpoint(path, base string) string {
	rest, ok := bytes.CutPrefix([]byte(path), []byte(base))
	if !ok {
		return "elsewhere" // object storage
	}
	parts := bytes.Split(rest, []byte("/"))
	for i, p := range parts {
		if len(p) > 0 && len(bytes.Trim(p, "0123456789")) == 0 {
			parts[i] = []byte("{id}")
		}
	}
	return string(bytes.Join(parts, []byte("/")))
}
