package probe

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

func kernelProbes() []Probe {
	return []Probe{
		{Name: "getppid", Class: Kernel, Unit: "op", setup: pinned(getppid)},
		{Name: "page-touch", Class: Kernel, Unit: "op", setup: pinned(pageTouch)},
		{Name: "fork-exec", Class: Kernel, Unit: "op", Crowds: true, setup: pinned(forkExec)},
		{Name: "pipe", Class: Kernel, Unit: "op", Crowds: true, setup: pinned(pipe)},
	}
}

// getppid is the cheapest system call that the kernel's vdso does not answer.
func getppid(Args) (func(int) error, func() error, error) {
	return func(n int) error {
		for range n {
			_, _, _ = unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
		}
		return nil
	}, nothing, nil
}

const touchBytes = 16 << 20

// pageTouch is the first write to a page, its share of mapping and unmapping 16 MiB included.
func pageTouch(Args) (func(int) error, func() error, error) {
	size := os.Getpagesize()
	return func(n int) error {
		for n > 0 {
			memory, err := smallPages(touchBytes)
			if err != nil {
				return err
			}
			for at := 0; at < len(memory) && n > 0; at += size {
				memory[at] = 1
				n--
			}
			if err := unix.Munmap(memory); err != nil {
				return err
			}
		}
		return nil
	}, nothing, nil
}

// forkExec starts the smallest program there is and waits for its end.
func forkExec(a Args) (func(int) error, func() error, error) {
	dir, remove, err := place(a, "exec")
	if err != nil {
		return nil, nil, err
	}
	program := filepath.Join(dir, "true")
	if err := os.WriteFile(program, tinyProgram(), 0o755); err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return func(n int) error { return spawn(n, program, "true") }, remove, nil
}

// spawn runs a program n times, one after the other.
func spawn(n int, args ...string) error {
	for range n {
		pid, err := syscall.ForkExec(args[0], args[1:], &syscall.ProcAttr{})
		if err != nil {
			return fmt.Errorf("start %s: %w", args[0], err)
		}
		var status syscall.WaitStatus
		for {
			if _, err = syscall.Wait4(pid, &status, 0, nil); err != syscall.EINTR {
				break
			}
		}
		if err != nil || status.ExitStatus() != 0 {
			return fmt.Errorf("%s ended with %d: %v", args[0], status, err)
		}
	}
	return nil
}

// pipe sends a byte to another process and gets it back.
func pipe(Args) (func(int) error, func() error, error) {
	var there, back [2]int
	if err := errors.Join(unix.Pipe2(there[:], unix.O_CLOEXEC), unix.Pipe2(back[:], unix.O_CLOEXEC)); err != nil {
		return nil, nil, err
	}
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"runnerd-probe", "echo"}, &syscall.ProcAttr{
		Files: []uintptr{uintptr(there[0]), uintptr(back[1]), 2}, Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL},
	})
	_, _ = unix.Close(there[0]), unix.Close(back[1])
	if err != nil {
		return nil, nil, errors.Join(fmt.Errorf("start the other process: %w", err), unix.Close(there[1]), unix.Close(back[0]))
	}
	b := make([]byte, 1)
	return func(n int) error {
			for range n {
				if _, err := syscall.Write(there[1], b); err != nil {
					return err
				}
				if _, err := syscall.Read(back[0], b); err != nil {
					return err
				}
			}
			return nil
		}, func() error {
			_, _ = unix.Close(there[1]), unix.Close(back[0]) // it ends when there is nothing more to read
			_, err := syscall.Wait4(pid, nil, 0, nil)
			return err
		}, nil
}

// Echo writes what it reads, byte by byte: the other process of the probe pipe.
func Echo() error {
	b := make([]byte, 1)
	for {
		n, err := syscall.Read(0, b)
		if n <= 0 || err != nil {
			return err
		}
		if _, err := syscall.Write(1, b); err != nil {
			return err
		}
	}
}
