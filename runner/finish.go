package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// state tells everyone who cares where the job is.
func (j *jobRun) state(ctx context.Context, s State, detail string) {
	j.State(context.WithoutCancel(ctx), s, detail)
	j.Observe(j.Job, s, nil)
	j.Log.Info("job state", "job", j.ID, "source", j.Kind, "project", j.Scope.String(), "state", s, "detail", j.out.mask.String(detail))
	if detail != "" {
		j.out.notice("%s", detail)
	}
}

// usage asks what the sandbox has used, even when the job is over.
func (j *jobRun) usage(ctx context.Context, sb sandbox.Sandbox) sandbox.Usage {
	ctx, cancel := j.cleanup(ctx)
	defer cancel()
	u, err := sb.Usage(ctx)
	if err != nil {
		j.Log.Warn("what the job has used is unknown", "id", j.ID, "error", err)
		return j.result.Usage
	}
	j.result.Usage = u
	return u
}

// close removes the sandbox. That it cannot does not change how the job ended.
func (j *jobRun) close(ctx context.Context, sb sandbox.Sandbox) {
	j.state(ctx, Closing, "")
	j.closeErr = j.closeSandbox(ctx, sb)
	if j.closeErr != nil {
		j.Log.Error("a sandbox was not removed", "id", j.ID, "error", j.closeErr)
	}
	j.result.Times.Closed = time.Now()
}

func (j *jobRun) closeSandbox(ctx context.Context, sb sandbox.Sandbox) (err error) {
	defer recovered("removing the sandbox", &err)
	ctx, cancel := j.cleanup(ctx)
	defer cancel()
	j.usage(ctx, sb) // while its engine is there
	err = sb.Close(ctx)
	j.usage(ctx, sb) // how long its end took, too
	return err
}

// cleanup is a context for what must be done although ctx has ended.
func (j *jobRun) cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), j.CleanupTimeout)
}

// decide turns what run has returned into the job's Result, completes the log and tells how the job ended, once.
func (j *jobRun) decide(ctx context.Context, err error) {
	if j.decided {
		return
	}
	j.decided = true
	res := &j.result
	res.Outcome, res.Reason, res.Message = outcome(err)
	res.Err = err
	if panicked := (*panicError)(nil); errors.As(err, &panicked) {
		j.Log.Error("panic", "id", j.ID, "error", err, "stack", string(panicked.stack))
	}
	for _, line := range summary(res.Usage) {
		j.out.notice("%s", line)
	}
	if text := j.lastLine(); text != "" {
		j.out.notice("%s", text)
	}
	j.out.flush()
	if lost := j.out.err(); lost != nil {
		res.Message = sentence(res.Message, fmt.Sprintf("the log is not complete: %v", lost))
	}
	res.Message = j.out.mask.String(res.Message)

	ctx, cancel := j.cleanup(ctx)
	defer cancel()
	if err := j.Decided(ctx, *res); err != nil {
		j.Log.Error("how a job ended could not be told", "id", j.ID, "outcome", res.Outcome, "error", err)
	}
}

// finish tells the job's Result, once.
func (j *jobRun) finish(ctx context.Context, err error) {
	j.decide(ctx, err)
	res := &j.result
	if j.closeErr != nil {
		res.Message = sentence(res.Message, j.out.mask.String(fmt.Sprintf("the sandbox was not removed: %v", j.closeErr)))
	}

	ctx, cancel := j.cleanup(ctx)
	defer cancel()
	if err := j.Finish(ctx, *res); err != nil {
		j.Log.Error("the result of a job could not be told", "id", j.ID, "outcome", res.Outcome, "error", err)
	}
	j.Observe(j.Job, Finished, res)
	j.Log.Info("job finished", "job", j.ID, "source", j.Kind, "project", j.Scope.String(), "state", Finished, "outcome", res.Outcome, "reason", res.Reason, "message", res.Message)
}

// lastLine is what the job's log says of how it ended.
func (j *jobRun) lastLine() string {
	if j.End != nil {
		return j.End(j.result)
	}
	if j.result.Message == "" {
		return ""
	}
	return fmt.Sprintf("job %s: %s", j.result.Outcome, j.result.Message)
}

func sentence(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// because returns err, or, when it may come from the end of ctx, the cause of that. A panic stays one.
func because(ctx context.Context, err error) error {
	if panicked := (*panicError)(nil); err == nil || ctx.Err() == nil || errors.As(err, &panicked) {
		return err
	}
	return &stopped{cause: context.Cause(ctx), err: err}
}

// stopped is the error of what did not succeed because its context ended.
type stopped struct{ cause, err error }

func (e *stopped) Error() string { return e.cause.Error() }
func (e *stopped) Unwrap() error { return e.cause }

// outcome judges how a job ended by what run has returned.
func outcome(err error) (o Outcome, reason, message string) {
	var step *stepError
	var panicked *panicError
	switch {
	case err == nil:
		return Succeeded, "", ""
	case errors.As(err, &panicked):
		return Errored, ReasonPanic, err.Error()
	case errors.Is(err, ErrTimeout):
		return TimedOut, "", err.Error() + ": ask for more with the job's timeout"
	case errors.Is(err, ErrShutdown):
		return Cancelled, ReasonShutdown, err.Error() + " before the job's end: submit it again"
	case errors.Is(err, ErrCancelled):
		return Cancelled, "", err.Error()
	case errors.Is(err, ErrTooBig):
		return Rejected, ReasonTooBig, err.Error()
	case errors.Is(err, sandbox.ErrDenied):
		return Rejected, ReasonPolicy, err.Error()
	case errors.As(err, &step) && step.err == nil && step.exit.OOM:
		return Failed, ReasonOOM, err.Error() + ": give the job more memory"
	case errors.As(err, &step) && step.err == nil:
		return Failed, "", err.Error()
	case errors.Is(err, sandbox.ErrUnknownImage):
		return Rejected, ReasonImage, err.Error()
	default:
		return Errored, "", err.Error()
	}
}
