// Package plugin has modules of the operator's decide about jobs: whether one may run (Admission), and what is kept of its
// log (Filter). They are WebAssembly (WASI preview 1) in files that are looked at on every use, so one that was replaced
// is used at once. They run in a process of runnerd-wasm, as nobody, under limits: not in the daemon, whose memory and
// start they would cost.
package plugin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"

	"github.com/runnerd/runnerd/sandbox"
)

// nobody is the user that the process of the plugins runs as.
const nobody = 65534

// host is this machine, for one program.
type host struct{ program string }

var _ sandbox.Sandbox = host{}

func (host) ID() string                                         { return "plugins" }
func (host) Usage(context.Context) (u sandbox.Usage, err error) { return u, nil }
func (host) Close(context.Context) error                        { return nil }

// Exec runs the program with p's arguments but for the first, which is its name in a sandbox. It is opened by the daemon,
// since nobody may not be let to where it is.
func (h host) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	program, err := os.Open(h.program)
	if err != nil {
		return sandbox.Exit{}, fmt.Errorf("start the runtime of plugins: %w: run \"make build\"", err)
	}
	defer program.Close()
	files := append(append([]*os.File{}, p.Files...), program)
	cmd := exec.CommandContext(ctx, fmt.Sprintf("/proc/self/fd/%d", 3+len(p.Files)), append(p.Args[1:], "--limited")...)
	cmd.Dir, cmd.Env, cmd.ExtraFiles = p.Dir, p.Env, files
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Stdin, p.Stdout, p.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if os.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		status := ended.Sys().(syscall.WaitStatus)
		if status.Signaled() {
			return sandbox.Exit{Code: 128 + int(status.Signal()), Signal: status.Signal()}, nil
		}
		return sandbox.Exit{Code: status.ExitStatus()}, nil
	}
	return sandbox.Exit{}, err
}
