package gitlab

import (
	"errors"
	"maps"
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

// Saw returns a ClientOptions.Observe that notes what comes of asking for jobs for a runner.
func (c *Contacts) Saw(name string) func(Call) {
	return func(k Call) {
		if k.Endpoint == "jobs/request" {
			c.asked(name, k.Status)
		}
	}
}

// asked notes what came of a request for a job: its status, 0 if there was no answer.
func (c *Contacts) asked(name string, status int) {
	kind := kindOf(status)
	var err error
	switch kind {
	case GotJob, GotNone, GotConflict:
	case GotNoAnswer:
		err = errNoAnswer
	default:
		err = &StatusError{Status: status}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(name, status, err).Answers[kind]++
}

var errNoAnswer = errors.New("the forge does not answer")

// Met notes what came of another request that says whether the forge knows the runner.
func (c *Contacts) Met(name string, err error) {
	status := 200
	if refused := (*StatusError)(nil); errors.As(err, &refused) {
		status = refused.Status
	} else if err != nil {
		status = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(name, status, err)
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
