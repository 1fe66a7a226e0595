package initd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxKillRounds bounds killTree against a tree that forks as fast as it is killed; the sandbox's pids limit
// and its close are what end such a one for sure.
const maxKillRounds = 100

// killTree kills the session that pid leads, and everything that descends from it.
func killTree(pid int) {
	for range maxKillRounds {
		victims := family(pid)
		if len(victims) == 0 {
			return
		}
		for _, v := range victims {
			_ = unix.Kill(v, unix.SIGKILL)
		}
	}
}

// family lists the live processes in the session of leader, and their descendants.
func family(leader int) []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	children := map[int][]int{}
	var found []int
	seen := map[int]bool{1: true} // never the init itself
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		state, parent, session, ok := readStat(pid)
		if !ok || state == 'Z' || state == 'X' {
			continue
		}
		children[parent] = append(children[parent], pid)
		if (session == leader || pid == leader) && !seen[pid] {
			seen[pid] = true
			found = append(found, pid)
		}
	}
	for i := 0; i < len(found); i++ {
		for _, child := range children[found[i]] {
			if !seen[child] {
				seen[child] = true
				found = append(found, child)
			}
		}
	}
	return found
}

// readStat reads state, parent and session from /proc/PID/stat (proc(5)).
func readStat(pid int) (state byte, parent, session int, ok bool) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, 0, 0, false
	}
	end := bytes.LastIndexByte(text, ')') // the name before it may contain anything
	if end < 0 {
		return 0, 0, 0, false
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 4 {
		return 0, 0, 0, false
	}
	parent, _ = strconv.Atoi(fields[1])
	session, _ = strconv.Atoi(fields[3])
	return fields[0][0], parent, session, true
}

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds a command as a shell does; code is what a shell would exit with.
func lookPath(name string, env []string, dir string) (path string, code int, err error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) {
			return filepath.Join(dir, name), 0, nil
		}
		if _, err := os.Stat(name); os.IsNotExist(err) {
			return "", 127, fmt.Errorf("exec: %q: no such file or directory", name)
		}
		return name, 0, nil
	}
	search := searchPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	code = 127
	for _, d := range filepath.SplitList(search) {
		candidate := filepath.Join(d, name)
		info, err := os.Stat(candidate)
		if err != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return candidate, 0, nil
		}
		code = 126
	}
	if code == 126 {
		return "", code, fmt.Errorf("exec: %q: permission denied", name)
	}
	return "", code, fmt.Errorf("exec: %q: executable file not found in $PATH", name)
}

// workingDir makes sure that a process's working directory exists, as Docker does for WORKDIR.
func workingDir(dir string, who identity) error {
	if dir == "" {
		return nil
	}
	if info, err := os.Stat(dir); err == nil {
		if !info.IsDir() {
			return fmt.Errorf("working directory %s: not a directory", dir)
		}
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("working directory: %w", err)
	}
	return os.Chown(dir, int(who.uid), int(who.gid))
}

// openTerminal opens a pseudo-terminal of the sandbox's own devpts.
func openTerminal(spec processSpec) (master, slave int, err error) {
	if master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return -1, -1, fmt.Errorf("open terminal: %w", err)
	}
	fail := func(err error) (int, int, error) {
		_ = unix.Close(master)
		return -1, -1, fmt.Errorf("open terminal: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return fail(err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return fail(err)
	}
	if spec.Rows > 0 && spec.Cols > 0 {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: spec.Rows, Col: spec.Cols}); err != nil {
			return fail(err)
		}
	}
	if slave, err = unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0); err != nil {
		return fail(err)
	}
	return master, slave, nil
}
