package main

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/engine"
)

func checkForwarding(context.Context, *config.Config) finding {
	n, err := readNumber("/proc/sys/net/ipv4/ip_forward")
	if err != nil {
		return bad(fail, "", "%v", err)
	}
	if n == 0 {
		return bad(warn, "sysctl -w net.ipv4.ip_forward=1", "net.ipv4.ip_forward is 0; runnerd turns it on when it starts")
	}
	return good("net.ipv4.ip_forward is on")
}

// command runs a tool of the machine's and returns what it said, on one line.
func command(ctx context.Context, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

func checkVeth(ctx context.Context, _ *config.Config) finding {
	if os.Geteuid() != 0 {
		return bad(warn, "sudo runnerd doctor", "not tried: not root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return bad(warn, "apt-get install iproute2", "not tried: there is no ip")
	}
	name := fmt.Sprintf("rdd%d", os.Getpid()%100000)
	if err := command(ctx, "", "ip", "link", "add", name+"a", "type", "veth", "peer", "name", name+"b"); err != nil {
		return bad(fail, "modprobe veth", "a veth pair cannot be made: %v", err)
	}
	if err := command(ctx, "", "ip", "link", "delete", name+"a"); err != nil {
		return bad(fail, "ip link delete "+name+"a", "the test's veth pair was not removed: %v", err)
	}
	return good("a pair can be made")
}

func checkNFTables(ctx context.Context, _ *config.Config) finding {
	if _, err := exec.LookPath("nft"); err != nil {
		return bad(fail, "apt-get install nftables", "nft is not found")
	}
	if os.Geteuid() != 0 {
		return bad(warn, "sudo runnerd doctor", "not tried: not root")
	}
	// What runnerd needs: source NAT, connection tracking and a filter, in one transaction that leaves nothing.
	table := fmt.Sprintf("runnerd_doctor_%d", os.Getpid())
	rules := fmt.Sprintf(`table ip %[1]s {
	chain post { type nat hook postrouting priority 100; ip saddr 203.0.113.0/24 masquerade; }
	chain forward { type filter hook forward priority 0; ip saddr 203.0.113.0/24 ct state established accept; }
}
delete table ip %[1]s
`, table)
	if err := command(ctx, rules, "nft", "-f", "-"); err != nil {
		return bad(fail, "modprobe -a nf_tables nft_chain_nat nf_nat nft_ct nft_masq", "a table with NAT cannot be made: %v", err)
	}
	return good("a table with NAT and connection tracking can be made")
}

// modules are those that sandboxes need and cannot load. The machine's own modprobe loads some of them when
// runnerd itself needs them, if it is where the kernel looks for it. dockerd takes the warning that iptables
// gives without xt_tcpudp for a failure, and goes without its name server.
var modules = []string{
	"overlay", "veth", "bridge", "br_netfilter", "nf_tables", "nf_nat", "nft_chain_nat", "nft_compat", "nft_ct", "nft_masq",
	"xt_addrtype", "xt_conntrack", "xt_MASQUERADE", "xt_nat", "xt_tcpudp",
}

func checkModules(context.Context, *config.Config) finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad(fail, "", "%v", err)
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]))
	builtin, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return good("this kernel has no modules")
	}
	loaded, err := os.ReadFile("/proc/modules")
	if err != nil {
		return good("this kernel has no modules")
	}
	missing := missingModules(string(builtin), string(loaded))
	if len(missing) > 0 {
		list := strings.Join(missing, " ")
		return bad(fail, "modprobe -a "+list+"\nprintf '%s\\n' "+list+" > /etc/modules-load.d/runnerd.conf", "not loaded: %s", strings.Join(missing, ", "))
	}
	return good("all %d are loaded", len(modules))
}

// missingModules are those that are neither built in (modules.builtin, paths) nor loaded (proc_modules(5)).
func missingModules(builtin, loaded string) []string {
	have := map[string]bool{}
	for line := range strings.Lines(builtin) {
		name, _, _ := strings.Cut(filepath.Base(strings.TrimSpace(line)), ".ko")
		have[strings.ReplaceAll(name, "-", "_")] = true
	}
	for line := range strings.Lines(loaded) {
		if f := strings.Fields(line); len(f) > 0 {
			have[f[0]] = true
		}
	}
	var missing []string
	for _, m := range modules {
		if !have[m] {
			missing = append(missing, m)
		}
	}
	return missing
}

func checkDNS(_ context.Context, c *config.Config) finding {
	if len(c.Network.DNS) > 0 {
		return good("network.dns: %v", c.Network.DNS)
	}
	text, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return bad(fail, "set network.dns in the configuration", "%v", err)
	}
	reachable, all := nameServers(string(text))
	if len(reachable) > 0 {
		return good("%s", strings.Join(reachable, ", "))
	}
	if upstream, err := os.ReadFile("/run/systemd/resolve/resolv.conf"); err == nil {
		if behind, _ := nameServers(string(upstream)); len(behind) > 0 {
			return good("%s, behind systemd-resolved", strings.Join(behind, ", "))
		}
	}
	return bad(fail, "set network.dns in the configuration, such as [9.9.9.9]", "sandboxes cannot reach %s: that is this machine's loopback", strings.Join(all, ", "))
}

