package wasm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/runnerd/runnerd/sandbox"
)

// artifactPrefix is that of a module that comes from a registry.
const artifactPrefix = "oci:"

// maxShared is how many modules the machine compiles for one sandbox: that is not among the sandbox's own limits, so
// further ones it compiles by itself.
const maxShared = 32

var (
	errClosed = errors.New("the sandbox is closed")
	_         = sandbox.Adopter((*layer)(nil))
)

// layer is a sandbox that runs modules.
type layer struct {
	sandbox.Sandbox
	cfg  Config
	life context.Context // ends with the layer; its runtimes are started by Exec and outlive it
	end  context.CancelCauseFunc

	mu        sync.Mutex
	env       []string
	module    sandbox.Module
	pull      sandbox.Pull
	runtimes  map[string]*runtime // by user
	artifacts map[string]Artifact // what references have meant in this sandbox
	shared    int                 // modules that the machine has compiled for it
}

// Unwrap is the sandbox that the modules run in, for its further abilities.
func (l *layer) Unwrap() sandbox.Sandbox { return l.Sandbox }

// Adopt gives the layer a job's environment and limits, and what its modules may see and use.
func (l *layer) Adopt(s sandbox.Spec) error {
	if err := s.Module.Check(); err != nil {
		return err
	}
	adopter, ok := sandbox.As[sandbox.Adopter](l.Sandbox)
	if !ok {
		return fmt.Errorf("a sandbox of %T cannot be given to a job", l.Sandbox)
	}
	l.mu.Lock()
	l.env, l.module, l.pull = s.Env, s.Module, artifactPull(s.Pull)
	l.mu.Unlock()
	return adopter.Adopt(s)
}

// ImageDigest is the digest of the image of the sandbox.
func (l *layer) ImageDigest() string {
	if adopter, ok := sandbox.As[sandbox.Adopter](l.Sandbox); ok {
		return adopter.ImageDigest()
	}
	return ""
}

// Exec runs a module. See sandbox.Host. A module has no terminal, and a signal ends it. A module that is not there, or
// is none, is said on its standard error, as a shell would, with the exit codes 127 and 126. One that has used up its
// fuel ends as if by SIGXCPU, one that has used up its time by SIGALRM, one that traps by SIGABRT.
func (l *layer) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	switch {
	case len(p.Args) == 0:
		return sandbox.Exit{}, errors.New("exec: no arguments")
	case len(p.Files) > 0:
		return sandbox.Exit{}, fmt.Errorf("exec %q: a module takes no further files", p.Args[0])
	case ctx.Err() != nil:
		return sandbox.Exit{}, context.Cause(ctx)
	}
	if p.Terminal != nil {
		return refuse(p.Stdout, 126, "%s: a module has no terminal: run it without --tty", p.Args[0])
	}
	c := conversation{layer: l, process: p}
	if ref, ok := strings.CutPrefix(p.Args[0], artifactPrefix); ok {
		var err error
		c.artifact, err = l.artifact(ctx, ref)
		if errors.Is(err, sandbox.ErrUnknownImage) || errors.Is(err, sandbox.ErrDenied) {
			return refuse(p.Stderr, 127, "%v", err)
		}
		if err != nil {
			return sandbox.Exit{}, err
		}
	}
	r, err := l.runtime(p.User)
	if err != nil {
		return sandbox.Exit{}, err
	}
	exit, err := c.hold(ctx, r)
	if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Cause(ctx))) {
		err = fmt.Errorf("exec %q: %w", p.Args[0], err)
	}
	return exit, err
}

// refuse says to the user what is wrong with what they asked for.
func refuse(to io.Writer, code int, format string, args ...any) (sandbox.Exit, error) {
	if to != nil {
		if _, err := fmt.Fprintf(to, "runnerd: "+format+"\n", args...); err != nil {
			return sandbox.Exit{}, err
		}
	}
	return sandbox.Exit{Code: code}, nil
}

// artifact is what a reference means; within a sandbox it always means the same.
func (l *layer) artifact(ctx context.Context, ref string) (*Artifact, error) {
	l.mu.Lock()
	a, ok := l.artifacts[ref]
	pull := l.pull
	l.mu.Unlock()
	if !ok {
		var err error
		if a, err = l.cfg.Artifact(ctx, ref, pull); err != nil {
			return nil, err
		}
		l.mu.Lock()
		l.artifacts[ref] = a
		l.mu.Unlock()
	}
	return &a, nil
}

// share reports whether the machine compiles one more module for this sandbox.
func (l *layer) share() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shared++
	return l.shared <= maxShared
}

// runtime is the one that runs modules as a user, started if there is none.
func (l *layer) runtime(user string) (*runtime, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.life.Err() != nil {
		return nil, errClosed
	}
	if r, ok := l.runtimes[user]; ok && r.alive() {
		return r, nil
	}
	r, err := startRuntime(l.life, l.Sandbox, user)
	if err == nil {
		l.runtimes[user] = r
	}
	return r, err
}

// Close ends the modules and their runtimes. The sandbox they run in is closed by whoever opened it.
func (l *layer) Close(ctx context.Context) error {
	l.end(errClosed)
	l.mu.Lock()
	all := slices.Collect(maps.Values(l.runtimes))
	l.mu.Unlock()
	for _, r := range all {
		select {
		case <-r.done:
		case <-ctx.Done():
			return fmt.Errorf("end the runtime of modules: %w", context.Cause(ctx))
		}
	}
	return nil
}
