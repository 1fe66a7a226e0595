package initd

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is runnerd-init's main: it serves the host until SIGTERM, and, called as "listen -- path args…",
// becomes a process that was passed listening sockets (sd_listen_fds(3)): LISTEN_PID has to be its own.
func Main() {
	if len(os.Args) > 3 && os.Args[1] == "listen" && os.Args[2] == "--" {
		env := append(os.Environ(), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
		err := unix.Exec(os.Args[3], os.Args[4:], env)
		fmt.Fprintf(os.Stderr, "exec %s: %v\n", os.Args[3], err)
		os.Exit(126)
	}
	debug.SetGCPercent(20) // an idle sandbox's memory is mostly this heap
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "runnerd-init:", err)
		os.Exit(1)
	}
}

// server is the init's side of the conversation.
type server struct {
	mu        sync.Mutex
	processes map[uint64]int // start request to pid
	starts    map[int]uint64 // and back
}

func serve() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	if err := errors.Join(unix.Dup3(pair[0], initFD, unix.O_CLOEXEC), unix.Dup3(pair[1], hostFD, unix.O_CLOEXEC)); err != nil {
		return err
	}
	closeAll(pair[:])
	signal.Ignore(unix.SIGPIPE, unix.SIGHUP, unix.SIGINT)
	term := make(chan os.Signal, 1)
	signal.Notify(term, unix.SIGTERM)
	go func() {
		<-term
		os.Exit(0) // the kernel ends what is left of the pid namespace
	}()
	s := &server{processes: map[uint64]int{}, starts: map[int]uint64{}}
	go s.reap()
	packet, rights := make([]byte, maxPacket), make([]byte, unix.CmsgSpace(4*maxFiles))
	for {
		n, files, err := receive(initFD, packet, rights)
		if err != nil {
			if errors.Is(err, unix.EBADF) || errors.Is(err, unix.ENOTSOCK) {
				return err // somebody in the sandbox closed the socket
			}
			continue
		}
		req, err := decode[request](packet[:n])
		if err != nil {
			closeAll(files)
			continue
		}
		s.handle(req, files)
	}
}

func (s *server) handle(req request, files []int) {
	switch req.Op {
	case opStart:
		s.start(req, files) // not beside others, so that a later signal finds the process
		return
	case opSignal, opKill:
		s.mu.Lock()
		pid := s.processes[req.Process]
		s.mu.Unlock()
		if pid > 0 && req.Op == opSignal {
			_ = unix.Kill(-pid, syscall.Signal(req.Signal))
		} else if pid > 0 {
			killTree(pid)
		}
		s.answer(reply{ID: req.ID})
	case opDial:
		go s.answerFile(req.ID, func() (int, error) { return dial(req.Network, req.Address) })
	case opListen:
		go s.answerFile(req.ID, func() (int, error) { return listen(req.Network, req.Address) })
	case opHello:
		r := reply{ID: req.ID}
		if req.Version != Version {
			r.Error = fmt.Sprintf("this runnerd-init speaks version %d, not %d: use the one that was built with runnerd", Version, req.Version)
		}
		s.answer(r)
	default:
		s.answer(reply{ID: req.ID, Error: "unknown request " + strconv.Quote(req.Op)})
	}
	closeAll(files)
}

// answer sends r; a host that is gone does not get it.
func (s *server) answer(r reply, files ...int) { _ = send(initFD, r, files...) }

func (s *server) answerFile(id uint64, open func() (int, error)) {
	fd, err := open()
	if err != nil {
		s.answer(reply{ID: id, Error: err.Error()})
		return
	}
	s.answer(reply{ID: id}, fd)
	_ = unix.Close(fd)
}

// start starts a process and answers; with a terminal the answer carries its master side.
func (s *server) start(req request, files []int) {
	defer closeAll(files)
	fail := func(code int, err error) { s.answer(reply{ID: req.ID, Code: code, Error: err.Error()}) }
	if len(files) == 0 {
		fail(0, errors.New("start without a process"))
		return
	}
	spec, err := readSpec(files[0])
	if err != nil {
		fail(0, err)
		return
	}
	stdio, extra := files[1:], []int(nil)
	master := -1
	if spec.Terminal {
		extra = stdio
		slave := -1
		if master, slave, err = openTerminal(spec); err != nil {
			fail(0, err)
			return
		}
		defer unix.Close(master)
		defer unix.Close(slave)
		stdio = []int{slave, slave, slave}
	} else if len(stdio) >= 3 {
		stdio, extra = stdio[:3], stdio[3:]
	} else {
		fail(0, errors.New("start without standard files"))
		return
	}
	who, err := lookUser(spec.User)
	if err != nil {
		fail(126, err)
		return
	}
	env := spec.Env
	if !hasKey(env, "HOME") {
		env = append(env, "HOME="+who.home)
	}
	if spec.Terminal && !hasKey(env, "TERM") {
		env = append(env, "TERM=xterm")
	}
	path, code, err := lookPath(spec.Args[0], env, spec.Dir)
	if err != nil {
		fail(code, err)
		return
	}
	if err := workingDir(spec.Dir, who); err != nil {
		fail(126, err)
		return
	}
	args := spec.Args
	if len(extra) > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(len(extra)))
		args = append([]string{"runnerd-init", "listen", "--", path}, args...)
		path = "/proc/self/exe"
	}
	attr := &syscall.ProcAttr{Dir: spec.Dir, Env: env, Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: spec.Terminal,
		Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups},
	}}
	for _, fd := range append(stdio, extra...) {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	s.mu.Lock() // the reaper must not see the end of a process that is not yet listed
	pid, err := syscall.ForkExec(path, args, attr)
	if err == nil {
		s.processes[req.ID], s.starts[pid] = pid, req.ID
	}
	s.mu.Unlock()
	switch {
	case err != nil:
		fail(126, fmt.Errorf("exec: %q: %w", spec.Args[0], err))
	case master >= 0:
		s.answer(reply{ID: req.ID}, master)
	default:
		s.answer(reply{ID: req.ID})
	}
}

func readSpec(fd int) (processSpec, error) {
	var spec processSpec
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return spec, err
	}
	if st.Size > maxSpec {
		return spec, fmt.Errorf("arguments and environment of %d bytes: at most %d", st.Size, maxSpec)
	}
	data := make([]byte, st.Size)
	if _, err := unix.Pread(fd, data, 0); err != nil {
		return spec, err
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return spec, err
	}
	if len(spec.Args) == 0 {
		return spec, errors.New("no arguments")
	}
	return spec, nil
}

// reap waits for every child, adopted ones included, and tells the host of those it asked for.
func (s *server) reap() {
	child := make(chan os.Signal, 1)
	signal.Notify(child, unix.SIGCHLD)
	for range child {
		for {
			var status unix.WaitStatus
			pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
			if err == unix.EINTR {
				continue
			}
			if err != nil || pid <= 0 {
				break
			}
			s.mu.Lock()
			start, ours := s.starts[pid]
			delete(s.starts, pid)
			delete(s.processes, start)
			s.mu.Unlock()
			if ours {
				killTree(pid)
				go s.answer(reply{ID: start, Exited: true, Status: int(status)})
			}
		}
	}
}

func hasKey(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key+"=") {
			return true
		}
	}
	return false
}
