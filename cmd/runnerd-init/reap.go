package main

import (
	"os"
	"os/signal"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// reap waits for every child, adopted ones included, and tells the host of those that it asked for.
func (s *server) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for ; ; <-child {
		for pid := ended(); pid > 0; pid = ended() {
			s.reapOne(pid)
		}
	}
}

// ended returns a child that has ended and has yet to be reaped, 0 if there is none.
func ended() int {
	// The kernel's siginfo_t (include/uapi/asm-generic/siginfo.h), of which unix.Siginfo hides the pid.
	var info struct {
		signo, errno, code, _ int32
		pid                   int32
		_                     [27]int32
	}
	for {
		err := unix.Waitid(unix.P_ALL, 0, (*unix.Siginfo)(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		if err == nil {
			return int(info.pid)
		}
		if err != unix.EINTR {
			return 0
		}
	}
}

// reapOne ends the session of a process that has ended, before its number can be another's, and reaps it.
func (s *server) reapOne(pid int) {
	s.mu.Lock()
	p := s.processes[pid]
	delete(s.processes, pid)
	if p != nil && s.started[p.id] == p {
		delete(s.started, p.id)
	}
	if len(s.processes) == 0 {
		s.idle.Reset(idleAfter)
	}
	s.mu.Unlock()
	if p != nil && killSession(pid) {
		go killSessionAgain(pid)
	}
	var status unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != unix.EINTR {
			break
		}
	}
	if p != nil {
		go s.send(wire.Reply{Session: p.session, ID: p.id, Kind: wire.Exited, Status: uint64(status)})
	}
}
