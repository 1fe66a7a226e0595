package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
)

// Subnet is for the sandboxes that are measured, ServerAddress and networks for what they speak with. All are addresses
// for benchmarks (RFC 2544, C.2.2: 198.18.0.0/15), so that no network of the machine's has them.
const (
	Subnet        = "198.18.0.0/16"
	ServerAddress = "198.19.0.2"
	networks      = "198.19.0.0/16"
)

// wire is a pair of addresses: the outer end's, and the inner's.
type wire struct{ outer, inner netip.Addr }

func wireOf(n byte) wire {
	return wire{netip.AddrFrom4([4]byte{198, 19, n, 1}), netip.AddrFrom4([4]byte{198, 19, n, 2})}
}

// openServer starts the server in a network of its own, behind a veth pair: the machine reaches it as it would reach
// another one, and so do all places. That pair is the rootful one that goals are about.
func (r *Rig) openServer(ctx context.Context) error {
	l, err := r.startLocal(ctx, "server", unix.CLONE_NEWNET, "serve")
	if err != nil {
		return err
	}
	r.later(func(context.Context) error { return l.Close() })
	if err := r.connect(nil, l, wireOf(0)); err != nil {
		return err
	}
	served, err := l.Ask(ctx, probe.Request{Do: probe.DoNames, Args: probe.Args{Server: ServerAddress}})
	r.serve = served.Text
	return err
}

// connect makes a veth pair between the network of one process, or the machine's, and that of another, whose way out it
// becomes. It goes with the inner network.
func (r *Rig) connect(outer, inner *local, w wire) (err error) {
	outside, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if outer != nil {
		if err == nil {
			outside.Close()
		}
		outside, err = handleOf(outer)
	}
	if err != nil {
		return fmt.Errorf("speak with the kernel's network: %w", err)
	}
	defer outside.Close()
	within, err := handleOf(inner)
	if err != nil {
		return fmt.Errorf("speak with the kernel's network: %w", err)
	}
	defer within.Close()
	ns, err := os.Open(namespaceOf(inner))
	if err != nil {
		return err
	}
	defer ns.Close()
	pair := netlink.NewVeth(netlink.NewLinkAttrs())
	pair.Name, pair.MTU, pair.Flags = fmt.Sprintf("veth-m%d", w.outer.As4()[2]), r.cfg.Driver.MTU(), net.FlagUp
	pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(ns.Fd())
	if err := outside.LinkAdd(pair); err != nil {
		return fmt.Errorf("make veth pair %s: %w: run \"runnerd doctor\"", pair.Name, err)
	}
	mask := net.CIDRMask(30, 32)
	if err := outside.AddrAdd(pair, &netlink.Addr{IPNet: &net.IPNet{IP: w.outer.AsSlice(), Mask: mask}}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", pair.Name, w.outer, err)
	}
	lo, loErr := within.LinkByName("lo")
	eth0, err := within.LinkByName("eth0")
	if err = errors.Join(loErr, err); err != nil {
		return err
	}
	return errors.Join(
		within.LinkSetUp(lo),
		within.AddrAdd(eth0, &netlink.Addr{IPNet: &net.IPNet{IP: w.inner.AsSlice(), Mask: mask}}),
		within.LinkSetUp(eth0),
		within.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: w.outer.AsSlice()}),
	)
}

func namespaceOf(l *local) string { return fmt.Sprintf("/proc/%d/ns/net", l.cmd.Process.Pid) }

func handleOf(l *local) (*netlink.Handle, error) {
	ns, err := netns.GetFromPath(namespaceOf(l))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
}

// network is the series about networks alone: namespaces, a veth pair and a translation of addresses a level, and
// nothing else.
func (r *Rig) network(ctx context.Context) (_ measure.Series, closing func(context.Context) error, err error) {
	return r.build(ctx, measure.CauseNetwork, "network namespaces, one behind the other", probes{probe.Network}, func(add adder) error {
		add(r.hostAs("machine"), nil)
		var outer *local
		for level := 1; level <= r.cfg.Depth; level++ {
			l, err := r.startLocal(ctx, fmt.Sprintf("network-%d", level), unix.CLONE_NEWNET, "serve")
			if err != nil {
				return err
			}
			add(place{name: fmt.Sprintf("%d networks", level), depth: level, agent: l.Agent, args: probe.Args{
				Server: r.serve, Resolver: r.host.args.Resolver,
			}}, l)
			if err := r.connect(outer, l, wireOf(byte(level))); err != nil {
				return err
			}
			if _, err := l.Ask(ctx, probe.Request{Do: probe.DoForward}); err != nil {
				return fmt.Errorf("translate addresses: %w", err)
			}
			outer = l
		}
		return nil
	})
}

// hostAs is the machine's place under another name.
func (r *Rig) hostAs(name string) place {
	p := r.host
	p.name = name
	return p
}
