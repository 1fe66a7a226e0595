// Package wasm is the driver of the layer "wasm": WebAssembly modules (WASI preview 1) that are run in the sandbox of
// their job by a program of ours, runnerd-wasm. Nothing of a module is run, compiled or even parsed in the daemon.
//
// The first of a process's Args is the module: a path in the sandbox, or oci:REFERENCE for an artifact of a registry. It
// sees its arguments, its standard files, the environment of the Spec (not the image's), and what Spec.Module declares.
package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// Config is what a Driver needs to know.
type Config struct {
	// Program is runnerd-wasm on this machine.
	Program string
	// Artifact finds what a reference means for one who asks. Its error may wrap sandbox.ErrUnknownImage.
	Artifact func(ctx context.Context, ref string, how sandbox.Pull) (Artifact, error)
	// Compiled keeps modules compiled; nil: each sandbox compiles its own.
	Compiled *Store
	Log      *slog.Logger
}

// Artifact is a module in a registry.
type Artifact struct {
	Digest string // SHA-256, hex
	// Open reads it. What is read may be something else than the digest says.
	Open func(ctx context.Context) (io.ReadCloser, error)
}

// Driver runs modules in sandboxes. It is safe for concurrent use.
type Driver struct{ cfg Config }

// New returns a driver.
func New(cfg Config) *Driver { return &Driver{cfg} }

// Programs are what the sandbox needs in its Spec to hold this layer; see sandbox.Spec.
func (d *Driver) Programs() map[string]string {
	return map[string]string{wire.Program: d.cfg.Program}
}

// On is a sandbox's own container, beside its engine if it has one.
func (*Driver) On() []sandbox.Kind { return []sandbox.Kind{sandbox.Container, sandbox.DinD} }

// Check tells whether on can hold modules.
func (d *Driver) Check(ctx context.Context, on sandbox.Host) error {
	_, err := sandboxOf(on)
	if err != nil {
		return err
	}
	if _, err := os.Stat(d.cfg.Program); err != nil {
		return fmt.Errorf("the runtime of modules: %w: run \"make build\"", err)
	}
	return nil
}

func sandboxOf(on sandbox.Host) (sandbox.Sandbox, error) {
	if sb, ok := on.(sandbox.Sandbox); ok {
		return sb, nil
	}
	return nil, fmt.Errorf("modules are run in a sandbox, not in %T: use container/wasm", on)
}

// Start starts the runtime in the sandbox, for the user of its image.
func (d *Driver) Start(ctx context.Context, on sandbox.Host, s sandbox.Spec) (sandbox.Sandbox, error) {
	sb, err := sandboxOf(on)
	if err != nil {
		return nil, err
	}
	if err := s.Module.Check(); err != nil {
		return nil, err
	}
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	l := &layer{
		Sandbox: sb, cfg: d.cfg, life: life, end: end,
		env: s.Env, module: s.Module, pull: artifactPull(s.Pull),
		runtimes: map[string]*runtime{}, artifacts: map[string]Artifact{},
	}
	if _, err := l.runtime(""); err != nil {
		return nil, errors.Join(err, l.Close(ctx))
	}
	return l, nil
}

// artifactPull is how artifacts are got: as the image, but for its credentials, which are for the image's registry.
func artifactPull(p sandbox.Pull) sandbox.Pull {
	p.Username, p.Password = "", ""
	return p
}
