//go:build integration && bench

package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The machine's end of the link to a bare dockerd, and what it has of addresses.
const (
	benchLink    = "rd-bench"
	benchGateway = "10.217.0.1"
	benchAddress = "10.217.0.2"
)

// startOnlineDockerd starts a bare dockerd as CI machines have one: its containers reach the network, through
// a link that is translated on the machine, and images come from a registry on the machine, as ours do. It is stopped at
// the end of the test, with its containers.
func startOnlineDockerd(t *testing.T) *bareDockerd {
	t.Helper()
	mtu := fmt.Sprint(host.container.MTU())
	d, _ := startDockerd(t, append(mirrorArgs(), "--mtu="+mtu)...)
	t.Cleanup(d.stop)
	t.Cleanup(func() { d.removeContainers() })
	t.Cleanup(func() {
		if out, err := exec.Command("nft", "delete", "table", "inet", benchLink).CombinedOutput(); err != nil {
			t.Error(err, string(out))
		}
		if out, err := exec.Command("ip", "link", "delete", benchLink).CombinedOutput(); err != nil {
			t.Error(err, string(out))
		}
	})
	pid := fmt.Sprint(d.cmd.Process.Pid)
	for _, line := range []string{
		"nft add table inet " + benchLink,
		"nft add chain inet " + benchLink + " postrouting { type nat hook postrouting priority srcnat ; }",
		"nft add rule inet " + benchLink + " postrouting ip saddr " + benchAddress + " ip daddr != " + benchGateway + " masquerade",
		"ip link add " + benchLink + " mtu " + mtu + " type veth peer name eth0 mtu " + mtu + " netns " + pid,
		"ip addr add " + benchGateway + "/30 dev " + benchLink,
		"ip link set " + benchLink + " up",
		"nsenter --net --target " + pid + " ip addr add " + benchAddress + "/30 dev eth0",
		"nsenter --net --target " + pid + " ip link set eth0 up",
		"nsenter --net --target " + pid + " ip route add default via " + benchGateway,
	} {
		args := strings.Fields(line)
		timed(t, exec.Command(args[0], args[1:]...))
	}
	// "docker build" is buildx.
	plugins := filepath.Join(d.dir, ".docker/cli-plugins")
	if err := os.MkdirAll(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(engineBinary(t, "docker-buildx"), filepath.Join(plugins, "docker-buildx")); err != nil {
		t.Fatal(err)
	}
	return d
}

// benchRegistry is the machine's registry as a bare dockerd and its containers see it.
func benchRegistry() string { return fmt.Sprintf("%s:%d", benchGateway, host.port) }

// mirrorArgs are the arguments with which a dockerd takes its images from there.
func mirrorArgs() []string {
	return []string{"--registry-mirror=http://" + benchRegistry(), "--insecure-registry=" + benchRegistry()}
}

// removeContainers removes what a test that failed has left running.
func (d *bareDockerd) removeContainers() {
	d.t.Helper()
	out, err := d.docker("ps", "--all", "--quiet").Output()
	if err != nil {
		d.t.Error("list containers: ", err)
	}
	if ids := strings.Fields(string(out)); len(ids) > 0 {
		if out, err := d.docker(append([]string{"rm", "--force", "--volumes"}, ids...)...).CombinedOutput(); err != nil {
			d.t.Error(err, string(out))
		}
	}
}
