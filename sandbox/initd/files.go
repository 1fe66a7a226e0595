package initd

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

// Dial connects from inside the container: network is "unix" or "tcp", the address a path, or an IP
// address (or localhost) and port. ctx covers the dialling.
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	file, err := c.socketFile(ctx, wire.Dial, network, address)
	if err != nil {
		return nil, fmt.Errorf("dial %s %s: %w", network, address, err)
	}
	defer file.Close()
	return net.FileConn(file)
}

// Listen opens a listening socket inside the container, as Dial takes addresses. For a unix socket its
// directory is made and a socket left there is removed; it is root's, with mode 0660. The caller closes
// the file.
func (c *Client) Listen(ctx context.Context, network, address string) (*os.File, error) {
	file, err := c.socketFile(ctx, wire.Listen, network, address)
	if err != nil {
		return nil, fmt.Errorf("listen %s %s: %w", network, address, err)
	}
	return file, nil
}

// Open opens a file inside the container as its root; flags are those of os.OpenFile. It does not wait for
// the other end of a FIFO. What the file is, and how long a Read takes, is the sandbox's to say.
func (c *Client) Open(ctx context.Context, path string, flags int, mode fs.FileMode) (*os.File, error) {
	err := checkPath(path)
	var file *os.File
	if err == nil {
		file, err = c.ask(ctx, wire.Request{Op: wire.Open, Address: path, Number: uint64(flags), Mode: uint64(mode.Perm())})
	}
	if err == nil && file == nil {
		err = errNoFile
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return file, nil
}

var errNoFile = errors.New("the sandbox's init sent no file")

// socketFile asks for a socket and makes sure that it is one of the family that was asked for.
func (c *Client) socketFile(ctx context.Context, op wire.Op, network, address string) (*os.File, error) {
	req, domain, err := socketRequest(op, network, address)
	if err != nil {
		return nil, err
	}
	file, err := c.ask(ctx, req)
	if err != nil {
		return nil, err
	}
	if file == nil {
		return nil, errNoFile
	}
	raw, err := file.SyscallConn()
	if err == nil {
		err1 := raw.Control(func(fd uintptr) { err = checkSocket(int(fd), domain) })
		err = errors.Join(err1, err)
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

func checkSocket(fd, domain int) error {
	if !isSocket(fd, domain, unix.SOCK_STREAM) {
		return errors.New("the sandbox's init sent something else than a stream socket")
	}
	return nil
}

// socketRequest encodes an address; domain is that of the socket to expect.
func socketRequest(op wire.Op, network, address string) (req wire.Request, domain int, err error) {
	req = wire.Request{Op: op, Network: network, Address: address}
	switch network {
	case "unix":
		return req, unix.AF_UNIX, checkPath(address)
	case "tcp":
		if port, ok := strings.CutPrefix(address, "localhost:"); ok {
			address = "127.0.0.1:" + port
		} else if strings.HasPrefix(address, ":") { // all addresses, as package net has it
			address = "[::]" + address
		}
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return req, 0, err
		}
		req.Network, domain = "tcp6", unix.AF_INET6
		ip := ap.Addr().Unmap()
		if ip.Is4() {
			req.Network, domain = "tcp4", unix.AF_INET
		}
		req.Address = string(binary.BigEndian.AppendUint16(ip.AsSlice(), ap.Port()))
		return req, domain, nil
	}
	return req, 0, fmt.Errorf("unknown network %q: use unix or tcp", network)
}

func checkPath(path string) error {
	if path == "" || len(path) >= wire.MaxText || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("a path must have 1 to %d characters, and no NUL among them", wire.MaxText-1)
	}
	return nil
}

// printable drops what a terminal might take for a command.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, text)
}
