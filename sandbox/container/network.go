package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/containernetworking/cni/libcni"
	cnitypes "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"
)

// network connects sandboxes to the outside: one veth pair a sandbox (CNI's ptp plugin, so there is no
// bridge on which neighbours could meet), addresses from one subnet, and one nftables table for all of
// them that translates addresses and keeps sandboxes away from each other and from the machine.
type network struct {
	name   string // of the nftables table
	subnet netip.Prefix
	// gateway is the subnet's first address: the machine, as seen from every sandbox.
	gateway netip.Addr
	mtu     int
	ports   []int // TCP ports of the gateway that sandboxes may use
	cni     *libcni.CNIConfig
	list    *libcni.NetworkConfigList
}

func newNetwork(name string, subnet netip.Prefix, mtu int, ports []int, pluginDir, stateDir string) (*network, error) {
	if mtu == 0 {
		mtu = uplinkMTU()
	}
	n := &network{name: name, subnet: subnet.Masked(), gateway: subnet.Masked().Addr().Next(), mtu: mtu, ports: ports}
	conf, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0",
		"name":       name,
		"plugins": []map[string]any{{
			"type":   "ptp",
			"mtu":    mtu,
			"ipMasq": false, // one rule for the subnet does it, instead of a chain a sandbox
			"ipam": map[string]any{
				"type":    "host-local",
				"dataDir": filepath.Join(stateDir, "addresses"),
				"ranges":  [][]map[string]string{{{"subnet": n.subnet.String()}}},
				"routes":  []map[string]string{{"dst": "0.0.0.0/0"}},
			},
		}},
	})
	if err != nil {
		return nil, err
	}
	if n.list, err = libcni.NetworkConfFromBytes(conf); err != nil {
		return nil, fmt.Errorf("configure network: %w", err)
	}
	// libcni itself and not go-cni, which cannot be told where to keep its cache.
	n.cni = libcni.NewCNIConfigWithCacheDir([]string{pluginDir}, filepath.Join(stateDir, "cni"), nil)
	return n, nil
}

// up sets the machine's side: forwarding, and the nftables table, replaced as a whole if it is there.
func (n *network) up(ctx context.Context) error {
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

// attach gives a sandbox's network namespace its loopback and eth0, and returns eth0's address. The sandbox can send
// from no other: see onlyOwnAddress.
func (n *network) attach(ctx context.Context, id string, s *slot) (netip.Addr, error) {
	if err := loopbackUp(s.netns); err != nil {
		return netip.Addr{}, err
	}
	result, err := n.cni.AddNetworkList(ctx, n.list, runtimeConf(id, s))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("attach to network: %w", err)
	}
	err = errors.New("the plugin gave no address")
	if r, err2 := cnitypes.GetResult(result); err2 == nil && len(r.IPs) > 0 {
		if addr, ok := netip.AddrFromSlice(r.IPs[0].Address.IP.To4()); ok {
			if err = onlyOwnAddress(r.Interfaces); err == nil {
				return addr, nil
			}
		}
	}
	return netip.Addr{}, errors.Join(fmt.Errorf("attach to network: %w", err), n.detach(ctx, id, s))
}

// onlyOwnAddress makes the machine drop what comes from a sandbox with a source address that is not the sandbox's
// (rp_filter, RFC 3704's strict mode: only that one is routed back over the sandbox's interface), and all IPv6, which
// has no such filter and of which sandboxes have none beyond themselves. What runs on the machine can so tell
// sandboxes by their addresses.
func onlyOwnAddress(interfaces []*cnitypes.Interface) error {
	for _, i := range interfaces {
		if i.Sandbox != "" { // the sandbox's end
			continue
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+i.Name+"/rp_filter", []byte("1"), 0o644); err != nil {
			return fmt.Errorf("filter forged source addresses: %w", err)
		}
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+i.Name+"/disable_ipv6", []byte("1"), 0o644)
		if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
			return fmt.Errorf("turn off IPv6 of a sandbox: %w", err)
		}
		return nil
	}
	return errors.New("the plugin made no interface on the machine")
}

// detach gives the address back; the veth goes with its namespace. It is no error if there was none.
func (n *network) detach(ctx context.Context, id string, s *slot) error {
	if err := n.cni.DelNetworkList(ctx, n.list, runtimeConf(id, s)); err != nil {
		return fmt.Errorf("detach from network: %w", err)
	}
	return nil
}

func runtimeConf(id string, s *slot) *libcni.RuntimeConf {
	conf := &libcni.RuntimeConf{ContainerID: id, IfName: "eth0"}
	if s != nil {
		conf.NetNS = s.netnsPath()
	}
	return conf
}

// loopbackUp sets lo up in a network namespace, from a thread that enters it and comes back. A thread that could not
// would have to end there, and the main thread of a Go program never ends: it would hold the namespace.
func loopbackUp(netns *os.File) error {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := raiseLoopback(netns)
		if unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// raiseLoopback enters a network namespace and sets lo up in it. It leaves the thread there.
func raiseLoopback(netns *os.File) error {
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(socket)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
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
