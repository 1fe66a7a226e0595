package gitlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What the server answered, for errors.Is. Every error of a Client that comes from an answer wraps a *StatusError, too.
var (
	ErrUnauthorized  = errors.New("unauthorised")                            // 401
	ErrForbidden     = errors.New("forbidden")                               // 403
	ErrNotFound      = errors.New("not found")                               // 404
	ErrConflict      = errors.New("conflict")                                // 409
	ErrGone          = errors.New("gone")                                    // 410
	ErrMismatch      = errors.New("the log is not what the server has")      // 412
	ErrTooLarge      = errors.New("too large")                               // 413
	ErrRange         = errors.New("the log does not go on where it was cut") // 416
	ErrUnprocessable = errors.New("unprocessable")                           // 422
	ErrRateLimited   = errors.New("rate limited")                            // 429
)

// StatusError is an answer that is not the one that was hoped for.
type StatusError struct {
	Status     int           // HTTP's
	Message    string        // the server's, cut
	RequestID  string        // the server's, or else ours; its log has it
	RetryAfter time.Duration // when the server wants to be asked again; 0: it does not say
}

func (e *StatusError) Error() string {
	text := fmt.Sprintf("%d %s", e.Status, http.StatusText(e.Status))
	if e.Message != "" && !strings.EqualFold(e.Message, text) {
		text += ": " + e.Message
	}
	return text + " (request " + e.RequestID + ")"
}

// Unwrap is the sentinel of the status.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case http.StatusUnauthorized:
		return ErrUnauthorized
	case http.StatusForbidden:
		return ErrForbidden
	case http.StatusNotFound:
		return ErrNotFound
	case http.StatusConflict:
		return ErrConflict
	case http.StatusGone:
		return ErrGone
	case http.StatusPreconditionFailed:
		return ErrMismatch
	case http.StatusRequestEntityTooLarge:
		return ErrTooLarge
	case http.StatusRequestedRangeNotSatisfiable:
		return ErrRange
	case http.StatusUnprocessableEntity:
		return ErrUnprocessable
	case http.StatusTooManyRequests:
		return ErrRateLimited
	}
	return nil
}

// statusError reads what an answer says of itself.
func statusError(res *http.Response) *StatusError {
	return &StatusError{
		Status: res.StatusCode, Message: message(res), RequestID: requestID(res), RetryAfter: retryAfter(res.Header),
	}
}

// requestID is how the server's log names a request.
func requestID(res *http.Response) string {
	if id := res.Header.Get(headerRequestID); id != "" {
		return cut(id)
	}
	return res.Request.Header.Get(headerRequestID)
}

// maxMessage bounds, in bytes, what is read of an answer that is an error.
const maxMessage = 64 << 10

// message is the text in GitLab's {"message": …} or {"error": …}.
func message(res *http.Response) string {
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxMessage))
	if !isJSON(res.Header) {
		return ""
	}
	var m struct{ Message, Error any }
	if json.Unmarshal(text, &m) != nil {
		return ""
	}
	for _, v := range []any{m.Message, m.Error} {
		if s, ok := v.(string); ok && s != "" {
			return cut(s)
		} else if v != nil && !ok { // {"field": ["what is wrong with it"]}
			text, _ := json.Marshal(v)
			return cut(string(text))
		}
	}
	return ""
}

// retryAfter is when the server wants to be asked again: RateLimit-ResetTime (RFC 1123) before Retry-After (RFC 9110,
// 10.2.3), as gitlab-runner has it (network/retry_requester.go).
func retryAfter(h http.Header) time.Duration {
	if at, err := http.ParseTime(h.Get("RateLimit-ResetTime")); err == nil && time.Until(at) > 0 {
		return time.Until(at)
	}
	text := h.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n > 0 && n < 1<<30 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil && time.Until(at) > 0 {
		return time.Until(at)
	}
	return 0
}
