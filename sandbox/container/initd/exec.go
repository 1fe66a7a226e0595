package initd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

const (
	// pipeSize is that of the pipes to and from a process, in bytes: large enough that a switch between the
	// two sides is rare.
	pipeSize = 1 << 20
	// drainTimeout bounds how long output is awaited after the exit, should somebody have escaped from the
	// process's session with its output still open.
	drainTimeout = 2 * time.Second
)

// Exec runs p in the init's container. See sandbox.Host. It does not wait for a Read of p.Stdin that is
// under way when the process ends.
func (c *Client) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if len(p.Args) == 0 {
		return sandbox.Exit{}, errors.New("exec: no arguments")
	}
	if err := ctx.Err(); err != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	run := &execution{client: c, process: p}
	defer run.close()
	exit, err := run.run(ctx)
	if errors.Is(err, ErrGone) {
		err = fmt.Errorf("exec %s: %w", p.Args[0], err)
	}
	return exit, err
}

// execution is one process while it runs.
type execution struct {
	client  *Client
	process sandbox.Process
	ours    []*os.File     // our ends, closed at the end
	theirs  []*os.File     // the process's ends, closed once it has them
	copies  sync.WaitGroup // of output
}

func (e *execution) run(ctx context.Context) (sandbox.Exit, error) {
	p := e.process
	spec := processSpec{Args: p.Args, Env: p.Env, Dir: p.Dir, User: p.User}
	if p.Terminal != nil {
		spec.Terminal, spec.Rows, spec.Cols = true, p.Terminal.Size.Rows, p.Terminal.Size.Cols
	}
	encoded, err := json.Marshal(spec)
	if err != nil {
		return sandbox.Exit{}, err
	}
	if len(encoded) > maxSpec {
		return sandbox.Exit{}, fmt.Errorf("exec %s: arguments and environment of %d bytes: at most %d", p.Args[0], len(encoded), maxSpec)
	}
	specFile, err := memfile(encoded)
	if err != nil {
		return sandbox.Exit{}, err
	}
	e.theirs = append(e.theirs, specFile)
	if p.Terminal == nil {
		if err := e.pipes(); err != nil {
			return sandbox.Exit{}, err
		}
	}
	var fds []int
	for _, f := range e.theirs {
		fds = append(fds, int(f.Fd()))
	}
	for _, f := range p.Files {
		raw, err := f.SyscallConn() // not Fd, which would make the caller's file block
		if err != nil {
			return sandbox.Exit{}, err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return sandbox.Exit{}, err
		}
	}
	waiting, id, err := e.client.begin(request{Op: opStart}, fds...)
	if err != nil {
		return sandbox.Exit{}, err
	}
	defer e.client.end(id)
	started, err := e.client.await(ctx, waiting)
	closeFiles(&e.theirs)
	if err != nil {
		e.kill(id)
		return sandbox.Exit{}, err
	}
	if started.Error != "" {
		return e.notStarted(started.reply)
	}
	if p.Terminal != nil {
		if started.file == nil {
			return sandbox.Exit{}, errors.New("exec: the sandbox's init gave no terminal")
		}
		e.ours = append(e.ours, started.file)
		e.terminal(started.file)
	}
	return e.wait(ctx, waiting, id)
}

// notStarted says on the process's own standard error what a shell would say.
func (e *execution) notStarted(r reply) (sandbox.Exit, error) {
	if r.Code != 126 && r.Code != 127 {
		return sandbox.Exit{}, fmt.Errorf("exec %s: %s", e.process.Args[0], r.Error)
	}
	out := e.process.Stderr
	if e.process.Terminal != nil || out == nil {
		out = e.process.Stdout
	}
	if out != nil {
		if _, err := fmt.Fprintln(out, r.Error); err != nil {
			return sandbox.Exit{}, err
		}
	}
	return sandbox.Exit{Code: r.Code}, nil
}

