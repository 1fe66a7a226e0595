package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/peer"
)

// maxProcessFile bounds what is read of a client's environment and arguments, in bytes.
const maxProcessFile = 1 << 20

// otherEngine reports whether the process that made a call was told to use another Docker Engine than the sandbox's
// own: what it loads is for that one. What is in Docker's configuration file, as by "docker context use", is not seen.
// at are addresses of that engine, beside its sockets.
func otherEngine(ctx context.Context, at []string) bool {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return false
	}
	who, ok := p.Addr.(process)
	if !ok {
		return false
	}
	return who.told("environ", func(env []string) bool { return namesEngine(env, at) }) || who.told("cmdline", flagsEngine)
}

// namesEngine judges an environment.
func namesEngine(env, at []string) bool {
	return slices.ContainsFunc(env, func(entry string) bool {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "DOCKER_HOST":
			return value != "" && value != "unix:///var/run/docker.sock" && value != "unix:///run/docker.sock" && !slices.Contains(at, strings.TrimSuffix(value, "/"))
		case "DOCKER_CONTEXT":
			return value != "" && value != "default"
		}
		return false
	})
}

// flagsEngine judges arguments. Those of docker itself come before the command.
func flagsEngine(args []string) bool {
	for _, arg := range args {
		if arg == "buildx" {
			return false
		}
		for _, flag := range []string{"-H", "--host", "-c", "--context"} {
			if arg == flag || strings.HasPrefix(arg, flag+"=") || len(flag) == 2 && strings.HasPrefix(arg, flag) {
				return true
			}
		}
	}
	return false
}

// clients is a listener at a Unix socket whose connections have a process for an address.
type clients struct{ net.Listener }

// Accept implements net.Listener.
func (l clients) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	socket, ok := conn.(*net.UnixConn)
	if !ok {
		return conn, nil
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return conn, nil // it is closed: whoever reads from it sees
	}
	var who *unix.Ucred
	if err := raw.Control(func(fd uintptr) { who, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil || who == nil {
		return conn, nil
	}
	return clientConn{conn, process{conn.RemoteAddr(), who.Pid}}, nil
}

type clientConn struct {
	net.Conn
	from process
}

// RemoteAddr implements net.Conn.
func (c clientConn) RemoteAddr() net.Addr { return c.from }

// process is the one that opened a connection.
type process struct {
	net.Addr
	pid int32
}

// told reports whether a file of the process's strings has what is looked for. One that has ended has nothing.
func (p process) told(file string, looked func([]string) bool) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/%s", p.pid, file))
	if err != nil {
		return false
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxProcessFile))
	return err == nil && looked(strings.Split(string(bytes.TrimRight(text, "\x00")), "\x00"))
}
