// Package api is the face of runnerd to its command line and to other programs: HTTP and JSON on a unix
// socket, described by OpenAPI at /openapi.json. Package client speaks it.
package api

import (
	"context"
	"errors"
	"fmt"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
)

// Backend is what the API stands in front of. *queue.Queue is one; its methods say what they promise.
type Backend interface {
	Submit(ctx context.Context, requests []runner.Request, secrets map[string][]string) error
	Get(ctx context.Context, id string) (queue.Info, error)
	List(ctx context.Context, f queue.Filter) ([]queue.Info, error)
	Cancel(ctx context.Context, id, reason string) error
	Watch(ctx context.Context, id string) (<-chan queue.Info, error)
	Logs(ctx context.Context, id string, follow bool, fn func(runner.Frame) error) error
}

var _ Backend = (*queue.Queue)(nil)

// Builder reads build files.
type Builder interface {
	// Plan reads the files of b in dir and returns one target a job. An error that wraps *FileError is the
	// user's and says where it is; so is one that wraps ErrInvalid.
	Plan(ctx context.Context, dir string, b Build) ([]Target, error)
}

// Target is one job of a build.
type Target struct {
	// Request is complete but for ID, Group, Project, Kind and Timeout.
	Request runner.Request
	// Secrets are what queue.SubmittedSecrets gives back when the job's turn has come. They are masked.
	Secrets []string
}

// ErrInvalid is wrapped by errors that are the client's: it asked for what cannot be.
var ErrInvalid = errors.New("invalid request")

// ErrNoRoom is wrapped by errors of a daemon whose disk is full.
var ErrNoRoom = errors.New("no room for another job")

// ErrBusy is wrapped by errors of a daemon that has no room for a request now.
var ErrBusy = errors.New("runnerd is busy: try again later")

// FileError is something wrong in a file that the client has sent.
type FileError struct {
	File         string
	Line, Column int // from 1; 0 if unknown
	Message      string
}

func (e *FileError) Error() string {
	switch {
	case e.Line > 0 && e.Column > 0:
		return fmt.Sprintf("%s:%d:%d: %s", e.File, e.Line, e.Column, e.Message)
	case e.Line > 0:
		return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Message)
	case e.File != "":
		return e.File + ": " + e.Message
	}
	return e.Message
}
