package wasm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd"
	initwire "github.com/runnerd/runnerd/sandbox/initd/wire"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// endTimeout is how long a run may take to end that is no longer wanted, before its runtime is killed: a module that
// waits for a file is not interrupted otherwise.
const endTimeout = time.Second

// conversation is one run of a module, as the daemon sees it.
type conversation struct {
	*layer
	process  sandbox.Process
	artifact *Artifact // nil: the module is in the sandbox
}

// hold has a runtime run the module to its end.
func (c *conversation) hold(ctx context.Context, r *runtime) (sandbox.Exit, error) {
	conn, stdio, err := c.begin(r)
	if err != nil {
		if !r.alive() {
			return r.ended()
		}
		return sandbox.Exit{}, fmt.Errorf("start the run: %w", err)
	}
	defer stdio.Close()
	defer conn.Close()

	var signal syscall.Signal
	life, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	if c.process.Signals != nil {
		go func() {
			select {
			case s, ok := <-c.process.Signals:
				if ok {
					signal = s
					stop(errSignal)
				}
			case <-life.Done():
			}
		}()
	}
	defer context.AfterFunc(life, func() {
		_ = conn.CloseWrite()
		time.AfterFunc(endTimeout, func() { _ = conn.Close() })
	})()

	exit, err := c.follow(life, conn)
	if exit != nil {
		stdio.Drain()
	}
	if exit == nil {
		r.endSoon(err)
	}
	switch cause := context.Cause(life); {
	case errors.Is(cause, errSignal):
		return sandbox.Exit{Code: 128 + int(signal), Signal: signal}, nil
	case cause != nil:
		return sandbox.Exit{}, cause
	case exit != nil:
		return *exit, nil
	case errors.Is(err, io.EOF):
		return r.ended()
	}
	return sandbox.Exit{}, err
}

var errSignal = errors.New("a signal was sent to the module")

// begin tells the runtime of the run.
func (c *conversation) begin(r *runtime) (_ *wire.Conn, _ *initd.Stdio, err error) {
	p := c.process
	c.mu.Lock()
	run := wire.Run{Path: p.Args[0], Args: p.Args, Env: p.Env, Dir: p.Dir, Module: c.module}
	if p.Env == nil {
		run.Env = c.env
	}
	c.mu.Unlock()
	if c.artifact != nil {
		run.Path, run.Digest = "", c.artifact.Digest
	}
	if run.Dir == "" {
		run.Dir = c.dir()
	}
	text, err := json.Marshal(run)
	if err != nil {
		return nil, nil, err
	}
	if len(text) > initwire.MaxSpec {
		return nil, nil, fmt.Errorf("arguments and environment of %d bytes: at most %d", len(text), initwire.MaxSpec)
	}
	spec, err := initwire.Memfile(text)
	if err != nil {
		return nil, nil, err
	}
	defer spec.Close()
	conn, theirs, err := wire.Pair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	stdio, err := initd.OpenStdio(p)
	if err == nil {
		err = r.conn.SendFDs(wire.Start{}, append([]int{int(theirs.Fd()), int(spec.Fd())}, stdio.FDs()...))
		stdio.Passed()
		if err != nil {
			stdio.Close()
		}
	}
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return conn, stdio, nil
}

// dir is where a run begins that does not say.
func (l *layer) dir() string {
	if i, ok := sandbox.As[sandbox.Imaged](l.Sandbox); ok && i.ImageConfig().Dir != "" {
		return i.ImageConfig().Dir
	}
	return "/"
}

// follow answers what the runtime asks until the run has ended. The error is io.EOF if the runtime is gone.
func (c *conversation) follow(ctx context.Context, conn *wire.Conn) (*sandbox.Exit, error) {
	for asked := 0; ; asked++ {
		var ask wire.Ask
		files, err := conn.Receive(&ask)
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		if err != nil {
			return nil, err
		}
		if ask.Exit != nil {
			wire.CloseFiles(files)
			return ask.Exit, nil
		}
		if asked > 1 { // each need once
			wire.CloseFiles(files)
			return nil, errors.New("the runtime of modules asks for more than a module needs")
		}
		answer, file, err := c.answer(ctx, ask, files)
		wire.CloseFiles(files)
		if err != nil {
			if ctx.Err() != nil {
				continue // the end is on its way
			}
			return nil, err
		}
		if file != nil {
			err = conn.Send(answer, file)
			_ = file.Close()
		} else {
			err = conn.Send(answer)
		}
		if err != nil && ctx.Err() == nil && !errors.Is(err, unix.EPIPE) {
			return nil, err
		}
	}
}

// answer gets what a run needs.
func (c *conversation) answer(ctx context.Context, ask wire.Ask, files []*os.File) (wire.Answer, *os.File, error) {
	switch {
	case ask.Need == wire.NeedModule && c.artifact != nil && len(files) == 0:
		file, err := c.fetch(ctx)
		return wire.Answer{}, file, err
	case ask.Need == wire.NeedCompiled && len(files) == 1:
		if !isDigest(ask.Digest) {
			return wire.Answer{}, nil, fmt.Errorf("the runtime of modules asks for %.80q, which is no digest", ask.Digest)
		}
		if c.cfg.Compiled == nil || !c.share() {
			return wire.Answer{}, nil, nil
		}
		key, file, err := c.cfg.Compiled.Get(ctx, ask.Digest, files[0])
		var invalid *ModuleError
		switch {
		case errors.As(err, &invalid):
			return wire.Answer{Error: invalid.Error()}, nil, nil
		case err != nil && ctx.Err() == nil:
			c.cfg.Log.Warn("a module was not compiled for all, its sandbox does it", "sandbox", c.ID(), "module", ask.Digest, "error", err)
			return wire.Answer{}, nil, nil
		}
		return wire.Answer{Key: key}, file, err
	}
	return wire.Answer{}, nil, fmt.Errorf("the runtime of modules asks for %.80q with %d files", ask.Need, len(files))
}

// fetch gets the artifact, into a memory file.
func (c *conversation) fetch(ctx context.Context) (*os.File, error) {
	from, err := c.artifact.Open(ctx)
	if err != nil {
		return nil, fmt.Errorf("get the module: %w", err)
	}
	defer from.Close()
	fd, err := unix.MemfdCreate("runnerd-module", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "module")
	n, err := io.Copy(file, io.LimitReader(from, wire.MaxModule+1))
	if err == nil && n > wire.MaxModule {
		err = fmt.Errorf("it is larger than %d MiB", wire.MaxModule>>20)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("get the module: %w", err), file.Close())
	}
	return file, nil
}
