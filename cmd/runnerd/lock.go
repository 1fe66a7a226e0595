package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
)

// stateLock is held by the one daemon of a state directory. The file says who it is.
type stateLock struct{ file *os.File }

// lockState locks a state directory, or says who has it.
func lockState(dir string) (*stateLock, error) {
	path := filepath.Join(dir, "runnerd.pid")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		text, _ := io.ReadAll(io.LimitReader(f, 100))
		pid := "?"
		if fields := strings.Fields(string(text)); len(fields) > 0 {
			pid = fields[0]
		}
		return nil, fmt.Errorf("another runnerd (pid %s) uses %s: stop it or give --state-dir", pid, dir)
	}
	// The pid and when it started, so that a reader can tell it from a later process with the same pid.
	text := fmt.Sprintf("%d %s\n", os.Getpid(), time.Now().UTC().Format(time.RFC3339))
	if err := errors.Join(f.Truncate(0), writeAt(f, text)); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("write %s: %w", path, err)
	}
	return &stateLock{f}, nil
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}

// release lets go of the directory. The file stays: removing it would let two daemons lock two files.
func (l *stateLock) release() {
	_ = l.file.Truncate(0)
	_ = l.file.Close()
}

// listen opens the API's socket. One that nobody listens on any more is replaced, a live one is not.
func listen(c config.Socket) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the socket: %w", err)
	}
	if fi, err := os.Lstat(c.Path); err == nil {
		if fi.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there and no socket: remove it or give --socket", c.Path)
		}
		conn, err := net.DialTimeout("unix", c.Path, time.Second)
		switch {
		case err == nil:
			_ = conn.Close()
			return nil, fmt.Errorf("another process listens on %s: stop it or give --socket", c.Path)
		case !errors.Is(err, syscall.ECONNREFUSED):
			return nil, fmt.Errorf("look who listens on %s: %w", c.Path, err)
		}
		if err := os.Remove(c.Path); err != nil {
			return nil, fmt.Errorf("remove the old socket: %w", err)
		}
	}
	gid, err := socketGroup(c.Group)
	if err != nil {
		return nil, err
	}
	// Nobody else may connect before its owner and mode are set.
	old := syscall.Umask(0o177)
	l, err := net.Listen("unix", c.Path)
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", c.Path, err)
	}
	if gid >= 0 {
		err = os.Chown(c.Path, -1, gid)
	}
	if err := errors.Join(err, os.Chmod(c.Path, os.FileMode(c.Mode))); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("set who may use the socket: %w", err)
	}
	return l, nil
}

// defaultGroup may use the socket if it exists and no other is configured.
const defaultGroup = "runnerd"

func socketGroup(name string) (gid int, err error) {
	needed := name != ""
	if !needed {
		name = defaultGroup
	}
	if gid, err := strconv.Atoi(name); err == nil {
		return gid, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		if needed {
			return -1, fmt.Errorf("socket.group: there is no group %q: make it with 'groupadd --system %s'", name, name)
		}
		return -1, nil
	}
	return strconv.Atoi(g.Gid)
}

// notify tells the service manager what state the daemon is in, sd_notify(3).
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = io.WriteString(conn, state)
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		log.Warn("the service manager was not notified", "error", err)
	}
}

// newLog is the daemon's own log.
func newLog(w io.Writer, c config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(c.Level)) // checked
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
