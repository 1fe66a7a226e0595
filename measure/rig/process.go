package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
)

// agentTimeout bounds how long an agent may take to answer after its start.
const agentTimeout = 20 * time.Second

// local is an agent that is a process of the machine's own, with namespaces of its own if need be.
type local struct {
	*probe.Agent
	cmd     *exec.Cmd
	ended   chan error
	release func() // once it has ended
}

// startBound starts a process that the kernel kills when this one ends, however it does. release is called when it has
// ended.
func startBound(cmd *exec.Cmd, flags uintptr) (release func(), err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags, Pdeathsig: syscall.SIGKILL}
	started, released := make(chan error), make(chan struct{})
	go func() { // Pdeathsig is about the thread that starts it (prctl(2)): that one stays
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		started <- cmd.Start()
		<-released
	}()
	release = func() { close(released) }
	if err := <-started; err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// startLocal starts runnerd-probe with arguments, of which the last is to be the socket, and in new namespaces if flags
// say so.
func (r *Rig) startLocal(ctx context.Context, name string, flags uintptr, args ...string) (*local, error) {
	socket := filepath.Join(r.dir, name)
	log := sandbox.NewTail(4096)
	l := &local{cmd: exec.Command(r.probe, append(args, socket)...), ended: make(chan error, 1)}
	l.cmd.Stdout, l.cmd.Stderr = log, log
	var err error
	if l.release, err = startBound(l.cmd, flags); err != nil {
		return nil, fmt.Errorf("start the probe %s: %w", name, err)
	}
	go func() { l.ended <- l.cmd.Wait() }()
	agent, err := connect(ctx, func(ctx context.Context) (net.Conn, error) {
		select {
		case err := <-l.ended:
			l.ended <- err
			return nil, fmt.Errorf("%w: %w: %s", errEnded, err, log)
		default:
		}
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("probe %s: %w", name, err), l.Close())
	}
	l.Agent = agent
	return l, nil
}

// Close ends the process, and with it its namespaces.
func (l *local) Close() error {
	if l.Agent != nil {
		_ = l.Agent.Close()
	}
	_ = l.cmd.Process.Kill()
	err := <-l.ended
	l.release()
	var exit *exec.ExitError
	if errors.As(err, &exit) { // by our signal, or told before
		return nil
	}
	return err
}

var errEnded = errors.New("it has ended")

// connect waits until an agent listens, and returns the connection.
func connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*probe.Agent, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, agentTimeout, errors.New("it does not listen"))
	defer cancel()
	for {
		conn, err := dial(ctx)
		if err == nil {
			return probe.NewAgent(conn), nil
		}
		if errors.Is(err, errEnded) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
