package gitlab

import (
	"context"
	"errors"
	"time"
)

// Tokens are renewed when 3/4 of their time are over, as gitlab-runner does. What fails is tried again after the
// first of these, then twice as long, at most the second.
const (
	rotationRetryMin = time.Minute
	rotationRetryMax = time.Hour
)

// RotationDue is when a token should be renewed; zero: never.
func (r Registration) RotationDue() time.Time {
	if r.TokenExpires.IsZero() || r.Ephemeral {
		return time.Time{}
	}
	life := r.TokenExpires.Sub(r.TokenObtained)
	if r.TokenObtained.IsZero() || life <= 0 {
		return r.TokenExpires.Add(-rotationRetryMax)
	}
	return r.TokenExpires.Add(-life / 4)
}

// KeepTokens renews tokens before they end, until ctx ends.
func (e *Enrolment) KeepTokens(ctx context.Context) {
	waits := map[string]retry{} // by name
	for {
		changed := e.Runners.Changed()
		now := time.Now()
		var next time.Time
		for _, r := range e.Runners.List() {
			due := r.RotationDue()
			if due.IsZero() {
				continue
			}
			if w, ok := waits[r.Name]; ok && w.token == r.Token && w.at.After(due) {
				due = w.at
			}
			if !due.After(now) {
				due = e.renew(ctx, r, waits)
			}
			if ctx.Err() != nil {
				return
			}
			if !due.IsZero() && (next.IsZero() || due.Before(next)) {
				next = due
			}
		}
		var alarm <-chan time.Time
		if !next.IsZero() {
			alarm = time.After(max(0, time.Until(next)))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-alarm:
		}
	}
}

// retry is when a token may be renewed again.
type retry struct {
	token string
	at    time.Time
	wait  time.Duration
}

// renew renews one token and returns when it is due again.
func (e *Enrolment) renew(ctx context.Context, r Registration, waits map[string]retry) (due time.Time) {
	fresh, err := e.Rotate(ctx, r.Name)
	if err == nil { // a token that is due at once is no reason to hurry
		waits[r.Name] = retry{token: fresh.Token, at: time.Now().Add(rotationRetryMin)}
		return waits[r.Name].at
	}
	if errors.Is(err, ErrUnknown) || ctx.Err() != nil {
		return time.Time{}
	}
	w := waits[r.Name]
	if w.token != r.Token {
		w = retry{token: r.Token}
	}
	w.wait = min(max(2*w.wait, rotationRetryMin), rotationRetryMax)
	w.at = time.Now().Add(w.wait)
	waits[r.Name] = w
	e.Log.Error("the token of a runner was not renewed", "runner", r, "expires", r.TokenExpires, "error", err, "again", w.at)
	return w.at
}
