package main

import (
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// lookPath finds a command as a shell does. Its failures carry a shell's exit codes (POSIX, Shell Command
// Language, 2.8.2).
func lookPath(name string, env []string, dir string) (string, *failure) {
	what := "exec: " + strconv.Quote(name)
	if strings.Contains(name, "/") {
		if !strings.HasPrefix(name, "/") {
			name = dir + "/" + name
		}
		switch info, err := os.Stat(name); {
		case err != nil && (errnoOf(err) == unix.ENOENT || errnoOf(err) == unix.ENOTDIR):
			return "", &failure{what: what, errno: errnoOf(err), code: 127}
		case err != nil:
			return "", &failure{what: what, errno: errnoOf(err), code: 126}
		case info.IsDir():
			return "", &failure{what: what, errno: unix.EISDIR, code: 126}
		}
		return name, nil
	}
	search := searchPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
			break
		}
	}
	code, found := 127, ""
	for _, d := range strings.Split(search, ":") {
		if !strings.HasPrefix(d, "/") {
			d = dir + "/" + d
		}
		candidate := path.Join(d, name)
		info, err := os.Stat(candidate)
		if name == "" || err != nil || info.IsDir() {
			continue
		}
		if info.Mode()&0o111 != 0 {
			return candidate, nil
		}
		code, found = 126, candidate
	}
	if found != "" {
		return "", &failure{what: what, errno: unix.EACCES, code: code}
	}
	return "", &failure{what: what + ": executable file not found in $PATH", code: code}
}

// workingDir makes sure that a process's working directory exists, as Docker does for WORKDIR.
func workingDir(dir string, who identity) *failure {
	info, err := os.Stat(dir)
	if err == nil && info.IsDir() {
		return nil
	}
	what := "working directory " + dir
	if err == nil {
		return &failure{what: what, errno: unix.ENOTDIR, code: 126}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return &failure{what: what, errno: errnoOf(err), code: 126}
	}
	if err := os.Chown(dir, int(who.uid), int(who.gid)); err != nil {
		return &failure{what: what, errno: errnoOf(err), code: 126}
	}
	return nil
}
