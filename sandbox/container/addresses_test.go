package container

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// TestAddresses fills a subnet, and gives back and takes in it.
func TestAddresses(t *testing.T) {
	a := newAddresses(netip.MustParsePrefix("10.87.1.7/29"))
	if got := a.gateway().String(); got != "10.87.1.1" {
		t.Errorf("the gateway is %s", got)
	}
	take := func(want string) {
		t.Helper()
		got, err := a.acquire("somebody")
		if err != nil || got.String() != want {
			t.Errorf("got %s, %v; want %s", got, err, want)
		}
	}
	take("10.87.1.2")
	take("10.87.1.3")
	a.release(netip.MustParseAddr("10.87.1.2"))
	for n := 4; n <= 6; n++ { // what was just given back comes last
		take(fmt.Sprintf("10.87.1.%d", n))
	}
	take("10.87.1.2")
	if got, err := a.acquire("one too many"); err == nil || !strings.Contains(err.Error(), "10.87.1.0/29") || !strings.Contains(err.Error(), "network.subnet") {
		t.Errorf("a full subnet gives %s, %v", got, err)
	}
	a.release(netip.MustParseAddr("10.87.1.6"))
	take("10.87.1.6")
}

// TestAddressesOfAll takes every address of a subnet, and each once.
func TestAddressesOfAll(t *testing.T) {
	subnet := netip.MustParsePrefix("10.0.0.0/24")
	a := newAddresses(subnet)
	seen := map[netip.Addr]bool{}
	for range 253 {
		addr, err := a.acquire("somebody")
		if err != nil || seen[addr] || !subnet.Contains(addr) || addr.Next() == netip.MustParseAddr("10.0.1.0") {
			t.Fatalf("number %d: %s, %v", len(seen), addr, err)
		}
		seen[addr] = true
	}
	if addr, err := a.acquire("one too many"); err == nil {
		t.Errorf("got %s", addr)
	}
}