// pipes makes the standard files.
func (e *execution) pipes() error {
	p := e.process
	stdin, err := e.input(p.Stdin)
	if err != nil {
		return err
	}
	stdout, err := e.output(p.Stdout)
	if err != nil {
		return err
	}
	stderr := stdout
	if p.Stderr == nil || !sameWriter(p.Stdout, p.Stderr) {
		if stderr, err = e.output(p.Stderr); err != nil {
			return err
		}
		e.theirs = append(e.theirs, stdin, stdout, stderr)
		return nil
	}
	shared, err := unix.FcntlInt(stdout.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	e.theirs = append(e.theirs, stdin, stdout, os.NewFile(uintptr(shared), "stderr"))
	return nil
}

// sameWriter reports whether two writers are one; those that cannot be compared are not.
func sameWriter(a, b io.Writer) (same bool) {
	defer func() { _ = recover() }()
	return a == b
}

func (e *execution) input(from io.Reader) (*os.File, error) {
	if from == nil {
		return os.Open(os.DevNull)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(r.Fd(), unix.F_SETPIPE_SZ, pipeSize) // less is only slower
	e.ours = append(e.ours, w)
	go func() {
		_, _ = io.Copy(w, from) // a process may end without reading its input
		w.Close()
	}()
	return r, nil
}

func (e *execution) output(to io.Writer) (*os.File, error) {
	if to == nil {
		return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	e.ours = append(e.ours, r)
	e.copies.Go(func() { copyOutput(to, r) })
	return w, nil
}

// copyOutput copies until the end; when nobody takes the output any more, the rest is discarded, so that
// the process is not stuck.
func copyOutput(to io.Writer, from io.Reader) {
	if _, err := io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, 64<<10)); err != nil {
		_, _ = io.Copy(io.Discard, from)
	}
}

// terminal connects the master side of the process's terminal.
func (e *execution) terminal(master *os.File) {
	p := e.process
	if p.Stdin != nil {
		go func() { _, _ = io.Copy(master, p.Stdin) }()
	}
	if p.Stdout == nil {
		p.Stdout = io.Discard
	}
	e.copies.Go(func() { copyOutput(p.Stdout, master) }) // ends with EIO when the last process is gone
	if p.Terminal.Resize == nil {
		return
	}
	raw, err := master.SyscallConn()
	if err != nil {
		return
	}
	go func() {
		for size := range p.Terminal.Resize {
			if raw.Control(func(fd uintptr) {
				_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
			}) != nil {
				return
			}
		}
	}()
}

// wait follows the process to its end.
func (e *execution) wait(ctx context.Context, waiting *call, id uint64) (sandbox.Exit, error) {
	signals := e.process.Signals
	for {
		select {
		case status := <-waiting.exit:
			e.drain()
			return exitOf(syscall.WaitStatus(status)), nil
		case signal, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			if _, err := e.client.ask(ctx, request{Op: opSignal, Process: id, Signal: int(signal)}); err != nil && ctx.Err() == nil {
				return sandbox.Exit{}, err
			}
		case <-e.client.gone:
			e.drain()
			return sandbox.Exit{}, ErrGone
		case <-ctx.Done():
			e.kill(id)
			select {
			case <-waiting.exit:
			case <-e.client.gone:
			case <-time.After(answerTimeout):
			}
			e.drain()
			return sandbox.Exit{}, context.Cause(ctx)
		}
	}
}

// kill kills the process's tree, whatever became of the caller's context.
func (e *execution) kill(id uint64) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	_, _ = e.client.ask(ctx, request{Op: opKill, Process: id})
}

// drain waits for the rest of the output.
func (e *execution) drain() {
	done := make(chan struct{})
	go func() {
		e.copies.Wait()
		close(done)
	}()
	select {
	case <-done:
		return
	case <-time.After(drainTimeout):
	}
	closeFiles(&e.ours) // ends the copies, unless a Write hangs, which is its owner's to end
	<-done
}

func (e *execution) close() {
	closeFiles(&e.theirs)
	closeFiles(&e.ours)
}

func closeFiles(files *[]*os.File) {
	for _, f := range *files {
		f.Close()
	}
	*files = nil
}

// exitOf turns wait4's status into an Exit.
func exitOf(status syscall.WaitStatus) sandbox.Exit {
	if status.Signaled() {
		return sandbox.Exit{Code: 128 + int(status.Signal()), Signal: status.Signal()}
	}
	return sandbox.Exit{Code: status.ExitStatus()}
}
