package main

import (
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// openTerminal opens a pseudo-terminal of the sandbox's own devpts.
func openTerminal(spec wire.Spec) (master, slave int, f *failure) {
	const what = "open terminal"
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, -1, fault(what, err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0)
	}
	if err == nil && spec.Rows > 0 && spec.Cols > 0 {
		err = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: spec.Rows, Col: spec.Cols})
	}
	if err == nil {
		slave, err = unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		_ = unix.Close(master)
		return -1, -1, fault(what, err)
	}
	return master, slave, nil
}
