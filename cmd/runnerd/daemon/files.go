package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
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

// lockStateDir makes sure that one daemon uses a state directory. The lock ends with the process, however
// it ends; the file says who holds it.
func lockStateDir(dir string) (unlock func() error, err error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer file.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", file.Name(), err)
		}
		holder := make([]byte, 32)
		n, _ := file.Read(holder)
		return nil, fmt.Errorf("another runnerd (pid %s) uses %s: stop it, or give --state-dir", strings.TrimSpace(string(holder[:n])), dir)
	}
	if err := file.Truncate(0); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if _, err := file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file.Close, nil
}

// listenSocket opens the API's socket. A socket that nobody answers is replaced, a live one is refused.
func listenSocket(cfg *config.Config) (net.Listener, error) {
	path := cfg.Socket.Path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("a daemon answers at %s: stop it, or give --socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	old := unix.Umask(0o177) // nobody gets in before the mode is set
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open the API's socket: %w", err)
	}
	group := cfg.Socket.Group
	if group == "" {
		group = "runnerd"
	}
	if g, err := user.LookupGroup(group); err == nil {
		gid, _ := strconv.Atoi(g.Gid)
		if err := os.Chown(path, 0, gid); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	} else if cfg.Socket.Group != "" {
		return nil, errors.Join(fmt.Errorf("socket.group: %w", err), l.Close())
	}
	if err := os.Chmod(path, fs.FileMode(cfg.Socket.Mode)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// listenFree listens on an address that need not exist yet: the gateway's comes with the first sandbox
// (ip(7), IP_FREEBIND).
func listenFree(ctx context.Context, address string) (net.Listener, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_FREEBIND, 1)
		})
		return errors.Join(err, failed)
	}}
	return lc.Listen(ctx, "tcp4", address)
}

func shortHash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:4])
}
