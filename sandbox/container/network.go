package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// network connects sandboxes to the outside: one veth pair a sandbox (so there is no bridge on which neighbours could
// meet), addresses from one subnet, and one nftables table for all of them that translates addresses and keeps
// sandboxes away from each other and from the machine.
type network struct {
	name      string // of the nftables table
	subnet    netip.Prefix
	addresses *addresses
	// gateway is the subnet's first address: the machine, as seen from every sandbox.
	gateway netip.Addr
	mtu     int
	ports   []int           // TCP ports of the gateway that sandboxes may use
	machine *netlink.Handle // of the machine's own network namespace, from up to down
}

func newNetwork(name string, subnet netip.Prefix, mtu int, ports []int) *network {
	if mtu == 0 {
		mtu = uplinkMTU()
	}
	addresses := newAddresses(subnet)
	return &network{name: name, subnet: addresses.subnet, addresses: addresses, gateway: addresses.gateway(), mtu: mtu, ports: ports}
}

// up sets the machine's side: forwarding, and the nftables table, replaced as a whole if it is there.
func (n *network) up(ctx context.Context) (err error) {
	if n.machine, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("speak with the kernel's network: %w", err)
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("enable forwarding: %w: run \"sysctl -w net.ipv4.ip_forward=1\"", err)
	}
	var ports []string
	for _, p := range n.ports {
		ports = append(ports, fmt.Sprint(p))
	}
	allowed := ""
	if len(ports) > 0 {
		allowed = fmt.Sprintf("ip saddr %s ip daddr %s tcp dport { %s } accept", n.subnet, n.gateway, strings.Join(ports, ", "))
	}
	return nft(ctx, fmt.Sprintf(`
table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		ip saddr %[2]s ip daddr %[2]s drop comment "neighbours"
		ip saddr %[2]s ip daddr { 127.0.0.0/8, 169.254.0.0/16 } drop comment "loopback, metadata services"
		ip daddr %[2]s ct state { established, related } accept
		ip daddr %[2]s drop comment "nothing from outside opens a connection to a sandbox"
	}
	set reached {
		type ipv4_addr . ipv4_addr . inet_service
	}
	chain input {
		type filter hook input priority filter - 10; policy accept;
		%[3]s
		ip saddr . ip daddr . tcp dport @reached accept
		ip saddr %[2]s ct state { established, related } accept
		ip saddr %[2]s icmp type echo-request accept
		ip saddr %[2]s drop comment "the machine's own services"
	}
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
		ip saddr %[2]s ip daddr != %[2]s masquerade
	}
}`, n.name, n.subnet, allowed))
}

// down removes the table. ip_forward stays: others may rely on it by now.
func (n *network) down(ctx context.Context) error {
	if n.machine != nil {
		n.machine.Close()
	}
	return deleteTable(ctx, n.name)
}

// nft runs one nftables transaction.
func nft(ctx context.Context, ruleset string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(ruleset)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("nft: %w: %s: install nftables, or run \"runnerd doctor\"", err, bytes.TrimSpace(out))
	}
	return nil
}

// attach gives a sandbox's network namespace its loopback and eth0, and returns eth0's address, which is nobody else's
// until detach. The sandbox can send from no other: see onlyOwnAddress.
func (n *network) attach(id string, s *slot) (netip.Addr, error) {
	addr, err := n.addresses.acquire(id)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("attach to network: %w", err)
	}
	if err := n.connect(addr, s); err != nil {
		return netip.Addr{}, errors.Join(fmt.Errorf("attach to network: %w", err), n.detach(addr))
	}
	return addr, nil
}

// detach takes a sandbox off the network, whoever of it is still alive, and gives its address back. It is no error if
// there is none.
func (n *network) detach(addr netip.Addr) error {
	if !addr.IsValid() {
		return nil
	}
	if err := n.removeEnd(machineEnd(addr)); err != nil {
		return fmt.Errorf("detach from network: %w", err) // and nobody else gets the address
	}
	n.addresses.release(addr)
	return nil
}

