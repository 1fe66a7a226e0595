// Command runnerd-init is the first process of every container of a sandbox: it starts processes, makes
// connections and opens files for the daemon (package initd), and reaps what the sandbox's processes leave.
//
// It is small on purpose: there is one in every container. Hence neither fmt nor encoding/json nor net.
package main

import (
	"math"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// main serves the host until SIGTERM; called as "listen -- path args…" it becomes a process that was passed
// listening sockets (sd_listen_fds(3)), whose LISTEN_PID has to be its own; as "chroot root dir command args…" one that
// has another root; as "tune how command args…" one whose memory is treated otherwise; as "archive …" it makes or extracts a tar for the job that it was started for.
func main() {
	if len(os.Args) > 4 && os.Args[1] == "listen" && os.Args[2] == "--" {
		err := unix.Exec(os.Args[3], os.Args[4:], append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid())))
		die(126, "exec: "+strconv.Quote(os.Args[4])+": ", err)
	}
	if len(os.Args) > 4 && os.Args[1] == "chroot" {
		code, err := enter(os.Args[2], os.Args[3], os.Args[4:])
		die(code, "", err)
	}
	if len(os.Args) > 3 && os.Args[1] == "tune" {
		code, err := tuned(os.Args[2], os.Args[3:])
		die(code, "", err)
	}
	if len(os.Args) > 1 && os.Args[1] == "archive" {
		os.Exit(archiver(os.Args[2:]))
	}
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20) // what an idle init takes is mostly this heap
	// Nothing that this process was given by accident is its children's.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	handleSignals()
	reserveThreads()
	if err := newServer().serve(); err != nil {
		die(1, "runnerd-init: ", err)
	}
}

func die(code int, what string, err error) {
	_, _ = os.Stderr.WriteString(what + err.Error() + "\n")
	os.Exit(code)
}

// handleSignals makes SIGTERM the end, of which the kernel makes the end of the whole pid namespace. All
// others are caught and dropped: ignoring them would be inherited by the sandbox's processes, and Go's
// runtime ends a program at some of them.
func handleSignals() {
	term, dropped := make(chan os.Signal, 1), make(chan os.Signal, 1)
	for s := syscall.Signal(1); s <= unix.SIGSYS; s++ {
		switch s {
		case unix.SIGTERM, unix.SIGCHLD, unix.SIGURG, unix.SIGKILL, unix.SIGSTOP, unix.SIGPROF:
		default:
			signal.Notify(dropped, s)
		}
	}
	signal.Notify(term, unix.SIGTERM)
	go func() {
		<-term
		os.Exit(0)
	}()
}
