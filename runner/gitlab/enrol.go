package gitlab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Forge is what enrolling asks of a forge. Its errors wrap a *StatusError if the forge has answered.
type Forge interface {
	// Verify says whether the forge knows the runner with this token, and which it is.
	Verify(ctx context.Context, token, systemID string) (spec.Registered, error)
	// Register makes a runner, with a registration token. Its Info is the forge's client's.
	Register(ctx context.Context, r spec.RegisterRequest) (spec.Registered, error)
	// Unregister removes the runner of a legacy token, UnregisterManager this machine of a runner.
	Unregister(ctx context.Context, token string) error
	UnregisterManager(ctx context.Context, token, systemID string) error
	// ResetToken gives the runner another token; this one is void from then on.
	ResetToken(ctx context.Context, token string) (spec.Registered, error)
}

// EnrolConfig is what Enrolment needs.
type EnrolConfig struct {
	Runners  *Registrations
	Contacts *Contacts
	// Dial returns the forge of a registration. Nothing is connected before the first call.
	Dial func(r Registration) (Forge, error)
	Log  *slog.Logger
}

// Enrolment makes this machine known to forges, and unknown again. Its methods may be called by several goroutines.
type Enrolment struct{ EnrolConfig }

// NewEnrolment returns one.
func NewEnrolment(c EnrolConfig) *Enrolment {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Enrolment{c}
}

// Register makes a runner of r, whose token is an authentication token, or a registration token if with is not nil,
// and keeps it. A name is made of the forge's and the runner's id if it has none. The error is a *ForgeError if the
// forge refuses.
func (e *Enrolment) Register(ctx context.Context, r Registration, with *spec.RegisterRequest) (Registration, error) {
	name := r.Name
	if name == "" {
		r.Name = "new"
	}
	r = e.Runners.Complete(r)
	if err := r.Check(); err != nil {
		return r, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if _, err := e.Runners.Get(name); err == nil { // before the forge makes a runner that nobody would use
		return r, fmt.Errorf("runner %q: %w: use another name, or unregister it first", name, ErrExists)
	}
	forge, err := e.Dial(r)
	if err != nil {
		return r, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	var got spec.Registered
	if with != nil {
		request := *with
		request.Token = r.Token
		made, cancel := once(ctx)
		got, err = forge.Register(made, request)
		cancel()
	} else {
		asking, cancel := context.WithTimeout(ctx, askTimeout)
		got, err = forge.Verify(asking, r.Token, r.SystemID)
		cancel()
	}
	if err != nil {
		return r, e.explain("register", r, err)
	}
	take(&r, got)
	if r.Name = name; name == "" {
		r.Name = e.freeName(r)
	}
	if err := e.Runners.Add(r); err != nil {
		if with != nil { // it was made for us
			err = errors.Join(err, e.undo(ctx, forge, r))
		}
		return r, err
	}
	e.Contacts.Met(r.Name, nil)
	e.Log.Info("a runner was registered", "runner", r)
	return r, nil
}

// askTimeout bounds what a forge may take to answer: a bit less than who asks us waits.
const askTimeout = 50 * time.Second

// once is a context for what the forge does once: cut off in its midst, its answer, with the only token, would be lost.
func once(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), askTimeout)
}

// undo removes a runner that was made a moment ago.
func (e *Enrolment) undo(ctx context.Context, forge Forge, r Registration) error {
	ctx, cancel := once(ctx)
	defer cancel()
	if err := forge.Unregister(ctx, r.Token); err != nil {
		return fmt.Errorf("runner %d is left at %s: remove it there: %w", r.ID, r.URL, err)
	}
	return nil
}

// take takes over what the forge has said of a runner.
func take(r *Registration, got spec.Registered) {
	if got.ID != 0 {
		r.ID = got.ID
	}
	if got.Token != "" && got.Token != r.Token {
		r.Token, r.TokenObtained = got.Token, time.Now().UTC()
	}
	if r.TokenObtained.IsZero() {
		r.TokenObtained = time.Now().UTC()
	}
	r.TokenExpires = time.Time{}
	if t, err := time.Parse(time.RFC3339, got.TokenExpiresAt); err == nil {
		r.TokenExpires = t
	}
}

