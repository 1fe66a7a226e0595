package plugin

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// Limits of one decision.
const (
	decisionFuel = 5 * time.Second // of processor time
	decisionTime = 20 * time.Second
	maxAnswer    = 64 << 10 // bytes
)

// Admission decides whether jobs may run.
type Admission struct{ m *module }

// NewAdmission returns the Admission that the module in a file makes, run by a program.
func NewAdmission(program, path string, log *slog.Logger) *Admission {
	return &Admission{newModule(program, path, sandbox.Module{Fuel: decisionFuel, Time: decisionTime}, log)}
}

// question is what the module is asked about, in JSON on its standard input: nothing that may hold a secret.
type question struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Kind      string         `json:"kind"`
	Forge     string         `json:"forge"`
	Project   string         `json:"project"`
	Untrusted bool           `json:"untrusted"`
	Sandbox   string         `json:"sandbox"`
	Image     string         `json:"image"`
	Limits    sandbox.Limits `json:"limits"`
	TimeoutNs int64          `json:"timeout_ns"`
	Module    sandbox.Module `json:"module"`
}

// answer is what it says, in JSON on its standard output, before it exits with 0.
type answer struct {
	Allow  *bool  `json:"allow"`
	Reason string `json:"reason"`
}

// Admit returns nil if the job may run, else an error that wraps sandbox.ErrDenied: a module that fails, or gives no
// answer, has not allowed it. When ctx ends the error is its cause.
func (a *Admission) Admit(ctx context.Context, r runner.Request) error {
	asked, err := json.Marshal(question{
		ID: r.ID, Name: r.Name, Kind: r.Kind, Forge: r.Scope.Forge, Project: r.Scope.Project, Untrusted: r.Scope.Trust != scope.Trusted,
		Sandbox: r.Nesting.String(), Image: r.Image, Limits: r.Limits, TimeoutNs: int64(r.Timeout), Module: r.Module,
	})
	if err != nil {
		return err
	}
	said, why := &limited{left: maxAnswer}, sandbox.NewTail(500)
	exit, err := a.m.run(ctx, bytes.NewReader(asked), said, why)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var got answer
	switch {
	case err != nil:
	case !exit.Success():
		err = fmt.Errorf("%s: %s", exit, why)
	case said.left < 0:
		err = fmt.Errorf("its answer is longer than %d bytes", maxAnswer)
	default:
		if err = json.Unmarshal(said.Bytes(), &got); err == nil && got.Allow == nil {
			err = fmt.Errorf("its answer does not say whether to allow the job")
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("%w: the admission plugin failed (plugins.admission): %w", sandbox.ErrDenied, err)
	case !*got.Allow:
		return fmt.Errorf("%w: %s (plugins.admission)", sandbox.ErrDenied, strings.TrimSpace(got.Reason))
	}
	return nil
}

// Close ends the module's process.
func (a *Admission) Close(ctx context.Context) error { return a.m.Close(ctx) }

// limited is a buffer that takes so many bytes and fails at more.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if l.left -= len(p); l.left < 0 {
		return 0, io.ErrShortBuffer
	}
	return l.Buffer.Write(p)
}
