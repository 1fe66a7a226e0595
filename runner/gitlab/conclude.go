package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// fate is what is to be told of a job that is over on this machine.
type fate int

const (
	fateLost        fate = iota // nothing: the server has told us
	fateReturned                // that it was not begun
	fateDecided                 // how it ended
	fateInterrupted             // that the process that had it is no more
)

// errTooLate is the cause when the server could not be told for too long.
var errTooLate = fmt.Errorf("GitLab did not answer for %s", finalPatience)

// recover brings to their end the jobs that an earlier process has left. None of them is run.
func (m *Manager) recover() error {
	records, err := m.journal.all()
	if err != nil {
		m.cfg.Log.Error("the journal of GitLab's jobs has files that are not used", "error", err)
	}
	for _, r := range records {
		client, err := m.client(Registration{Name: r.Registration, URL: r.URL, CAFile: r.CAFile, Executor: DefaultExecutor})
		if err != nil {
			m.cfg.Log.Error("GitLab is not told of a job that runnerd was interrupted in", "id", r.ID, "error", err)
			continue
		}
		s, err := openSpool(m.journal.trace(r.ID), 0)
		if err != nil {
			return fmt.Errorf("job %s: %w", r.ID, err)
		}
		t := m.newTrace(r, client, s)
		t.unknown = true
		f := fateReturned
		switch {
		case r.Verdict != nil:
			f = fateDecided
		case r.Accepted:
			f = fateInterrupted
		}
		m.telling.Go(func() { m.conclude(r, client, s, t, f) })
	}
	return nil
}

// conclude tells the server of a job, for as long as it takes, and forgets it.
func (m *Manager) conclude(r record, c *Client, s *spool, t *trace, f fate) {
	phase, detail := m.told(&r, c, s, t, f)
	if s != nil {
		if err := s.Close(); err != nil {
			m.cfg.Log.Error("the log of a job was not closed", "id", r.ID, "error", err)
		}
	}
	if phase == "" {
		return // the next process goes on with it
	}
	if phase != PhaseLost || f != fateLost { // that was said already
		m.event(r, phase, detail)
	}
	if err := m.journal.remove(r.ID); err != nil {
		m.cfg.Log.Error("a job was not forgotten", "id", r.ID, "error", err)
	}
}

// told tells the server. It returns what came of it; nothing if the Manager was closed before.
func (m *Manager) told(r *record, c *Client, s *spool, t *trace, f fate) (p Phase, detail string) {
	if f == fateLost {
		return PhaseLost, ""
	}
	since := r.Decided
	if since.IsZero() {
		since = time.Now()
	}
	ctx, cancel := context.WithDeadlineCause(m.tell, since.Add(finalPatience), errTooLate)
	defer cancel()

	if f == fateReturned {
		runs, err := giveBack(ctx, c, *r)
		switch {
		case err != nil:
			return m.untold(err)
		case !runs:
			return PhaseReturned, ""
		case s == nil:
			return PhaseUntold, "it runs for GitLab, and its log could not be opened"
		}
		r.Accepted, f = true, fateInterrupted
	}
	if f == fateInterrupted {
		if err := m.interrupt(r, s); err != nil {
			return PhaseUntold, err.Error()
		}
	}
	err := announce(ctx, c, r)
	if err == nil {
		err = t.finish(ctx, spec.Update{State: r.Verdict.State, FailureReason: r.Verdict.Reason, ExitCode: r.Verdict.ExitCode})
	}
	if err != nil {
		return m.untold(err)
	}
	return PhaseDone, ""
}

// untold is what came of an error.
func (m *Manager) untold(err error) (Phase, string) {
	switch {
	case errors.Is(err, errOver):
		return PhaseLost, err.Error()
	case m.tell.Err() != nil:
		return "", ""
	}
	return PhaseUntold, err.Error()
}

// interrupted is what happened to a job whose process is no more.
const interrupted = "runnerd was interrupted while this job ran"

// interrupt decides on such a job, and says so in its log.
func (m *Manager) interrupt(r *record, s *spool) error {
	end, err := s.read(max(0, s.Size()-1), 1)
	if err != nil {
		return err
	}
	text := failureLine("Job failed (system failure): %s", interrupted) + "\n"
	var w io.Writer = s
	if r.Stamps {
		w = stamped(s, runner.Notice)
	}
	if len(end) > 0 && end[0] != '\n' {
		_, err = io.WriteString(s, "\n")
	}
	if err == nil {
		_, err = io.WriteString(w, text)
	}
	if err != nil {
		return err
	}
	r.Verdict, r.Decided = &Verdict{State: spec.Failed, Reason: spec.RunnerSystemFailure}, time.Now()
	m.event(*r, PhaseDecided, interrupted)
	return m.journal.update(*r)
}

// giveBack tells the server that a job was not begun. There is no call for that: a job that is not accepted goes to
// another runner after a while. But a server without the second phase takes it to run, and says so when it is told
// that it does not.
func giveBack(ctx context.Context, c *Client, r record) (runs bool, err error) {
	wait := pause{least: backoffMin, most: backoffMax}
	for {
		answer, err := c.UpdateJob(ctx, r.Job, spec.Update{Token: r.Token, State: spec.Pending})
		switch {
		case err == nil:
			return false, nil
		case answer.Status == statusRuns:
			return true, nil
		case answer.Status != 0 && !temporary(answer.Status):
			return false, fmt.Errorf("%w: %w", errOver, err)
		}
		if cause := sleep(ctx, wait.next(err)); cause != nil {
			return false, fmt.Errorf("%w (%w)", cause, err)
		}
	}
}

// announce accepts a job that ended before it began, so that its end can be told.
func announce(ctx context.Context, c *Client, r *record) error {
	wait := pause{least: backoffMin, most: backoffMax}
	for !r.Accepted {
		answer, err := c.UpdateJob(ctx, r.Job, spec.Update{Token: r.Token, State: spec.Running})
		switch {
		case answer.Over():
			return fmt.Errorf("%w: it is %s there", errOver, answer.State)
		case err == nil:
			r.Accepted = true
			continue
		case answer.Status != 0 && !temporary(answer.Status):
			return fmt.Errorf("%w: %w", errOver, err)
		}
		if cause := sleep(ctx, wait.next(err)); cause != nil {
			return fmt.Errorf("%w (%w)", cause, err)
		}
	}
	return nil
}
