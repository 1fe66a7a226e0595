package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"syscall"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// problem makes an error an RFC 9457 problem.
func problem(err error) huma.StatusError {
	var status huma.StatusError
	var file *FileError
	var tooBig *http.MaxBytesError
	var forge *ForgeProblem
	switch {
	case errors.As(err, &status):
		return status
	case errors.As(err, &file):
		return huma.NewError(http.StatusUnprocessableEntity, file.Error(), &huma.ErrorDetail{Message: file.Message, Location: (&FileError{file.File, file.Line, file.Column, ""}).place()})
	case errors.As(err, &forge):
		return huma.NewError(forge.status(), forge.Text)
	case errors.Is(err, queue.ErrNotFound), errors.Is(err, runner.ErrNoLog), errors.Is(err, ErrNoWorkspace), errors.Is(err, ErrNoOutput), errors.Is(err, ErrNoRunner):
		return huma.NewError(http.StatusNotFound, err.Error())
	case errors.Is(err, queue.ErrExists), errors.Is(err, queue.ErrFinished), errors.Is(err, errAttached), errors.Is(err, ErrRunnerExists):
		return huma.NewError(http.StatusConflict, err.Error())
	case errors.Is(err, sandbox.ErrDenied):
		return huma.NewError(http.StatusForbidden, err.Error())
	case errors.Is(err, ErrInvalid), errors.Is(err, sandbox.ErrUnknownImage):
		return huma.NewError(http.StatusUnprocessableEntity, err.Error())
	case errors.As(err, &tooBig), errors.Is(err, ErrTooLarge):
		return huma.NewError(http.StatusRequestEntityTooLarge, err.Error())
	case errors.Is(err, queue.ErrClosed), errors.Is(err, ErrDraining):
		return huma.NewError(http.StatusServiceUnavailable, "runnerd is stopping and takes no new jobs: try again later")
	case errors.Is(err, ErrBusy):
		return huma.NewError(http.StatusServiceUnavailable, err.Error())
	case errors.Is(err, ErrNoRoom):
		return huma.NewError(http.StatusInsufficientStorage, err.Error())
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return huma.NewError(http.StatusInsufficientStorage, err.Error()+": make room on the disk of the state directory")
	case errors.Is(err, context.DeadlineExceeded):
		return huma.NewError(http.StatusGatewayTimeout, err.Error())
	}
	return huma.NewError(http.StatusInternalServerError, err.Error())
}

func (e *FileError) place() string {
	f := *e
	f.Message = ""
	s := f.Error()
	if len(s) > 2 && s[len(s)-2:] == ": " {
		s = s[:len(s)-2]
	}
	return s
}

// writeProblem answers outside of huma.
func writeProblem(w http.ResponseWriter, err error) {
	p := problem(err)
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(p.GetStatus())
	_ = json.NewEncoder(w).Encode(p)
}
