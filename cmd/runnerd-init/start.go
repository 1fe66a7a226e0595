package main

import (
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// start starts a process and answers; with a terminal the answer carries its master side.
func (s *server) start(req wire.Request, files []int) {
	master, f := s.tryStart(req, files)
	if master < 0 {
		s.answer(req, f)
		return
	}
	s.answer(req, f, master)
	_ = unix.Close(master)
}

func (s *server) tryStart(req wire.Request, files []int) (master int, f *failure) {
	if len(files) == 0 {
		return -1, &failure{what: "start without a process"}
	}
	data, err := wire.ReadMemfile(files[0])
	if err != nil {
		return -1, fault("read the process", err)
	}
	spec, err := wire.DecodeSpec(data)
	if err != nil {
		return -1, &failure{what: err.Error()}
	}
	stdio, extra := files[1:], []int(nil)
	switch {
	case spec.Terminal:
		extra = stdio
		var slave int
		if master, slave, f = openTerminal(spec); f != nil {
			return -1, f
		}
		defer unix.Close(slave)
		stdio = []int{slave, slave, slave}
	case len(stdio) >= 3:
		master, stdio, extra = -1, stdio[:3], stdio[3:]
	default:
		return -1, &failure{what: "start without standard files"}
	}
	if f := s.fork(req, spec, stdio, extra); f != nil {
		if master >= 0 {
			_ = unix.Close(master)
		}
		return -1, f
	}
	return master, nil
}

// fork resolves what spec leaves to the sandbox, and forks.
func (s *server) fork(req wire.Request, spec wire.Spec, stdio, extra []int) *failure {
	who, f := lookUser(spec.User)
	if f != nil {
		return f
	}
	dir := spec.Dir
	if !strings.HasPrefix(dir, "/") {
		dir = "/" + dir
	}
	if f := workingDir(dir, who); f != nil {
		return f
	}
	path, f := lookPath(spec.Args[0], spec.Env, dir)
	if f != nil {
		return f
	}
	env := spec.Env
	if !hasKey(env, "HOME") {
		env = append(env, "HOME="+who.home)
	}
	if spec.Terminal && !hasKey(env, "TERM") {
		env = append(env, "TERM=xterm")
	}
	args := spec.Args
	if len(extra) > 0 {
		env = append(without(env, "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"), "LISTEN_FDS="+strconv.Itoa(len(extra)))
		args = append([]string{"runnerd-init", "listen", "--", path}, args...)
		path = "/proc/self/exe"
	}
	attr := &syscall.ProcAttr{Dir: dir, Env: env, Sys: &syscall.SysProcAttr{
		Setsid: true, Setctty: spec.Terminal,
		Credential: &syscall.Credential{Uid: who.uid, Gid: who.gid, Groups: who.groups},
	}}
	for _, list := range [][]int{stdio, extra} {
		for _, fd := range list {
			attr.Files = append(attr.Files, uintptr(fd))
		}
	}
	s.mu.Lock() // the reaper must not see the end of a process that is not yet listed
	defer s.mu.Unlock()
	pid, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		f := fault("exec: "+strconv.Quote(spec.Args[0]), err)
		switch f.errno {
		case unix.EAGAIN, unix.ENOMEM: // no process for want of means: nobody's command failed
		case unix.ENOENT: // of its interpreter: what there is of it itself has been looked up
			f.code = 127
		default:
			f.code = 126
		}
		return f
	}
	p := &process{pid: pid, session: req.Session, id: req.ID}
	s.processes[pid], s.started[req.ID] = p, p
	s.idle.Stop()
	return nil
}

func hasKey(env []string, key string) bool {
	for _, e := range env {
		if strings.HasPrefix(e, key) && strings.HasPrefix(e[len(key):], "=") {
			return true
		}
	}
	return false
}

func without(env []string, keys ...string) []string {
	var kept []string
	for _, e := range env {
		drop := false
		for _, key := range keys {
			drop = drop || strings.HasPrefix(e, key+"=")
		}
		if !drop {
			kept = append(kept, e)
		}
	}
	return kept
}
