package container

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func claimOf(name, subnet string, first uint32) Claim {
	return Claim{Name: name, StateDir: "/state/" + name, PID: 42, Subnet: netip.MustParsePrefix(subnet), FirstUID: first, UIDRanges: 10}
}

// TestClaim holds that addresses and ids are one driver's, until it ends.
func TestClaim(t *testing.T) {
	dir := t.TempDir()
	const a, b = 1 << 20, 1<<20 + 10*rangeSize
	first, err := claimOf("nosuch-a", "198.18.0.0/16", a).take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		claim Claim
		want  []string
	}{
		"same name":     {claimOf("nosuch-a", "198.19.0.0/16", b), []string{"nosuch-a is running"}},
		"same subnet":   {claimOf("nosuch-b", "198.18.0.0/16", b), []string{"pid 42, state directory /state/nosuch-a", "set network.subnet"}},
		"part of it":    {claimOf("nosuch-b", "198.18.7.0/24", b), []string{"subnet 198.18.7.0/24", "has 198.18.0.0/16"}},
		"same ids":      {claimOf("nosuch-b", "198.19.0.0/16", a), []string{"uids 1048576-1703935", "set uid_range.first"}},
		"the last ids":  {claimOf("nosuch-b", "198.19.0.0/16", b-rangeSize), []string{"uid_range.first"}},
		"both":          {claimOf("nosuch-b", "198.18.0.0/16", a), []string{"set network.subnet", "set uid_range.first"}},
		"the first ids": {claimOf("nosuch-b", "198.19.0.0/16", a-9*rangeSize), []string{"uid_range.first"}},
	} {
		t.Run(name, func(t *testing.T) {
			h, err := c.claim.take(t.Context(), dir)
			if err == nil {
				_ = h.release(false)
				t.Fatal("taken")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q is not in %v", want, err)
				}
			}
		})
	}
	beside, err := claimOf("nosuch-b", "198.19.0.0/16", b).take(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	// One that was killed lets go of its lock, and its file stays.
	if err := first.release(true); err != nil {
		t.Fatal(err)
	}
	if again, err := claimOf("nosuch-a", "198.18.0.0/16", a).take(t.Context(), dir); err != nil {
		t.Error("its own restart: ", err)
	} else if err := again.release(false); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := beside.release(false); err != nil {
			t.Error(err)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.json")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestClaimOfTheKilled(t *testing.T) {
	c := claimOf("nosuch-b", "198.18.0.0/16", 1<<20)
	killed := claimed{Claim: claimOf("nosuch-a", "198.18.0.0/16", 1<<20)}
	if found := c.against([]claimed{killed}); len(found) > 0 {
		t.Errorf("nothing is left of it: %v", found)
	}
	killed.left = 3
	if found := c.against([]claimed{killed}); len(found) != 2 || !strings.Contains(found[0].Error(), "left 3 processes") || !strings.Contains(found[1].Error(), "start that one again") {
		t.Error(found)
	}
}

func TestReadClaimsRefusesGarbage(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "runnerd.json")
	if err := os.WriteFile(file, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readClaims(dir); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Error(err)
	}
}

func TestParseRoutes(t *testing.T) {
	const text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" +
		"eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n" +
		"veth1\t0300D60A\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"
	want := []route{{netip.MustParsePrefix("0.0.0.0/0"), "eth0"}, {netip.MustParsePrefix("192.0.2.0/24"), "eth0"}, {netip.MustParsePrefix("10.214.0.3/32"), "veth1"}}
	if got := parseRoutes(text); !slices.Equal(got, want) {
		t.Error(got)
	}
}
