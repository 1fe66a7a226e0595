package main

import (
	"runtime/debug"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// server is the init's side of the conversation.
type server struct {
	sending sync.Mutex // so that a host that does not read holds up one thread, not many

	mu        sync.Mutex
	session   uint64              // the host's; requests of others are from before it
	processes map[int]*process    // by pid
	started   map[uint64]*process // by start request, of this session

	idle *time.Timer // runs down while there is no process
}

// process is a process that the host asked for, until it is reaped.
type process struct {
	pid         int
	session, id uint64 // of its start request
}

// idleAfter is how long after the last process an init is idle, and gives back the memory it has used.
const idleAfter = 300 * time.Millisecond

func newServer() *server {
	return &server{
		processes: map[int]*process{}, started: map[uint64]*process{},
		idle: time.AfterFunc(idleAfter, debug.FreeOSMemory),
	}
}

// serve opens the socket pair and answers for good. It keeps the host's end open too, so that one daemon
// after another can take it.
func (s *server) serve() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	go s.reap()
	for i, fd := range []int{wire.InitFD, wire.HostFD} {
		if err := unix.Dup3(pair[i], fd, unix.O_CLOEXEC); err != nil {
			return err
		}
	}
	wire.CloseAll(pair[:])
	packet, rights := make([]byte, wire.MaxPacket), make([]byte, wire.RightsSpace())
	for {
		n, files, err := wire.Receive(wire.InitFD, packet, rights, 0)
		if err == unix.EBADF || err == unix.ENOTSOCK || err == nil && n == 0 {
			return unix.EBADF // somebody in the sandbox took the socket away
		}
		if err == nil {
			if req, err := wire.DecodeRequest(packet[:n]); err == nil {
				s.handle(req, files)
			}
		}
		wire.CloseAll(files)
	}
}

// handle does what req asks. Starts are done in turn, so that a later signal finds its process; what may
// take long is done aside.
func (s *server) handle(req wire.Request, files []int) {
	if req.Op == wire.Hello {
		s.hello(req)
		return
	}
	s.mu.Lock()
	stale := req.Session != s.session
	s.mu.Unlock()
	if stale {
		return
	}
	switch req.Op {
	case wire.Start:
		s.start(req, files)
	case wire.Signal:
		s.mu.Lock() // the reaper waits, so the pid is still this process's
		if p := s.started[req.Process]; p != nil {
			_ = unix.Kill(-p.pid, syscall.Signal(req.Number))
		}
		s.mu.Unlock()
		s.answer(req, nil)
	case wire.Kill:
		s.mu.Lock()
		p := s.started[req.Process]
		s.mu.Unlock()
		go func() {
			if p != nil {
				killTree(p.pid)
			}
			s.answer(req, nil)
		}()
	case wire.Dial:
		go s.answerFile(req, dial)
	case wire.Listen:
		go s.answerFile(req, listen)
	case wire.Open:
		go s.answerFile(req, open)
	default:
		s.answer(req, fault("operation "+strconv.FormatUint(uint64(req.Op), 10), unix.ENOSYS))
	}
}

// hello begins a session. What an earlier daemon started goes on, with nobody to tell of its end.
func (s *server) hello(req wire.Request) {
	if req.Number != wire.Version {
		s.answer(req, &failure{what: "this runnerd-init speaks version " + strconv.Itoa(wire.Version) + ", not " +
			strconv.FormatUint(req.Number, 10) + ": use the one that was built with runnerd"})
		return
	}
	s.mu.Lock()
	if s.session != req.Session {
		s.session, s.started = req.Session, map[uint64]*process{}
	}
	s.mu.Unlock()
	s.answer(req, nil)
}

// failure is an error with what a reply says of it.
type failure struct {
	what  string
	errno syscall.Errno
	code  int // what a shell would exit with, 0 if it is not the user's error
}

// fault makes a failure of an error of a system call.
func fault(what string, err error) *failure { return &failure{what: what, errno: errnoOf(err)} }

// errnoOf finds the error number in an error of the packages os and syscall.
func errnoOf(err error) syscall.Errno {
	for err != nil {
		if errno, ok := err.(syscall.Errno); ok {
			return errno
		}
		wrapper, ok := err.(interface{ Unwrap() error })
		if !ok {
			break
		}
		err = wrapper.Unwrap()
	}
	return unix.EIO
}

// answer answers a request; a host that is gone does not get it.
func (s *server) answer(req wire.Request, f *failure, files ...int) {
	r := wire.Reply{Session: req.Session, ID: req.ID, Kind: wire.Answer}
	if f != nil {
		r.Error, r.Errno, r.Code = f.what, uint64(f.errno), uint64(f.code)
	}
	s.send(r, files...)
}

func (s *server) send(r wire.Reply, files ...int) {
	s.sending.Lock()
	defer s.sending.Unlock()
	_ = wire.Send(wire.InitFD, r.Encode(), files, 0)
}

func (s *server) answerFile(req wire.Request, open func(wire.Request) (int, *failure)) {
	fd, f := open(req)
	if f != nil {
		s.answer(req, f)
		return
	}
	s.answer(req, nil, fd)
	_ = unix.Close(fd)
}
