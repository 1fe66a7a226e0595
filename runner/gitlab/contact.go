package gitlab

import (
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"
)

// Contact is what came of the last times that a forge was asked something for a runner.
type Contact struct {
	At      time.Time         // of the last answer; zero: none yet
	Status  int               // of HTTP, the last time; 0: there was no answer
	Err     error             // why the last time failed, nil if it did not
	Failing time.Time         // since when it fails, zero if it does not
	Answers map[string]uint64 // to requests for a job, by kind: see Kinds
}

// The kinds of answers to a request for a job.
const (
	GotJob        = "job"
	GotNone       = "none"
	GotConflict   = "conflict" // another runner was faster
	GotForbidden  = "forbidden"
	GotInvalid    = "invalid" // 422
	GotLimited    = "limited" // 429
	GotServer     = "server_error"
	GotUnexpected = "unexpected"
	GotNoAnswer   = "no_answer"
)

// Kinds are all of them.
func Kinds() []string {
	return []string{GotJob, GotNone, GotConflict, GotForbidden, GotInvalid, GotLimited, GotServer, GotUnexpected, GotNoAnswer}
}

// kindOf is the kind of an answer with that status.
func kindOf(status int) string {
	switch {
	case status == 0:
		return GotNoAnswer
	case status == 201:
		return GotJob
	case status == 204 || status == 200:
		return GotNone
	case status == 409:
		return GotConflict
	case status == 401 || status == 403:
		return GotForbidden
	case status == 422:
		return GotInvalid
	case status == 429:
		return GotLimited
	case status >= 500:
		return GotServer
	}
	return GotUnexpected
}

// Contacts has the Contact of each runner, by name. The zero value is ready, and safe for use by several goroutines.
type Contacts struct {
	mu  sync.Mutex
	all map[string]*Contact
}

// Asked notes what came of a request for a job: whether there was one, or its error.
func (c *Contacts) Asked(name string, job bool, err error) {
	status := statusOf(err)
	switch {
	case err == nil && job:
		status = http.StatusCreated
	case err == nil:
		status = http.StatusNoContent
	case errors.Is(err, ErrConflict): // another runner was faster
		err = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(name, status, err).Answers[kindOf(status)]++
}

// Met notes what came of another request that says whether the forge knows the runner.
func (c *Contacts) Met(name string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(name, statusOf(err), err)
}

// statusOf is the status of the answer with that error, 0 if there was none.
func statusOf(err error) int {
	var refused *StatusError
	switch {
	case err == nil:
		return http.StatusOK
	case errors.As(err, &refused):
		return refused.Status
	}
	return 0
}

// Of returns the Contact of a runner.
func (c *Contacts) Of(name string) Contact {
	c.mu.Lock()
	defer c.mu.Unlock()
	one := c.all[name]
	if one == nil {
		return Contact{}
	}
	copied := *one
	copied.Answers = maps.Clone(one.Answers)
	return copied
}

// forget forgets a runner that is no more.
func (c *Contacts) forget(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.all, name)
}

func (c *Contacts) of(name string) *Contact {
	if c.all == nil {
		c.all = map[string]*Contact{}
	}
	one := c.all[name]
	if one == nil {
		one = &Contact{Answers: map[string]uint64{}}
		c.all[name] = one
	}
	return one
}

func (c *Contacts) note(name string, status int, err error) *Contact {
	one := c.of(name)
	one.Status, one.Err = status, err
	if status != 0 {
		one.At = time.Now()
	}
	switch {
	case err == nil:
		one.Failing = time.Time{}
	case one.Failing.IsZero():
		one.Failing = time.Now()
	}
	return one
}

// Health is whether a runner gets jobs.
type Health string

// The healths of a runner.
const (
	Unasked     Health = "new"         // the forge was not asked yet
	Online      Health = "online"      // the last request was answered as it should be
	Failing     Health = "failing"     // the forge answers, with errors
	Unreachable Health = "unreachable" // it does not answer
	Refused     Health = "refused"     // it does not, or no longer, know the token
)

// Health is the runner's.
func (c Contact) Health() Health {
	switch {
	case c.Err == nil && c.At.IsZero():
		return Unasked
	case c.Err == nil:
		return Online
	case c.Status == 0:
		return Unreachable
	case c.Status == 401 || c.Status == 403 || c.Status == 404 || c.Status == 422:
		return Refused
	}
	return Failing
}
