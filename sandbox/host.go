// Package sandbox says what a sandbox is and how sandboxes nest: Host, Sandbox, Driver, Nesting, Policy
// and Open. Each kind of layer is a driver in a package of its own below this one.
package sandbox

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Host is a place where processes run: the machine, or a sandbox on it. A sandbox is a Host, so a driver
// that starts a sandbox on a Host nests without further machinery.
type Host interface {
	// Exec runs p to its end. A failing script is an Exit, not an error; an error means that the process
	// could not be started, or that its end could not be observed. Exec returns after p has ended, all
	// its output has been written to p.Stdout and p.Stderr, and every process that p left in its session
	// has been told to end.
	//
	// Cancelling ctx kills p's whole process tree with SIGKILL; Exec then returns context.Cause(ctx).
	// Exec may be called from several goroutines at once.
	Exec(ctx context.Context, p Process) (Exit, error)
}

// Process is what Exec runs. The zero value of each field but Args is usable.
type Process struct {
	// Args is the argument vector. Args[0] is looked up in the PATH of Env, inside the host.
	Args []string
	// Env is the whole environment, as "KEY=value"; nothing is inherited. nil means the sandbox's own
	// environment (that of its image and Spec).
	Env []string
	// Dir is the working directory inside the host; empty means the image's, else "/".
	Dir string
	// User is "user", "uid", "user:group" or "uid:gid", resolved inside the host; empty means the image's.
	User string

	// Stdin is read until its end or until the process ends; nil is an empty input.
	Stdin io.Reader
	// Stdout and Stderr receive the output; nil discards it. When both are the same comparable value, at
	// most one goroutine at a time writes to it. With a Terminal all output goes to Stdout.
	Stdout, Stderr io.Writer

	// Terminal, when not nil, gives the process a pseudo-terminal as its standard files.
	Terminal *Terminal
	// Signals, when not nil, carries signals to forward to the process's group until it ends.
	Signals <-chan syscall.Signal
	// Files are passed on as descriptors 3 and up, with LISTEN_FDS and LISTEN_PID set to say so
	// (sd_listen_fds(3)), for engines that are started by the first connection to their socket.
	Files []*os.File
}

// Terminal is a pseudo-terminal's size, in character cells, and its later changes.
type Terminal struct {
	Size   WindowSize
	Resize <-chan WindowSize // may be nil
}

// WindowSize is a terminal's size in character cells.
type WindowSize struct{ Rows, Cols uint16 }

// Exit tells how a process ended.
type Exit struct {
	// Code is the exit code, or 128 + the signal's number as a shell reports it.
	Code int `json:"code"`
	// Signal is the signal that ended the process, 0 if none did.
	Signal syscall.Signal `json:"signal,omitempty"`
	// OOM is true when the kernel killed a process of the sandbox for want of memory while p ran.
	OOM bool `json:"oom,omitempty"`
}

// Success reports whether the process ended with exit code 0.
func (e Exit) Success() bool { return e.Code == 0 && e.Signal == 0 }

func (e Exit) String() string {
	switch {
	case e.OOM && !e.Success():
		return fmt.Sprintf("killed: out of memory (exit code %d)", e.Code)
	case e.Signal != 0:
		return fmt.Sprintf("killed by %s (exit code %d)", e.Signal, e.Code)
	default:
		return fmt.Sprintf("exit code %d", e.Code)
	}
}

// Dialer is a Host that can be spoken to from outside: the connection is made inside the host, in its
// network and mount namespaces, and handed out. ctx covers the dialling, not the connection.
type Dialer interface {
	Dial(ctx context.Context, network, address string) (net.Conn, error)
}

// Listener is a Host in which a socket can be opened from outside: the socket is bound inside the host
// and handed out, so that whoever answers it can be started later, or elsewhere in the sandbox. network
// is "unix" or "tcp". The caller closes the file.
type Listener interface {
	Listen(ctx context.Context, network, address string) (*os.File, error)
}
