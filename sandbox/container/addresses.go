package container

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// addresses hands out those of an IPv4 subnet but for its first two, which are the network and the gateway, and its
// last, which is all of them. None is written down: whoever had one is gone with the daemon, at the latest when the
// next one has swept.
type addresses struct {
	subnet  netip.Prefix // masked
	numbers numbers
}

// firstAddress is the number in the subnet of the first address that is handed out.
const firstAddress = 2

func newAddresses(subnet netip.Prefix) *addresses {
	subnet = subnet.Masked()
	return &addresses{subnet: subnet, numbers: numbers{count: 1<<(32-subnet.Bits()) - firstAddress - 1}}
}

// gateway is the subnet's first usable address, which nobody is given.
func (a *addresses) gateway() netip.Addr { return a.subnet.Addr().Next() }

// acquire returns an address that nobody has, and had of late if there is another.
func (a *addresses) acquire(owner string) (netip.Addr, error) {
	number, ok := a.numbers.acquire(owner)
	if !ok {
		return netip.Addr{}, fmt.Errorf("all %d addresses for sandboxes in %s are in use: set network.subnet to a larger one", a.numbers.count, a.subnet)
	}
	var addr [4]byte
	binary.BigEndian.PutUint32(addr[:], a.base()+uint32(number))
	return netip.AddrFrom4(addr), nil
}

func (a *addresses) release(addr netip.Addr) {
	bytes := addr.As4()
	a.numbers.release(int(binary.BigEndian.Uint32(bytes[:]) - a.base()))
}

func (a *addresses) base() uint32 {
	bytes := a.subnet.Addr().As4()
	return binary.BigEndian.Uint32(bytes[:]) + firstAddress
}
