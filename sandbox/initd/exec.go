package initd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// killTimeout bounds how long Exec awaits the end of a tree that it has killed.
const killTimeout = 10 * time.Second

// DefaultPath is the search path, as an environment entry, when neither image nor job gives one.
const DefaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Exec runs p in the init's container. See sandbox.Host. A nil Env is PATH alone, an empty Dir "/", an
// empty User root.
//
// Standard files that are an *os.File on a regular file or a pipe are given to the process itself; the
// caller keeps them open until Exec returns. Exec does not wait for a Read of another p.Stdin that is under
// way when the process ends. Should a process that has escaped from p's session hold its output open,
// Exec returns 2 s after p's end.
func (c *Client) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if len(p.Args) == 0 {
		return sandbox.Exit{}, errors.New("exec: no arguments")
	}
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	run := &execution{client: c, process: p, streams: streams{done: make(chan struct{})}}
	defer run.streams.close()
	exit, err := run.run(ctx)
	if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Cause(ctx))) {
		err = fmt.Errorf("exec %q: %w", p.Args[0], err)
	}
	runtime.KeepAlive(p)
	return exit, err
}

// execution is one process while it runs.
type execution struct {
	client  *Client
	process sandbox.Process
	streams streams
}

func (e *execution) run(ctx context.Context) (sandbox.Exit, error) {
	waiting, err := e.start()
	e.streams.passed()
	if err != nil {
		return sandbox.Exit{}, err
	}
	defer e.client.forget(waiting)
	started, err := e.client.await(ctx, waiting)
	if err != nil {
		return sandbox.Exit{}, both(err, e.kill(waiting))
	}
	if started.Error != "" || started.Errno != 0 {
		started.close()
		return e.notStarted(started.Reply)
	}
	if e.process.Terminal == nil {
		started.close()
	} else if err := e.streams.terminal(started.file, e.process); err != nil {
		return sandbox.Exit{}, both(err, e.kill(waiting))
	}
	return e.wait(ctx, waiting)
}

// both is errors.Join that leaves a lone error as it is.
func both(err, more error) error {
	if more == nil {
		return err
	}
	return errors.Join(err, more)
}

// start asks the init for the process.
func (e *execution) start() (*call, error) {
	p := e.process
	spec := wire.Spec{Args: p.Args, Env: p.Env, Dir: p.Dir, User: p.User}
	if spec.Env == nil {
		spec.Env = []string{DefaultPath}
	}
	if p.Terminal != nil {
		spec.Terminal, spec.Rows, spec.Cols = true, p.Terminal.Size.Rows, p.Terminal.Size.Cols
	}
	encoded := spec.Encode()
	if len(encoded) > wire.MaxSpec {
		return nil, fmt.Errorf("arguments and environment of %d bytes: at most %d", len(encoded), wire.MaxSpec)
	}
	memfile, err := wire.Memfile(encoded)
	if err != nil {
		return nil, err
	}
	defer memfile.Close()
	if p.Terminal == nil {
		if err := e.streams.open(p); err != nil {
			return nil, err
		}
	}
	fds := append([]int{int(memfile.Fd())}, e.streams.fds...)
	for _, f := range p.Files {
		raw, err := f.SyscallConn() // not Fd, which would make the caller's file block
		if err != nil {
			return nil, err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return nil, err
		}
	}
	if len(fds) > wire.MaxFiles {
		return nil, fmt.Errorf("%d files to pass on: at most %d", len(p.Files), wire.MaxFiles-4)
	}
	return e.client.begin(wire.Request{Op: wire.Start}, fds...)
}

// notStarted says on the process's own standard error what a shell would say, if it is the user's mistake.
func (e *execution) notStarted(r wire.Reply) (sandbox.Exit, error) {
	err := errorOf(r)
	if r.Code != 126 && r.Code != 127 {
		return sandbox.Exit{}, err
	}
	out := e.process.Stderr
	if e.process.Terminal != nil {
		out = e.process.Stdout
	}
	if out != nil {
		if _, err := io.WriteString(out, err.Error()+"\n"); err != nil {
			return sandbox.Exit{}, err
		}
	}
	return sandbox.Exit{Code: int(r.Code)}, nil
}

// wait follows the process to its end.
func (e *execution) wait(ctx context.Context, waiting *call) (sandbox.Exit, error) {
	signals := e.process.Signals
	for {
		select {
		case status := <-waiting.exit:
			e.streams.drain()
			return e.exitOf(ctx, status)
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			_, err := e.client.ask(ctx, wire.Request{Op: wire.Signal, Process: waiting.id, Number: uint64(signal)})
			if err != nil && ctx.Err() == nil {
				return sandbox.Exit{}, both(err, e.kill(waiting))
			}
		case <-e.client.over:
			if errors.Is(e.client.cause, ErrGone) {
				e.streams.drain()
			}
			return sandbox.Exit{}, e.client.cause
		case <-ctx.Done():
			err := e.kill(waiting)
			e.streams.drain()
			return sandbox.Exit{}, both(context.Cause(ctx), err)
		}
	}
}

// kill kills the process's tree, whatever became of the caller's context, and waits for its end. That the
// conversation is over is for others to report.
func (e *execution) kill(waiting *call) error {
	cause := fmt.Errorf("killed, but not known to have ended within %s", killTimeout)
	ctx, cancel := context.WithTimeoutCause(context.Background(), killTimeout, cause)
	defer cancel()
	_, err := e.client.ask(ctx, wire.Request{Op: wire.Kill, Process: waiting.id})
	if errors.Is(err, ErrGone) || errors.Is(err, ErrClosed) {
		return nil
	}
	return err
}

// exitOf turns wait4's status into an Exit. One that was killed may have been so with its whole sandbox,
// of which the news comes later: then it did not end by itself.
func (e *execution) exitOf(ctx context.Context, status syscall.WaitStatus) (sandbox.Exit, error) {
	if !status.Signaled() {
		return sandbox.Exit{Code: status.ExitStatus()}, nil
	}
	if status.Signal() == syscall.SIGKILL {
		if err := e.client.Ping(ctx); errors.Is(err, ErrGone) {
			return sandbox.Exit{}, err
		}
	}
	return sandbox.Exit{Code: 128 + int(status.Signal()), Signal: status.Signal()}, nil
}
