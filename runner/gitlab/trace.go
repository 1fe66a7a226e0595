package gitlab

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// How a log is sent (gitlab-runner, common/consts.go).
const (
	maxPatch        = 1 << 20          // bytes of one patch
	defaultInterval = 3 * time.Second  // between patches, until the server says
	touchAfter      = 30 * time.Second // of nothing sent, the server is told that the job still runs
	// finalPatience is how long a job's end is tried to be told.
	finalPatience = time.Hour
	// firstGap is the time between a job's first patch, which is sent at once, and its second; then it is the interval.
	// Who starts a job wants to see that it begins.
	firstGap = 250 * time.Millisecond
	// patchPatience is how long a patch that is under way when the job ends is waited for before it is sent anew.
	patchPatience = 30 * time.Second
)

// trace sends a job's log and state. Its methods are for one goroutine at a time.
type trace struct {
	client *Client
	spool  *spool
	job    int64
	token  string
	debug  bool // the log may hold what is secret: only those who may push see it

	// canceling is called when the server wants the script to stop, over when it wants nothing more of the job.
	canceling func()
	over      func(why error)

	sent     int64 // bytes that the server has
	unknown  bool  // it may have more: another process has sent some
	contact  time.Time
	interval time.Duration
	notUntil time.Time // the server wants to be left alone
}

// errOver is wrapped by the errors of a job that the server wants nothing more of.
var errOver = errors.New("the job is over for GitLab")

// note takes what an answer says of the job.
func (t *trace) note(r Remote, err error) error {
	if status := (*StatusError)(nil); errors.As(err, &status) && status.RetryAfter > 0 {
		t.notUntil = time.Now().Add(min(status.RetryAfter, maxRetryAfter))
	}
	if r.Status != 0 && (err == nil || !temporary(r.Status)) {
		t.contact = time.Now()
	}
	if r.Interval > 0 {
		t.interval = r.Interval
	}
	if r.State == spec.Canceling {
		t.canceling()
	}
	if !r.Over() {
		return nil
	}
	why := fmt.Errorf("%w: it is %s there", errOver, r.State)
	if r.Status == http.StatusForbidden {
		why = fmt.Errorf("%w: it has ended or was erased there, or its log is over the server's limit: %w", errOver, err)
	}
	t.over(why)
	return why
}

// follow sends the log while the job runs, until ctx ends or the job is over.
func (t *trace) follow(ctx context.Context) {
	calls, cancel := lingering(ctx, patchPatience)
	defer cancel()
	gap, wait := firstGap, pause{least: backoffMin, most: backoffMax}
	var notBefore time.Time // of the next patch
	for {
		now := time.Now()
		pending := t.spool.Size() > t.sent
		wake := t.contact.Add(touchAfter)
		if pending && notBefore.Before(wake) {
			wake = notBefore
		}
		timer := time.NewTimer(max(0, wake.Sub(now)))
		var grew <-chan struct{}
		if !pending {
			grew = t.spool.grew
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-grew:
			timer.Stop()
			continue
		case <-timer.C:
		}

		var err error
		patching := pending && !time.Now().Before(notBefore)
		if patching {
			err = t.patch(calls)
		} else {
			err = t.touch(calls)
		}
		switch {
		case errors.Is(err, errOver):
			return
		case err != nil:
			notBefore = time.Now().Add(wait.next(err))
			t.contact = later(t.contact, notBefore.Add(-touchAfter)) // a touch must wait, too
		case t.spool.Size()-t.sent >= maxPatch: // it lags behind
			wait.reset()
			notBefore = time.Now()
		default:
			wait.reset()
			if patching {
				notBefore = time.Now().Add(min(gap, t.interval))
				gap = maxInterval
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// patch sends the next piece, if there is one.
func (t *trace) patch(ctx context.Context) error {
	most := maxPatch
	if t.unknown { // the answer to as little as can be says how much there is
		most, t.unknown = 1, false
	}
	data, err := t.spool.read(t.sent, most)
	if err != nil || len(data) == 0 {
		return err
	}
	next, r, err := t.client.PatchTrace(ctx, t.job, t.token, t.sent, data, t.debug)
	if over := t.note(r, err); over != nil {
		return over
	}
	size := t.spool.Size()
	switch {
	case err == nil && next >= 0 && next <= size:
		t.sent = next
	case err == nil:
		t.sent += int64(len(data))
	case errors.Is(err, ErrRange):
		// It goes on where the server says. That it says the same again is no progress, and will be waited with.
		before := t.sent
		t.sent = min(max(0, next), size)
		if t.sent != before {
			err = nil
		}
	}
	return err
}

// touch tells that the job still runs.
func (t *trace) touch(ctx context.Context) error {
	r, err := t.update(ctx, spec.Update{State: spec.Running})
	if over := t.note(r, err); over != nil {
		return over
	}
	return err
}

func (t *trace) update(ctx context.Context, u spec.Update) (Remote, error) {
	u.Token, u.Output = t.token, t.spool.output()
	u.Checksum = u.Output.Checksum
	return t.client.UpdateJob(ctx, t.job, u)
}

// finish sends what is left of the log, and then how the job ended, until the server has both. It returns nil when it
// has, an error that wraps errOver if it wants neither, and another one when ctx has ended.
func (t *trace) finish(ctx context.Context, u spec.Update) error {
	t.interval = defaultInterval
	wait := pause{least: backoffMin, most: backoffMax}
	mismatches := 0
	if err := sleep(ctx, time.Until(t.notUntil)); err != nil {
		return err
	}
	for {
		err := t.finishOnce(ctx, u)
		var status *StatusError
		var gap time.Duration
		switch {
		case err == nil:
			return nil
		case errors.Is(err, errOver):
			return err
		case ctx.Err() != nil:
			return fmt.Errorf("%w (%w)", context.Cause(ctx), err)
		case errors.As(err, &status) && status.Status == http.StatusAccepted:
			gap = t.interval // the server still assembles the log
			wait.reset()
		case errors.Is(err, ErrMismatch):
			t.sent = 0
			if mismatches++; mismatches > 1 {
				gap = t.interval
			}
			wait.reset()
		default:
			gap = wait.next(err)
		}
		if cause := sleep(ctx, gap); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
	}
}

func (t *trace) finishOnce(ctx context.Context, u spec.Update) error {
	for t.sent < t.spool.Size() {
		if err := t.patch(ctx); err != nil {
			return err
		}
	}
	r, err := t.update(ctx, u)
	if r.Interval > 0 {
		t.interval = r.Interval
	}
	switch {
	case err == nil: // Job-Status now says how it ended, which is no news
		return nil
	case r.Over() || r.Status == http.StatusNotFound:
		return fmt.Errorf("%w: %w", errOver, err)
	}
	return err
}

// lingering is a context for calls that should not be cut off as soon as ctx ends: the server may have done what they
// ask for. It ends that much later.
func lingering(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	calls, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel(context.Cause(ctx))
		case <-calls.Done():
		}
	})
	return calls, func() { stop(); cancel(nil) }
}
