package runner

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/runnerd/runnerd/sandbox"
)

// stepError is the end of the steps: what a step returned when it did not succeed.
type stepError struct {
	step string
	exit sandbox.Exit // when err is nil
	err  error
}

func (e *stepError) Error() string {
	if e.err != nil {
		return fmt.Sprintf("step %s: %v", e.step, e.err)
	}
	return fmt.Sprintf("step %s: %s", e.step, e.exit)
}

func (e *stepError) Unwrap() error { return e.err }

// steps runs the steps in order until one does not succeed.
func (j *jobRun) steps(ctx context.Context, sb sandbox.Sandbox) error {
	var oomKills int64
	defer j.out.flush()
	for i, step := range j.Steps {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name, exit, err := j.step(ctx, sb, step)
		j.out.flush()
		j.result.ExitCode = exit.Code
		if err != nil {
			j.result.Step = name
			return &stepError{step: name, err: err}
		}
		if exit.Success() && i == len(j.Steps)-1 {
			return nil
		}
		kills := j.usage(ctx, sb).OOMKills
		if !exit.Success() {
			j.result.Step = name
			exit.OOM = exit.OOM || kills > oomKills
			return &stepError{step: name, exit: exit}
		}
		oomKills = kills
	}
	return nil
}

func (j *jobRun) step(ctx context.Context, sb sandbox.Sandbox, s Step) (name string, exit sandbox.Exit, err error) {
	defer recovered("running a step", &err)
	name = s.Name()
	exit, err = s.Run(ctx, sb, j.out)
	if d, ok := s.(Detailer); ok {
		if detail := d.Detail(); len(detail) > 0 {
			j.result.Detail = j.out.mask.JSON(detail)
		}
	}
	return name, exit, err
}

// recovered turns a panic into an error. It is to be deferred.
func recovered(doing string, err *error) {
	if p := recover(); p != nil {
		*err = &panicError{doing: doing, value: p, stack: debug.Stack()}
	}
}

type panicError struct {
	doing string
	value any
	stack []byte
}

func (e *panicError) Error() string {
	return fmt.Sprintf("runnerd panicked while %s: %v: please report this", e.doing, e.value)
}
