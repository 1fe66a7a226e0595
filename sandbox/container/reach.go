package container

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Reach lets the sandbox reach a service of the machine. See sandbox.Reacher.
func (sb *Sandbox) Reach(ctx context.Context, service netip.AddrPort) error {
	service = netip.AddrPortFrom(service.Addr().Unmap(), service.Port())
	if err := checkService(service); err != nil {
		return fmt.Errorf("let the sandbox reach %s: %w", service, err)
	}
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.closing != nil {
		return fmt.Errorf("sandbox %s is closed", sb.spec.ID)
	}
	if slices.Contains(sb.reached, service) {
		return nil
	}
	// Noted first: what is not known to have failed is taken back when the sandbox closes.
	sb.reached = append(sb.reached, service)
	return nft(ctx, sb.d.network.reach("add", sb.addr, service))
}

// checkService refuses what is no service of the machine's that a sandbox could reach. Others need no leave.
func checkService(service netip.AddrPort) error {
	addr := service.Addr()
	if !addr.Is4() || addr.IsLoopback() {
		return fmt.Errorf("no sandbox can reach %s: only IPv4, and not the loopback", addr)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range own {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
			return nil
		}
	}
	return fmt.Errorf("%s is no address of this machine", addr)
}

// unreach takes back all that Reach allowed, before another sandbox can have the address.
func (sb *Sandbox) unreach(ctx context.Context) error {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if len(sb.reached) == 0 {
		return nil
	}
	var rules strings.Builder
	for _, service := range sb.reached {
		// Added once more, which changes nothing, so that deleting one that never came to be is no error.
		rules.WriteString(sb.d.network.reach("add", sb.addr, service) + sb.d.network.reach("delete", sb.addr, service))
	}
	if err := nft(ctx, rules.String()); err != nil {
		return fmt.Errorf("take back what the sandbox may reach: %w", err)
	}
	sb.reached = nil
	return nil
}

// reach is a line of a transaction that adds or deletes what a sandbox may reach of the machine.
func (n *network) reach(verb string, from netip.Addr, service netip.AddrPort) string {
	return fmt.Sprintf("%s element inet %s reached { %s . %s . %d }\n", verb, n.name, from, service.Addr(), service.Port())
}
