package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

// serveNetwork answers the network probes at an IPv4 address until the process ends, and returns its port, which TCP
// and UDP have in common. Where names is set it answers name servers' port too.
func serveNetwork(address string, names bool) (string, error) {
	at, err := netip.ParseAddr(address)
	if err != nil {
		return "", err
	}
	tcp, err := listen(unix.SOCK_STREAM, at, 0)
	if err != nil {
		return "", err
	}
	bound, err := unix.Getsockname(tcp)
	if err != nil {
		return "", err
	}
	port := bound.(*unix.SockaddrInet4).Port
	udp, err := listen(unix.SOCK_DGRAM, at, port)
	if err != nil {
		return "", err
	}
	if names {
		resolver, err := listen(unix.SOCK_DGRAM, at, 53)
		if err != nil {
			return "", err
		}
		go datagrams(resolver, answerName)
	}
	go datagrams(udp, func(b []byte) []byte { return b })
	go accept(tcp)
	return netip.AddrPortFrom(at, uint16(port)).String(), nil
}

func listen(kind int, at netip.Addr, port int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Addr: at.As4(), Port: port})
	}
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.Listen(fd, 128)
	}
	if err != nil {
		return -1, fmt.Errorf("listen at %s port %d: %w", at, port, err)
	}
	return fd, nil
}

// datagrams answers each datagram with what of gives, if anything.
func datagrams(fd int, of func([]byte) []byte) {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return
		}
		if answer := of(b[:n]); answer != nil {
			_ = unix.Sendto(fd, answer, 0, from)
		}
	}
}

func accept(fd int) {
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return
		}
		go func() {
			defer unix.Close(conn)
			_ = answerTCP(conn)
		}()
	}
}

func answerTCP(conn int) error {
	if err := unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return err
	}
	b := make([]byte, 64<<10)
	if err := readFull(conn, b[:1]); err != nil {
		return err
	}
	for want := b[0]; want == wantEcho; {
		if err := readFull(conn, b[:1]); err != nil {
			return err
		}
		if err := writeFull(conn, b[:1]); err != nil {
			return err
		}
	}
	for {
		if err := readFull(conn, b[:8]); err != nil {
			return err
		}
		for left := int64(binary.BigEndian.Uint64(b)); left > 0; {
			n := 0
			if err := retry(func() (err error) { n, err = unix.Read(conn, b); return err }); err != nil {
				return err
			}
			if n == 0 {
				return io.ErrUnexpectedEOF
			}
			left -= int64(n)
		}
		if err := writeFull(conn, b[:1]); err != nil {
			return err
		}
	}
}

// answerName answers a query for any name with one address (RFC 1035, 4.1).
func answerName(query []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(query) != nil || len(m.Questions) == 0 {
		return nil
	}
	q := m.Questions[0]
	reply := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: m.ID, Response: true, RecursionDesired: m.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	if q.Type == dnsmessage.TypeA {
		reply.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 0},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 1}}, // for documentation (RFC 5737)
		}}
	}
	packed, err := reply.Pack()
	if err != nil {
		return nil
	}
	return packed
}
