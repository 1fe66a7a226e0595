package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// State tells this machine's journal where the job is, and the server that it begins.
func (j *job) State(ctx context.Context, s runner.State, detail string) {
	j.settle()
	j.local.State(ctx, s, detail)
	if s == runner.Opening {
		j.accept(ctx)
	}
}

// Stream is where the job writes. Progress of builds stays on this machine.
func (j *job) Stream(s runner.Stream) io.Writer {
	if own := j.streams[s]; own != nil {
		return own
	}
	return j.local.Stream(s)
}

// lastLine says how the job ended, as gitlab-runner does.
func (j *job) lastLine(r runner.Result) string {
	message := strings.TrimPrefix(r.Message, "step "+r.Step+": ")
	switch v := j.verdict(r); {
	case v.State == spec.Success:
		return "\x1b[32;1mJob succeeded\x1b[0;m"
	case v.Reason == spec.JobCanceled:
		return failureLine("Job failed: canceled")
	case r.Outcome == runner.Failed && r.Reason == "":
		return failureLine("Job failed: exit code %d", r.ExitCode)
	case v.Reason == spec.RunnerSystemFailure || v.Reason == spec.RunnerInterrupted:
		return failureLine("Job failed (system failure): %s", message)
	}
	return failureLine("Job failed: %s", message)
}

// failureLine is how gitlab-runner says in a log what ended the job.
func failureLine(format string, args ...any) string {
	return "\x1b[31;1mERROR: " + fmt.Sprintf(format, args...) + "\x1b[0;m"
}

// verdict is what the server is to be told, with the reason as we have it.
func (j *job) verdict(r runner.Result) Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	return verdictOf(r, j.canceling, j.m.cfg.Reason)
}

// Decided takes down how the job ended, and has the server told in the background.
func (j *job) Decided(_ context.Context, r runner.Result) error {
	j.kept()
	j.endFollow()
	j.end(runner.ErrCancelled) // for who watches
	j.mu.Lock()
	if !j.record.Accepted && r.Outcome == runner.Cancelled && r.Reason == runner.ReasonShutdown {
		j.returned = true // another may have it
	}
	j.mu.Unlock()
	err := j.decide(r)
	j.conclude()
	return err
}

// Finish lets go of the job, of which nothing is left.
func (j *job) Finish(ctx context.Context, r runner.Result) error {
	j.mu.Lock()
	if j.lost && r.Outcome == runner.Cancelled {
		r.Message = j.why.Error()
	}
	j.mu.Unlock()
	defer j.leave()
	return j.local.Finish(ctx, r)
}

// decide writes down how the job ended.
func (j *job) decide(r runner.Result) error {
	var errs []error
	for _, s := range j.streams {
		errs = append(errs, s.flush())
	}
	if j.fate() != fateDecided {
		return errors.Join(errs...)
	}
	v := j.verdict(r)
	if v.State == spec.Failed && !j.unbegun { // gitlab-runner tells job_canceled of a job that did not begin, whatever the server knows
		v.Reason = supported(v.Reason, j.record.Reasons)
	}
	j.record.Verdict, j.record.Decided = &v, time.Now()
	j.m.event(j.record, PhaseDecided, r.Message)
	return errors.Join(append(errs, j.m.journal.update(j.record))...)
}
