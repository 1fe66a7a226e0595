package gitlab

import (
	"context"
	"errors"
	"fmt"
)

// ErrInvalid is wrapped by errors of registrations that cannot be.
var ErrInvalid = errors.New("no such runner can be")

// ForgeError is a forge's refusal, or its silence, in words that say how to mend it.
type ForgeError struct {
	Status int // of HTTP; 0: there was no answer
	Text   string
	err    error
}

func (e *ForgeError) Error() string { return e.Text }
func (e *ForgeError) Unwrap() error { return e.err }

// explain makes an error of the forge a *ForgeError.
func (e *Enrolment) explain(what string, r Registration, err error) error {
	status, said := 0, err.Error()
	if refused := (*StatusError)(nil); errors.As(err, &refused) {
		status = refused.Status
		said = refused.Error()
	} else if errors.Is(err, context.Canceled) {
		return err
	}
	name := r.Name
	if what == "register" {
		name = "a runner"
	}
	return &ForgeError{Status: status, Text: fmt.Sprintf("%s %s at %s: %s: %s", what, name, r.URL, said, e.mend(what, r, status)), err: err}
}

// mend says what to do about a status.
func (e *Enrolment) mend(what string, r Registration, status int) string {
	own := IsAuthenticationToken(r.Token)
	switch {
	case status == 0:
		return "check the URL, the network and the machine's proxy; for a certificate of your own give --ca-file"
	case (status == 401 || status == 403) && what == "register" && !own:
		return "the registration token is wrong, or such tokens are disabled: make a runner in GitLab (Settings > CI/CD > Runners) and use its glrt- token"
	case (status == 401 || status == 403) && what == "register":
		return "GitLab does not know the token " + ShortToken(r.Token) + "…: copy it again, or make a new runner there"
	case status == 401 || status == 403:
		return "GitLab does not know the runner any more, it was removed there or its token renewed: run 'runnerd unregister --keep-on-server " + r.Name + "' and register a new one"
	case status == 404:
		return "there is no GitLab of this version below the URL: check it, with its path if GitLab has one"
	case status == 410:
		return "this GitLab takes no registration tokens any more: make a runner in GitLab (Settings > CI/CD > Runners) and use its glrt- token"
	case status == 422:
		return "the runner belongs to no project or group any more, or GitLab does not take one of its settings: look at it in GitLab, or make a new one"
	case status == 429:
		return "GitLab has had too many requests: try again later"
	case status >= 500:
		return "GitLab has a problem of its own: try again later"
	}
	return "see the log of GitLab"
}

// Why says why a runner gets no jobs, and how to mend it; empty if all is well.
func (e *Enrolment) Why(r Registration) string {
	c := e.Contacts.Of(r.Name)
	if c.Err == nil {
		return ""
	}
	if refused := (*ForgeError)(nil); errors.As(e.explain("ask for jobs for", r, c.Err), &refused) {
		return refused.Text
	}
	return c.Err.Error()
}