// nameServers returns those of resolv.conf(5) that sandboxes can reach, and all.
func nameServers(text string) (reachable, all []string) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		all = append(all, f[1])
		if addr, err := netip.ParseAddr(f[1]); err == nil && !addr.IsLoopback() {
			reachable = append(reachable, f[1])
		}
	}
	return reachable, all
}

func checkSubnet(ctx context.Context, c *config.Config) finding {
	return checkClaim(ctx, c, "subnet", c.Network.Subnet.String())
}

func checkUIDs(ctx context.Context, c *config.Config) finding {
	return checkClaim(ctx, c, "uids", fmt.Sprintf("%d ranges of 65536 from %d", c.UIDRange.Count, c.UIDRange.First))
}

// checkClaim looks for others that have something of what is claimed at the daemon's start.
func checkClaim(ctx context.Context, c *config.Config, kind, what string) finding {
	conflicts, err := container.Conflicts(ctx, container.Claim{
		Name: instanceName(c), Subnet: c.Network.Subnet, FirstUID: c.UIDRange.First, UIDRanges: c.UIDRange.Count,
	})
	if err != nil {
		return bad(warn, "run runnerd doctor again", "%v", err)
	}
	var found, mend []string
	for _, f := range conflicts {
		if strings.HasPrefix(f.What, kind) {
			found = append(found, f.What)
			mend = append(mend, f.Mend)
		}
	}
	if len(found) > 0 {
		return bad(fail, strings.Join(slices.Compact(mend), "\n"), "%s", strings.Join(found, "\n"))
	}
	return good("nobody else has any of %s", what)
}

// What a machine should have free: enough for images, a build cache and some jobs.
const (
	diskWarn   = 20 << 30
	diskFail   = 2 << 30
	inodesWarn = 500_000
)

func checkDisk(_ context.Context, c *config.Config) finding {
	dir := existing(c.StateDir)
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return bad(fail, "give another --state-dir", "%v", err)
	}
	free := int64(s.Bavail) * s.Bsize
	text := fmt.Sprintf("%.1f GiB and %d inodes are free on %s", float64(free)/(1<<30), s.Ffree, dir)
	if s.Files == 0 { // btrfs has no such number
		text = fmt.Sprintf("%.1f GiB are free on %s", float64(free)/(1<<30), dir)
	}
	switch {
	case free < diskFail:
		return bad(fail, "make room, or give a --state-dir on a larger disk", "%s", text)
	case free < diskWarn || s.Files > 0 && s.Ffree < inodesWarn:
		return bad(warn, "make room, or give a --state-dir on a larger disk", "%s", text)
	}
	return good("%s", text)
}

// checkBudget looks whether the disk's limits leave room for the work: marks that are above what the file system has
// never prune, and a floor that it is below stops all jobs.
func checkBudget(_ context.Context, c *config.Config) finding {
	f, err := budget.Look(existing(c.StateDir))
	if err != nil {
		return bad(fail, "give another --state-dir", "%v", err)
	}
	limits := c.Disk.Limits()
	floor := limits.Floor.Of(f.Size)
	text := fmt.Sprintf("budget %s, pruned above %s to %s; %s are kept free, %s are", c.Disk.Budget, c.Disk.High, c.Disk.Low, budget.Text(floor), budget.Text(f.Free))
	if limits.Budget == (budget.Share{}) {
		text = strings.Replace(text, "budget 0", "all that is free", 1)
	}
	switch {
	case f.Free < floor:
		return bad(fail, "make room there, or lower disk.floor: jobs wait until so much is free", "%s", text)
	case limits.Budget.Bytes > f.Size-floor:
		return bad(warn, "lower disk.budget, or set it to 0", "disk.budget (%s) is more than the %s that the file system has above disk.floor", c.Disk.Budget, budget.Text(f.Size-floor))
	}
	return good("%s", text)
}

func checkEngineSet(ctx context.Context, c *config.Config) finding {
	set, err := engine.Load(c.EnginesDir)
	if err != nil {
		return bad(fail, "make engines", "%v", err)
	}
	if err := set.Verify(ctx); err != nil {
		return bad(fail, "make engines", "%v", err)
	}
	var unsafe []string
	for _, f := range set.Advisories() {
		unsafe = append(unsafe, fmt.Sprintf("%s %s has %s", f.Engine.Name, f.Engine.Version, f.ID))
	}
	if len(unsafe) > 0 {
		return bad(fail, "make engines", "%s", strings.Join(unsafe, "; "))
	}
	return good("%d in %s, as they were built, with no known escape as of %s", len(set.Engines()), set.Dir(), engine.AdvisoriesDate)
}

func checkImages(_ context.Context, c *config.Config) finding {
	if len(c.Images.Preload) == 0 {
		return bad(warn, "make images, or see that a registry can be reached", "none to preload: images must come from a registry")
	}
	for _, dir := range c.Images.Preload {
		if _, err := os.Stat(filepath.Join(dir, "index.json")); err != nil {
			return bad(fail, "make images", "%s is no OCI layout: %v", dir, err)
		}
	}
	return good("%s", strings.Join(c.Images.Preload, ", "))
}