// freeName is a name for a registration that has none.
func (e *Enrolment) freeName(r Registration) string {
	u, _ := url.Parse(r.URL)
	host := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '-'
	}, u.Host)
	base := fmt.Sprintf("%.40s-%d", strings.Trim(host, "-."), r.ID)
	name := base
	for i := 2; ; i++ {
		if _, err := e.Runners.Get(name); err != nil {
			return name
		}
		name = fmt.Sprintf("%s-%d", base, i)
	}
}

// Verify asks the forge whether it knows a runner. The error wraps ErrUnknown if we do not, and is a *ForgeError if the
// forge does not.
func (e *Enrolment) Verify(ctx context.Context, name string) (Registration, error) {
	r, err := e.Runners.Get(name)
	if err != nil {
		return r, err
	}
	forge, err := e.Dial(r)
	if err != nil {
		return r, err
	}
	asking, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	got, err := forge.Verify(asking, r.Token, r.SystemID)
	e.Contacts.Met(name, err)
	if err != nil {
		return r, e.explain("verify", r, err)
	}
	old := r
	take(&r, got)
	if r.ID == old.ID && r.Token == old.Token && r.TokenExpires.Equal(old.TokenExpires) && r.TokenObtained.Equal(old.TokenObtained) {
		return r, nil
	}
	return r, e.Runners.Update(name, func(now *Registration) {
		if now.Token == old.Token { // else it was renewed meanwhile
			take(now, got)
		}
	})
}

// Unregister removes a runner from the forge, unless keep, and forgets it. A runner whose token was made in GitLab stays
// there, without this machine. That the forge does not know the runner any more is no error.
func (e *Enrolment) Unregister(ctx context.Context, name string, keep bool) error {
	r, err := e.Runners.Get(name)
	if err != nil {
		return err
	}
	if !keep {
		if err := e.leave(ctx, r); err != nil {
			return err
		}
	}
	if err := e.Runners.Remove(name); err != nil {
		return err
	}
	e.Contacts.forget(name)
	e.Log.Info("a runner was unregistered", "runner", r, "kept_on_server", keep)
	return nil
}

func (e *Enrolment) leave(ctx context.Context, r Registration) error {
	forge, err := e.Dial(r)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if isCreated(r.Token) {
		err = forge.UnregisterManager(ctx, r.Token, r.SystemID)
	} else {
		err = forge.Unregister(ctx, r.Token)
	}
	if refused := (*StatusError)(nil); errors.As(err, &refused) && (refused.Status == 403 || refused.Status == 404) {
		e.Log.Warn("the forge did not know a runner that was unregistered", "runner", r, "error", err)
		return nil
	}
	if err != nil {
		return e.explain("unregister", r, err)
	}
	return nil
}

// Forget forgets a runner without a word to the forge, if it is there.
func (e *Enrolment) Forget(name string) {
	if err := e.Runners.Remove(name); err == nil {
		e.Contacts.forget(name)
	}
}

// Rotate has the forge give the runner another token. The old one is void from then on, for other machines too.
func (e *Enrolment) Rotate(ctx context.Context, name string) (Registration, error) {
	r, err := e.Runners.Get(name)
	if err != nil {
		return r, err
	}
	forge, err := e.Dial(r)
	if err != nil {
		return r, err
	}
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	resetting, cancel := once(ctx)
	defer cancel()
	got, err := forge.ResetToken(resetting, r.Token)
	e.Contacts.Met(name, err)
	if err == nil && got.Token == "" {
		err = errors.New("the forge gave no token")
	}
	if err != nil {
		return r, e.explain("rotate the token of", r, err)
	}
	if err := e.Runners.Update(name, func(now *Registration) { take(now, got); r = *now }); err != nil {
		return r, fmt.Errorf("the new token of %s is lost, the old one is void: make one in GitLab and register again: %w", name, err)
	}
	e.Log.Info("the token of a runner was renewed", "runner", r, "expires", r.TokenExpires)
	return r, nil
}

// Asked notes what came of a request for a job, as Contacts.Asked does, and returns Why.
func (e *Enrolment) Asked(r Registration, job bool, err error) (problem string) {
	e.Contacts.Asked(r.Name, job, err)
	return e.Why(r)
}
