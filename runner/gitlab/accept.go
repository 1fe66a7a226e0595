package gitlab

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// How a job is kept that the server has given and we have not accepted (GitLab's documentation, two-phase commit).
const (
	keepalive = 30 * time.Second
	// ackPatience is how long the server waits for an answer before it gives the job to another.
	ackPatience = 2 * time.Minute
)

// statusRuns is the answer to "pending" for a job that runs already.
const statusRuns = http.StatusBadRequest

// say tells the server a state, without the log.
func (j *job) say(ctx context.Context, s spec.State) (Remote, error) {
	return j.client.UpdateJob(ctx, j.record.Job, spec.Update{Token: j.record.Token, State: s})
}

// keepAlive begins to tell the server that the job waits.
func (j *job) keepAlive() {
	ctx, cancel := context.WithCancel(j.m.tell)
	j.endKeep = cancel
	j.keeping.Go(func() { j.keep(ctx) })
}

// kept ends that, and returns when it has ended.
func (j *job) kept() {
	j.endKeep()
	j.keeping.Wait()
}

// follow begins to send the log.
func (j *job) follow() {
	ctx, cancel := context.WithCancel(j.m.tell)
	j.endFollow = cancel
	j.following.Go(func() { j.trace.follow(ctx) })
}

// keep tells the server that the job waits, until ctx ends. A server that has no second phase takes the job to run; it
// is then told so from time to time, with its log.
func (j *job) keep(ctx context.Context) {
	wait := pause{least: backoffMin, most: keepalive}
	for gap := keepalive; ; {
		if sleep(ctx, gap) != nil {
			return
		}
		r, err := j.say(ctx, spec.Pending)
		switch {
		case ctx.Err() != nil:
			return
		case r.Status == statusRuns:
			j.accepted()
			j.follow()
			return
		case j.answer(r, err):
			return
		case err != nil:
			gap = wait.next(err)
		default:
			gap = keepalive
			wait.reset()
		}
	}
}

// answer judges the answer to an update of a job that has not begun; ended is whether that is the end of it.
func (j *job) answer(r Remote, err error) (ended bool) {
	if over := j.trace.note(r, err); over != nil {
		return true
	}
	if r.State == spec.Canceling {
		j.mu.Lock()
		j.unbegun = true
		j.mu.Unlock()
		j.end(runner.ErrCancelled)
		return true
	}
	if err != nil && r.Status != 0 && !temporary(r.Status) {
		j.lose(fmt.Errorf("GitLab has given it to another: %w", err))
		return true
	}
	return false
}

// accept tells the server that the job begins. When it returns, the job is ours, or cancel is closed.
func (j *job) accept(ctx context.Context) {
	j.kept()
	if j.ended() || j.record.Accepted { // a server without the second phase has it run already
		return
	}
	deadline := j.trace.contact.Add(ackPatience)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	wait := pause{least: backoffMin, most: backoffMax}
	for {
		r, err := j.say(ctx, spec.Running)
		if err == nil && !r.Over() {
			j.accepted()
		}
		if j.answer(r, err) {
			return
		}
		if err == nil {
			j.follow()
			return
		}
		if !j.rest(ctx, wait.next(err)) {
			j.mu.Lock()
			j.returned = true
			j.mu.Unlock()
			j.end(fmt.Errorf("GitLab could not be told that the job begins: %w", err))
			return
		}
	}
}

// rest waits before the next try to accept a job. It returns false if it is too late then.
func (j *job) rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
	case <-j.cancel:
	case <-j.running:
	}
	return false
}

// accepted takes down that the job runs for the server.
func (j *job) accepted() {
	j.record.Accepted = true
	if err := j.m.journal.update(j.record); err != nil {
		j.m.cfg.Log.Error("a job's progress was not written down", "id", j.record.ID, "error", err)
	}
	j.m.event(j.record, PhaseAccepted, "")
}
