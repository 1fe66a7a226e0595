package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// Sandboxes do not reach the machine. A forge that is on it they are let reach, and nothing else: what is on the
// loopback by a socket in the sandbox whose connections the daemon carries on, what has another address of the
// machine by that one port.

// maxConnections is how many connections of one job to one address are carried on at once; others wait.
const maxConnections = 128

// resolveTimeout bounds how long a name server may take. Who asks for jobs by the same name has just had an answer.
const resolveTimeout = 2 * time.Second

// Resolver finds the addresses of hosts, as package net's does.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// FilesResolver resolves what is written in the machine's /etc/hosts, and asks nobody. Whoever answers for a name
// elsewhere could say that it is the machine.
func FilesResolver() Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server is asked")
	}}
}

// endpoint is a service that a job is to reach.
type endpoint struct {
	host string
	port uint16
	// operators is true if the machine's operator has named the port, and not only the forge.
	operators bool
}

// endpoints are those of the forge: where its API is, and the repository.
func endpoints(operators []string, repository string) (all []endpoint) {
	for _, text := range operators {
		if e, ok := endpointOf(text); ok {
			e.operators = true
			all = append(all, e)
		}
	}
	e, ok := endpointOf(repository)
	for _, other := range all {
		if ok && e.host == other.host && e.port != other.port { // the forge may choose the port, not the host
			return append(all, e)
		}
	}
	return all
}

func endpointOf(text string) (endpoint, bool) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" {
		return endpoint{}, false
	}
	e := endpoint{host: strings.ToLower(u.Hostname()), port: 443}
	if u.Scheme == "http" {
		e.port = 80
	}
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return endpoint{}, false
		}
		e.port = uint16(port)
	}
	return e, true
}

// way is how a job reaches an endpoint on the machine.
type way struct {
	address netip.AddrPort
	name    string // of /etc/hosts; empty: the endpoint is named by its address
}

// way finds how a job reaches an endpoint; ok is false if it needs no help, or gets none.
func (e endpoint) way(ctx context.Context, c Config) (_ way, ok bool) {
	if addr, err := netip.ParseAddr(e.host); err == nil {
		addr = addr.Unmap()
		return way{address: netip.AddrPortFrom(addr, e.port)}, addr.IsLoopback() || c.own(addr)
	}
	written, _ := c.Files.LookupNetIP(ctx, "ip", e.host)
	if e.host == "localhost" {
		written = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	}
	for _, addr := range written {
		addr = addr.Unmap()
		if addr.IsLoopback() || c.own(addr) {
			return way{address: netip.AddrPortFrom(addr, e.port), name: e.host}, true
		}
	}
	if len(written) > 0 || !e.operators {
		return way{}, false
	}
	// What a name server says is believed for addresses that others reach, too.
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, _ := c.Resolver.LookupNetIP(ctx, "ip", e.host)
	for _, addr := range found {
		if addr = addr.Unmap(); addr.Is4() && !addr.IsLoopback() && c.own(addr) {
			return way{address: netip.AddrPortFrom(addr, e.port), name: e.host}, true
		}
	}
	return way{}, false
}

// own reports whether an address is the machine's.
func (c Config) own(addr netip.Addr) bool {
	all, err := c.Addresses()
	if err != nil {
		return false
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
			return true
		}
	}
	return false
}

// reach makes the forge's endpoints reachable in the sandbox.
func (r *run) reach(ctx context.Context) error {
	for _, e := range r.endpoints {
		w, ok := e.way(ctx, r.cfg)
		if !ok {
			continue
		}
		if err := r.open(ctx, w); err != nil {
			return fmt.Errorf("let the job reach %s:%d: %w", e.host, e.port, err)
		}
	}
	return nil
}

func (r *run) open(ctx context.Context, w way) error {
	if w.name != "" && w.name != "localhost" {
		r.hosts[w.name] = w.address.Addr().String()
	}
	if !w.address.Addr().IsLoopback() {
		reacher, ok := ability[sandbox.Reacher](r.on)
		if !ok {
			return fmt.Errorf("%T cannot be let reach the machine", r.on)
		}
		return reacher.Reach(ctx, w.address)
	}
	return r.forward(ctx, "tcp", w.address.String(), func(ctx context.Context) (net.Conn, error) {
		return r.cfg.Dial(ctx, "tcp", w.address.String())
	}, nil)
}

// forward opens a socket in the sandbox and carries its connections on to where dial connects. wrap, if not nil, is
// what each becomes first. It ends with the job.
func (r *run) forward(ctx context.Context, network, address string, dial func(context.Context) (net.Conn, error), wrap func(net.Conn) net.Conn) error {
	listener, ok := ability[sandbox.Listener](r.on)
	if !ok {
		return fmt.Errorf("no socket can be opened in %T", r.on)
	}
	file, err := listener.Listen(ctx, network, address)
	if err != nil {
		return err
	}
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	context.AfterFunc(r.life, func() { _ = l.Close() })
	r.background.Go(func() {
		var open sync.WaitGroup
		defer open.Wait()
		slots := make(chan struct{}, maxConnections)
		for {
			select {
			case slots <- struct{}{}:
			case <-r.life.Done():
				return
			}
			conn, err := accept(r.life, l)
			if err != nil {
				return
			}
			if wrap != nil {
				conn = wrap(conn)
			}
			open.Go(func() {
				defer func() { <-slots }()
				carry(r.life, conn, dial)
			})
		}
	})
	return nil
}

// acceptRetry is the time before another try when the daemon has no descriptors left.
const acceptRetry = 50 * time.Millisecond

// accept waits for a connection, until ctx ends.
func accept(ctx context.Context, l net.Listener) (net.Conn, error) {
	for {
		conn, err := l.Accept()
		if err == nil {
			return conn, nil
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(acceptRetry):
		}
	}
}

// carry connects a connection with another one, until both directions have ended or ctx has.
func carry(ctx context.Context, from net.Conn, dial func(context.Context) (net.Conn, error)) {
	defer from.Close()
	to, err := dial(ctx)
	if err != nil {
		return // it looks as if nobody listened
	}
	defer to.Close()
	stop := context.AfterFunc(ctx, func() {
		_ = from.Close()
		_ = to.Close()
	})
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { pass(to, from) })
	both.Go(func() { pass(from, to) })
	both.Wait()
}

// pass copies one direction and ends it, which leaves the other one open: docker attach and git rely on that.
func pass(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if half, ok := to.(interface{ CloseWrite() error }); ok && err == nil {
		_ = half.CloseWrite()
		return
	}
	_ = to.Close()
	_ = from.Close()
}
