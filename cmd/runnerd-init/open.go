package main

import (
	"encoding/binary"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// backlog is that of listening sockets.
const backlog = 1024

// socket makes a socket, and the address that req means.
func socket(req wire.Request) (fd int, sa unix.Sockaddr, f *failure) {
	what := "socket " + req.Network
	family, address := 0, []byte(req.Address)
	switch {
	case req.Network == "unix":
		family, sa = unix.AF_UNIX, &unix.SockaddrUnix{Name: req.Address}
	case req.Network == "tcp4" && len(address) == 4+2:
		port := int(binary.BigEndian.Uint16(address[4:]))
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Addr: [4]byte(address[:4]), Port: port}
	case req.Network == "tcp6" && len(address) == 16+2:
		port := int(binary.BigEndian.Uint16(address[16:]))
		family, sa = unix.AF_INET6, &unix.SockaddrInet6{Addr: [16]byte(address[:16]), Port: port}
	default:
		return -1, nil, fault(what, unix.EAFNOSUPPORT)
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fault(what, err)
	}
	return fd, sa, nil
}

func dial(req wire.Request) (int, *failure) {
	fd, sa, f := socket(req)
	if f != nil {
		return -1, f
	}
	for {
		err := unix.Connect(fd, sa)
		if err == nil || err == unix.EISCONN {
			return fd, nil
		}
		if err != unix.EINTR && err != unix.EALREADY {
			_ = unix.Close(fd)
			return -1, fault("connect", err)
		}
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, -1); err != nil && err != unix.EINTR {
			_ = unix.Close(fd)
			return -1, fault("connect", err)
		}
	}
}

func listen(req wire.Request) (int, *failure) {
	fd, sa, f := socket(req)
	if f != nil {
		return -1, f
	}
	if err := bind(fd, sa, req); err != nil {
		_ = unix.Close(fd)
		return -1, fault("listen", err)
	}
	return fd, nil
}

// bind binds a socket, making room for a path: its directory is made, and a socket that is there is removed.
func bind(fd int, sa unix.Sockaddr, req wire.Request) error {
	if req.Network != "unix" {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else {
		if err := os.MkdirAll(path.Dir(req.Address), 0o755); err != nil {
			return err
		}
		if info, err := os.Lstat(req.Address); err == nil && info.Mode()&os.ModeSocket != 0 {
			if err := unix.Unlink(req.Address); err != nil {
				return err
			}
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return err
	}
	if req.Network == "unix" {
		if err := unix.Chmod(req.Address, 0o660); err != nil {
			return err
		}
	}
	return unix.Listen(fd, backlog)
}

// open opens a file. It does not wait for the other end of a FIFO.
func open(req wire.Request) (int, *failure) {
	flags := int(req.Number) | unix.O_CLOEXEC | unix.O_NOCTTY | unix.O_NONBLOCK
	for {
		fd, err := unix.Open(req.Address, flags, uint32(req.Mode))
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, fault("open", err)
		}
	}
}