// connect makes the veth pair. Each end has its address and the other's, so that the kernel adds the routes between
// them by itself. The sandbox's end is set up last: before that nothing is sent over the pair, either way.
func (n *network) connect(addr netip.Addr, s *slot) error {
	pair := netlink.NewVeth(netlink.NewLinkAttrs())
	pair.Name, pair.MTU, pair.Flags = machineEnd(addr), n.mtu, net.FlagUp
	pair.PeerName, pair.PeerNamespace = "eth0", netlink.NsFd(s.netns.Fd())
	err := n.machine.LinkAdd(pair)
	if errors.Is(err, unix.EEXIST) { // a killed daemon's: the kernel takes its time to remove a network namespace
		if err = n.removeEnd(pair.Name); err == nil {
			err = n.machine.LinkAdd(pair)
		}
	}
	if err != nil {
		return fmt.Errorf("make veth pair %s: %w: run \"runnerd doctor\"", pair.Name, err)
	}
	if err := onlyOwnAddress(pair.Name); err != nil {
		return err
	}
	if err := n.machine.AddrAdd(pair, pointToPoint(n.gateway, addr)); err != nil {
		return fmt.Errorf("give %s the address %s: %w", pair.Name, n.gateway, err)
	}
	inside, err := netlink.NewHandleAt(netns.NsHandle(s.netns.Fd()), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("speak with the sandbox's network: %w", err)
	}
	defer inside.Close()
	if err := inside.LinkSetUp(loopback); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	eth0, err := inside.LinkByName(pair.PeerName)
	if err != nil {
		return fmt.Errorf("find eth0: %w", err)
	}
	if err := inside.AddrAdd(eth0, pointToPoint(addr, n.gateway)); err != nil {
		return fmt.Errorf("give eth0 the address %s: %w", addr, err)
	}
	if err := inside.LinkSetUp(eth0); err != nil {
		return fmt.Errorf("set eth0 up: %w", err)
	}
	if err := inside.RouteAdd(&netlink.Route{LinkIndex: eth0.Attrs().Index, Gw: n.gateway.AsSlice()}); err != nil {
		return fmt.Errorf("route by %s: %w", n.gateway, err)
	}
	return nil
}

// loopback is the first interface of every network namespace (LOOPBACK_IFINDEX, include/net/flow.h).
var loopback = &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 1}}

// machineEnd names the machine's end of the veth pair of the sandbox at an address. Only one driver of a machine has
// the address (see Claim), and the hyphen is in no name that Docker or a CNI plugin would make up.
func machineEnd(addr netip.Addr) string { return fmt.Sprintf("veth-%x", addr.As4()) }

// removeEnd removes a veth pair by the machine's end. It is no error if there is none.
func (n *network) removeEnd(name string) error {
	end, err := n.machine.LinkByName(name)
	if err == nil {
		err = n.machine.LinkDel(end)
	}
	var none netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &none) && !errors.Is(err, unix.ENODEV) { // its namespace took it along
		return fmt.Errorf("remove veth pair %s: %w", name, err)
	}
	return nil
}

// pointToPoint is an address with the only other one on the wire.
func pointToPoint(own, other netip.Addr) *netlink.Addr {
	alone := net.CIDRMask(32, 32)
	return &netlink.Addr{IPNet: &net.IPNet{IP: own.AsSlice(), Mask: alone}, Peer: &net.IPNet{IP: other.AsSlice(), Mask: alone}}
}

// onlyOwnAddress makes the machine drop what comes from a sandbox with a source address that is not the sandbox's
// (rp_filter, RFC 3704's strict mode: only that one is routed back over the sandbox's interface), and all IPv6, which
// has no such filter and of which sandboxes have none beyond themselves. What runs on the machine can so tell
// sandboxes by their addresses.
func onlyOwnAddress(end string) error {
	if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+end+"/rp_filter", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("filter forged source addresses: %w", err)
	}
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+end+"/disable_ipv6", []byte("1"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return fmt.Errorf("turn off IPv6 of a sandbox: %w", err)
	}
	return nil
}

// uplinkMTU is the smallest MTU of the machine's interfaces that are up, other than loopback: what gets
// through whichever way a packet leaves.
func uplinkMTU() int {
	mtu := 1500
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		virtual := strings.HasPrefix(i.Name, "veth") || strings.HasPrefix(i.Name, "docker")
		if i.Flags&net.FlagLoopback == 0 && i.Flags&net.FlagUp != 0 && !virtual && i.MTU >= 576 {
			mtu = min(mtu, i.MTU)
		}
	}
	return mtu
}

// resolvers are the machine's DNS servers that a sandbox can reach: not those on loopback.
func resolvers() []string {
	for _, file := range []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"} {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		var servers []string
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 2 || fields[0] != "nameserver" {
				continue
			}
			if addr, err := netip.ParseAddr(fields[1]); err == nil && !addr.IsLoopback() {
				servers = append(servers, addr.String())
			}
		}
		if len(servers) > 0 {
			return servers
		}
	}
	return nil
}
