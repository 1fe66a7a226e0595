package gitlab

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/http"
	"time"
)

// How a call is tried again (gitlab-runner, network/retry_requester.go).
const (
	tries      = 5
	backoffMin = 100 * time.Millisecond
	backoffMax = time.Minute
)

// maxRetryAfter bounds what a server may ask for.
const maxRetryAfter = time.Hour

// worthRetrying is go-retryablehttp's CheckRetry: an answer that says "later" is worth it. A connection that broke is
// not: whether the server has done what it was asked for is for the caller to find out.
func worthRetrying(ctx context.Context, res *http.Response, err error) (bool, error) {
	if err != nil || !temporary(res.StatusCode) {
		return false, nil
	}
	return ctx.Err() == nil, context.Cause(ctx)
}

// temporary reports whether a status is likely to be another one soon.
func temporary(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return status >= 512
}

// backoff is go-retryablehttp's Backoff.
func backoff(least, most time.Duration, attempt int, res *http.Response) time.Duration {
	if res != nil {
		if d := retryAfter(res.Header); d > 0 {
			return min(d, maxRetryAfter)
		}
	}
	d := least
	for range attempt {
		d = min(2*d, most)
	}
	return jitter(d)
}

// jitter spreads out what would otherwise come at once: between half of d and d.
func jitter(d time.Duration) time.Duration {
	if d <= 1 {
		return d
	}
	return d/2 + rand.N(d/2)
}

// pause is the time between one try and the next of something that does not succeed.
type pause struct {
	least, most time.Duration
	attempt     int
}

// next is how long to wait after err.
func (p *pause) next(err error) time.Duration {
	var status *StatusError
	p.attempt++
	if errors.As(err, &status) && status.RetryAfter > 0 {
		return min(status.RetryAfter, maxRetryAfter)
	}
	return backoff(p.least, p.most, p.attempt-1, nil)
}

func (p *pause) reset() { p.attempt = 0 }

// sleep waits, unless ctx ends first; it then returns its cause.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
