package main

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// killRounds bounds the killing of a tree that forks as fast as it is killed, or that hangs in the kernel:
// about half a second. The sandbox's pids limit and its close are what end such a one for sure.
const killRounds = 50

// killTree kills the session that leader leads and everything that descends from it, and returns when
// nothing of it is left. A process that has left the session and whose parent has ended is no descendant
// any more: that one ends with the sandbox.
func killTree(leader int) {
	sessions := map[int]bool{leader: true} // those of what was killed: their orphans belong to the tree
	rounds(func() bool {
		victims := tree(sessions)
		for _, v := range victims {
			sessions[v.session] = true
			_ = unix.Kill(v.pid, unix.SIGKILL)
		}
		return len(victims) > 0
	})
}

// killSession kills what is left of the session that leader led, and reports whether there was anything.
func killSession(leader int) (found bool) {
	for _, pid := range pids() {
		if session, err := unix.Getsid(pid); err != nil || session != leader || pid == leader {
			continue
		}
		if stat, ok := readStat(pid); ok && stat.session == leader {
			found = true
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	return found
}

// killSessionAgain gets those that were forked meanwhile. The session's number is not given out again as
// long as one of its processes lives.
func killSessionAgain(leader int) { rounds(func() bool { return killSession(leader) }) }

// rounds calls again until it reports that nothing was left.
func rounds(again func() bool) {
	wait := 200 * time.Microsecond
	for range killRounds {
		if !again() {
			return
		}
		time.Sleep(wait)
		wait = min(2*wait, 10*time.Millisecond)
	}
}

// stat is what /proc tells of a live process.
type stat struct{ pid, parent, session int }

// tree lists the live processes of some sessions and their descendants, parents first.
func tree(sessions map[int]bool) []stat {
	children := map[int][]stat{}
	var found []stat
	for _, pid := range pids() {
		p, ok := readStat(pid)
		if !ok || pid == 1 {
			continue
		}
		if sessions[p.session] {
			found = append(found, p)
		} else {
			children[p.parent] = append(children[p.parent], p)
		}
	}
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i].pid]...)
	}
	return found
}

// pids lists the processes of the pid namespace.
func pids() []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	all := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

// readStat reads /proc/PID/stat (proc_pid_stat(5)); ok is false for a process that has ended.
func readStat(pid int) (_ stat, ok bool) {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/stat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return stat{}, false
	}
	defer unix.Close(fd)
	var buf [512]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil {
		return stat{}, false
	}
	text := buf[:n]
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:]) // the name before it may hold anything
	if len(fields) < 4 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return stat{}, false
	}
	parent, err1 := strconv.Atoi(string(fields[1]))
	session, err2 := strconv.Atoi(string(fields[3]))
	return stat{pid, parent, session}, err1 == nil && err2 == nil
}
