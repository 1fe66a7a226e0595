package main

import (
	"context"
	"errors"
	"net/http"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

// The exit codes, which are part of the interface.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitRejected    = 3
	exitUnreachable = 4
	exitTimeout     = 124
	exitErrored     = 125
	exitCancelled   = 130
	exitOOM         = 137
)

const exitHelp = `Exit codes:
    0  everything succeeded
    1  a job failed, what was asked for is not there, or a forge does not answer
    2  wrong usage, configuration or build file
    3  rejected by policy or by a forge, or larger than the machine
    4  the daemon cannot be reached
  124  timeout
  125  runnerd's own error
  130  cancelled
'run' exits with the command's own code; 126: it cannot be executed, 127: it is not found, 128+n: signal n
ended it, 137: also out of memory.`

// exitError ends the program with a code. A nil err has been told already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}
func (e *exitError) Unwrap() error { return e.err }

func usage(err error) error { return &exitError{exitUsage, err} }

func exitCode(err error) int {
	var exit *exitError
	var problem *client.Problem
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.Is(err, client.ErrUnreachable):
		return exitUnreachable
	case errors.Is(err, context.Canceled):
		return exitCancelled
	case errors.As(err, &problem):
		switch problem.Status {
		case http.StatusForbidden, http.StatusGone:
			return exitRejected
		case http.StatusNotFound, http.StatusConflict, http.StatusBadGateway:
			return exitFailed
		case http.StatusBadRequest, http.StatusUnprocessableEntity, http.StatusRequestEntityTooLarge:
			return exitUsage
		}
	}
	return exitErrored
}

// resultCode is the exit code of a job that has ended.
func resultCode(r *api.Result) int {
	switch {
	case r == nil:
		return exitErrored
	case r.Outcome == runner.Succeeded:
		return exitOK
	case r.Outcome == runner.Failed && r.Reason == runner.ReasonOOM:
		return exitOOM
	case r.Outcome == runner.Failed && r.ExitCode > 0 && r.ExitCode < 256:
		return r.ExitCode
	case r.Outcome == runner.Failed:
		return exitFailed
	case r.Outcome == runner.Rejected:
		return exitRejected
	case r.Outcome == runner.TimedOut:
		return exitTimeout
	case r.Outcome == runner.Cancelled:
		return exitCancelled
	}
	return exitErrored
}
