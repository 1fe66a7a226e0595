package probe

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

func networkProbes() []Probe {
	server := func(a Args) string { return a.Server }
	neighbour := func(a Args) string { return a.Neighbour }
	return []Probe{
		{Name: "tcp-rtt", Class: Network, Unit: "op", Crowds: true, setup: roundTrip(unix.SOCK_STREAM, server)},
		{Name: "udp-rtt", Class: Network, Unit: "op", Crowds: true, setup: roundTrip(unix.SOCK_DGRAM, server)},
		{Name: "connect", Class: Network, Unit: "op", Crowds: true, setup: connectOnly(server)},
		{Name: "stream", Class: Network, Unit: "MiB", Crowds: true, setup: stream(server)},
		{Name: "neighbour-tcp-rtt", Class: Network, Unit: "op", Crowds: true, setup: roundTrip(unix.SOCK_STREAM, neighbour)},
		{Name: "neighbour-stream", Class: Network, Unit: "MiB", Crowds: true, setup: stream(neighbour)},
		{Name: "dns", Class: Network, Unit: "op", Crowds: true, setup: dns},
	}
}

// What a client of a server's TCP port wants is its first byte.
const (
	wantEcho    = 'e'
	wantDiscard = 'd' // 8 bytes of length, and so many of data, for a byte in return; again and again
)

// answerWithin bounds how long a network probe waits for an answer: it is an error that nobody gives one.
const answerWithin = 5 * time.Second

// dial opens a blocking socket, so that nothing but the kernel is between a probe and the network.
func dial(kind int, address string) (int, error) {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	wait := unix.NsecToTimeval(int64(answerWithin))
	err = errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &wait),
		retry(func() error {
			return unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
		}),
	)
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err != nil {
		return -1, errors.Join(fmt.Errorf("connect to %s: %w", address, err), unix.Close(fd))
	}
	return fd, nil
}

// retry does a system call again that a signal interrupted: the Go runtime sends itself some.
func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func readFull(fd int, b []byte) error {
	for len(b) > 0 {
		n := 0
		err := retry(func() (err error) { n, err = unix.Read(fd, b); return err })
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		b = b[n:]
	}
	return nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n := 0
		if err := retry(func() (err error) { n, err = unix.Write(fd, b); return err }); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// roundTrip sends a byte and waits for its echo.
func roundTrip(kind int, target func(Args) string) func(Args) (func(int) error, func() error, error) {
	return func(a Args) (func(int) error, func() error, error) {
		if target(a) == "" {
			return nil, nil, ErrNotHere
		}
		fd, err := dial(kind, target(a))
		if err != nil {
			return nil, nil, err
		}
		if kind == unix.SOCK_STREAM {
			if err := writeFull(fd, []byte{wantEcho}); err != nil {
				return nil, nil, errors.Join(err, unix.Close(fd))
			}
		}
		b := make([]byte, 1)
		return func(n int) error {
			for range n {
				if err := writeFull(fd, b); err != nil {
					return fmt.Errorf("send to %s: %w", target(a), err)
				}
				if err := readFull(fd, b); err != nil {
					return fmt.Errorf("wait for the echo of %s: %w", target(a), err)
				}
			}
			return nil
		}, func() error { return unix.Close(fd) }, nil
	}
}

// connectOnly opens a TCP connection and resets it: closing would use up the machine's ports.
func connectOnly(target func(Args) string) func(Args) (func(int) error, func() error, error) {
	return func(a Args) (func(int) error, func() error, error) {
		if target(a) == "" {
			return nil, nil, ErrNotHere
		}
		return func(n int) error {
			for range n {
				fd, err := dial(unix.SOCK_STREAM, target(a))
				if err != nil {
					return err
				}
				if err := errors.Join(unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}), unix.Close(fd)); err != nil {
					return err
				}
			}
			return nil
		}, nothing, nil
	}
}

// stream sends data over one TCP connection; an operation is a MiB that has arrived.
func stream(target func(Args) string) func(Args) (func(int) error, func() error, error) {
	return func(a Args) (func(int) error, func() error, error) {
		if target(a) == "" {
			return nil, nil, ErrNotHere
		}
		fd, err := dial(unix.SOCK_STREAM, target(a))
		if err != nil {
			return nil, nil, err
		}
		if err := writeFull(fd, []byte{wantDiscard}); err != nil {
			return nil, nil, errors.Join(err, unix.Close(fd))
		}
		data := make([]byte, 64<<10)
		return func(n int) error {
			length := int64(n) << 20
			if err := writeFull(fd, binary.BigEndian.AppendUint64(nil, uint64(length))); err != nil {
				return err
			}
			for left := length; left > 0; left -= int64(len(data)) {
				if err := writeFull(fd, data); err != nil {
					return fmt.Errorf("send to %s: %w", target(a), err)
				}
			}
			return readFull(fd, make([]byte, 1))
		}, func() error { return unix.Close(fd) }, nil
	}
}

// lookedUp is a name that the server's resolver knows. ".internal" is reserved for private use.
const lookedUp = "probe.runnerd.internal."

// dns looks up a name as programs do, by the place's own resolver.
func dns(a Args) (func(int) error, func() error, error) {
	if a.Server == "" {
		return nil, nil, ErrNotHere
	}
	resolver := &net.Resolver{PreferGo: true, StrictErrors: true}
	if a.Resolver != "" {
		resolver.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", a.Resolver)
		}
	}
	return func(n int) error {
		for range n {
			ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
			_, err := resolver.LookupNetIP(ctx, "ip4", lookedUp)
			cancel()
			if err != nil {
				return fmt.Errorf("look up a name: %w", err)
			}
		}
		return nil
	}, nothing, nil
}
