package initd

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// socketAddress parses "unix" paths and "tcp" host:port; the one host name that is known is localhost.
func socketAddress(network, address string) (family int, sa unix.Sockaddr, err error) {
	switch network {
	case "unix":
		return unix.AF_UNIX, &unix.SockaddrUnix{Name: address}, nil
	case "tcp":
		if port, ok := strings.CutPrefix(address, "localhost:"); ok {
			address = "127.0.0.1:" + port
		}
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return 0, nil, err
		}
		if ap.Addr().Is4() {
			return unix.AF_INET, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}, nil
		}
		return unix.AF_INET6, &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}, nil
	}
	return 0, nil, fmt.Errorf("network %q: use unix or tcp", network)
}

func dial(network, address string) (int, error) {
	return withSocket(network, address, "dial", unix.Connect)
}

func listen(network, address string) (int, error) {
	if network == "unix" {
		if err := os.MkdirAll(filepath.Dir(address), 0o755); err != nil {
			return -1, err
		}
		if err := os.Remove(address); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return -1, err
		}
	}
	return withSocket(network, address, "listen", func(fd int, sa unix.Sockaddr) error {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		if err := unix.Bind(fd, sa); err != nil {
			return err
		}
		if network == "unix" {
			if err := os.Chmod(address, 0o660); err != nil {
				return err
			}
		}
		return unix.Listen(fd, 1024)
	})
}

func withSocket(network, address, what string, use func(int, unix.Sockaddr) error) (int, error) {
	family, sa, err := socketAddress(network, address)
	if err != nil {
		return -1, fmt.Errorf("%s %s: %w", what, address, err)
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s %s: %w", what, address, err)
	}
	if err := use(fd, sa); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s %s: %w", what, address, err)
	}
	return fd, nil
}
