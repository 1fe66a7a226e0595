//go:build integration

package integration

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// registryPort is where a daemon's registry listens for sandboxes.
func registryPort(t *testing.T, gateway string) string {
	t.Helper()
	a := netip.MustParseAddr(gateway).As4()
	want := strings.ToUpper(hex.EncodeToString([]byte{a[3], a[2], a[1], a[0]}))
	text, err := os.ReadFile("/proc/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if host, port, ok := strings.Cut(f[1], ":"); ok && host == want && f[3] == "0A" {
			n, err := strconv.ParseUint(port, 16, 16)
			if err != nil {
				t.Fatal(err)
			}
			return strconv.FormatUint(n, 10)
		}
	}
	t.Fatalf("nobody listens at %s", gateway)
	return ""
}

// ask is a shell function for jobs: ask METHOD PATH [BODY [HEADER]] prints what the registry answers.
const ask = `ask() {
	exec 3<>/dev/tcp/registry.runnerd.internal/$PORT
	printf '%s %s HTTP/1.1\r\nHost: registry\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s' "$1" "$2" "${#3}" "${4:+$4\r\n}" "$3" | sed 's/\\r\\n/\r\n/' >&3
	cat <&3
}
`

// TestRegistryByScope holds that jobs write their own repositories only, and read their project's.
func TestRegistryByScope(t *testing.T) {
	d := startDaemon(t, "pool: [{sandbox: container, size: 1}]\n")
	port := registryPort(t, "10.214.0.1")
	push := `
blob='{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
digest=sha256:$(printf %s "$blob" | sha256sum | cut -d' ' -f1)
at=$(ask POST /v2/$NAME/blobs/uploads/ | tr -d '\r' | sed -n 's,^Location: http://[^/]*,,p')
ask PUT "$at&digest=$digest" "$blob" | head -1
manifest='{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":'${#blob}',"digest":"'$digest'"},"layers":[]}'
ask PUT /v2/$NAME/manifests/1 "$manifest" "Content-Type: application/vnd.oci.image.manifest.v1+json"`
	pull := `ask GET /v2/$NAME/manifests/1 "" "Accept: application/vnd.oci.image.manifest.v1+json"`
	for i, c := range []struct {
		whose        []string
		name, script string
		want         string
	}{
		{nil, "library/debian", push, "DENIED"},
		{nil, "runnerd/sandbox", push, "DENIED"},
		{[]string{"--project", "a"}, "team/app", push, "201 Created"},
		{[]string{"--project", "a"}, "team/app", pull, "200 OK"},
		{[]string{"--project", "a", "--untrusted"}, "team/app", pull, "200 OK"},
		{[]string{"--project", "a", "--untrusted"}, "team/app", push, "team/app belongs to a"},
		{[]string{"--project", "b"}, "team/app", pull, "DENIED"},
		{[]string{"--project", "b"}, "team/app", push, "team/app belongs to a"},
		{[]string{"--project", "a", "--untrusted"}, "team/branch", push, "201 Created"},
		{[]string{"--project", "a"}, "team/branch", push, "201 Created"},
		{[]string{"--project", "a", "--untrusted"}, "team/branch", push, "DENIED"},
	} {
		args := append([]string{"run", "-e", "PORT=" + port, "-e", "NAME=" + c.name}, c.whose...)
		stdout, stderr, code := d.run(append(args, "--", "bash", "-c", ask+c.script)...)
		if code != 0 || !strings.Contains(stdout, c.want) {
			t.Errorf("%d: %v %s: exit code %d: %s%s, want %q", i, c.whose, c.name, code, stdout, stderr, c.want)
		}
	}
}

// TestForgedLayers pushes an image whose configuration names the layers of another's, which its author knows the
// digests of and has not: a job that starts with it does not see them. In the other's own repository it would.
func TestForgedLayers(t *testing.T) {
	d := startDaemon(t, "")
	at := "127.0.0.1:" + registryPort(t, "10.214.0.1")
	base, err := remote.Image(reference(t, at+"/library/"+debian))
	if err != nil {
		t.Fatal(err)
	}
	add := func(img v1.Image, file string) v1.Image {
		t.Helper()
		layer, err := crane.Layer(map[string][]byte{file: []byte("read me\n")})
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			t.Fatal(err)
		}
		return img
	}
	secret := add(base, "secret")
	config, err := secret.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	forged, err := mutate.ConfigFile(add(base, "mine"), config)
	if err != nil {
		t.Fatal(err)
	}
	run := func(project, name string, img v1.Image) (string, int) {
		t.Helper()
		as := scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Trusted}
		if err := remote.Write(reference(t, at+"/"+name), img, remote.WithTransport(asking{as})); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := d.run("run", "--project", project, "--image", "registry.runnerd.internal/"+name, "--", "cat", "/secret")
		return stdout + stderr, code
	}
	if _, stderr, code := d.run("run", "--image", debian, "--", "true"); code != 0 { // unpacks the base
		t.Fatal(code, stderr)
	}
	for _, c := range []struct {
		project, name string
		image         v1.Image
		sees          bool
	}{
		{"a", "a/app:1", secret, true},
		{"a", "a/app:forged", forged, true},
		{"b", "b/app:1", forged, false},
	} {
		if out, code := run(c.project, c.name, c.image); (code == 0) != c.sees || strings.Contains(out, "read me") != c.sees {
			t.Errorf("%s: exit code %d: %s", c.name, code, out)
		}
	}
	// The base, which all may read, is unpacked once.
	bases, err := filepath.Glob(filepath.Join(d.state, "containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/etc/debian_version"))
	if err != nil {
		t.Fatal(err)
	}
	links := uint64(0)
	for _, base := range bases {
		info, err := os.Stat(base)
		if err != nil {
			t.Fatal(err)
		}
		links = max(links, uint64(info.Sys().(*syscall.Stat_t).Nlink))
	}
	if links < 2 {
		t.Errorf("%d files, none with several links", len(bases))
	}
}

// asking is the operator, who asks the registry as a scope would.
type asking struct{ scope scope.Scope }

func (a asking) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set(registry.As, registry.AsScope(a.scope))
	return http.DefaultTransport.RoundTrip(r)
}

func reference(t *testing.T, ref string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestForgedAddress sends a packet with a neighbour's source address from a sandbox, as root of its network
// namespace: the machine does not take it. Without the filter it does.
func TestForgedAddress(t *testing.T) {
	start := func(id string) sandbox.Sandbox {
		sb, err := host.container.StartEngine(t.Context(), sandbox.Spec{ID: id, Image: engine})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := sb.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
		return sb
	}
	run := func(sb sandbox.Sandbox, args ...string) string {
		t.Helper()
		var out, errs strings.Builder
		exit, err := sb.Exec(t.Context(), sandbox.Process{Args: args, Stdout: &out, Stderr: &errs})
		if err != nil || !exit.Success() {
			t.Fatal(args, exit, err, errs.String())
		}
		return strings.TrimSpace(out.String())
	}
	attacker, victim := start("forger"), start("forged")
	address := func(sb sandbox.Sandbox) string { return strings.Fields(run(sb, "hostname", "-i"))[0] }
	for _, sb := range []sandbox.Sandbox{attacker, victim} {
		if id, ok := host.container.SandboxAt(netip.MustParseAddr(address(sb))); !ok || id != sb.ID() {
			t.Errorf("at the address of %s is %q", sb.ID(), id)
		}
	}
	// An ICMP echo request with a header of its own, whose checksum is right.
	const send = `use Socket; socket(S, PF_INET, SOCK_RAW, 255) or die $!; setsockopt(S, 0, 3, pack("i", 1)) or die $!;
my ($from, $to) = map { inet_aton($_) } @ARGV;
my $packet = pack("CCnnnCCna4a4", 0x45, 0, 28, 0, 0, 64, 1, 0, $from, $to) . pack("nnnn", 0x0800, 0xf7ff, 0, 0);
send(S, $packet, 0, sockaddr_in(0, $to)) or die $! for 1..5;`
	received := func(from string) int {
		t.Helper()
		before := echos(t)
		run(attacker, "perl", "-e", send, from, host.container.Gateway().String())
		return echos(t) - before
	}
	link := interfaceTo(t, address(attacker))
	filter := "/proc/sys/net/ipv4/conf/" + link + "/rp_filter"
	forged := []string{address(victim), "192.0.2.7", host.container.Gateway().String()}
	if n := received(address(attacker)); n != 5 {
		t.Fatalf("%d of 5 packets from its own address were received", n)
	}
	for _, from := range forged {
		if n := received(from); n != 0 {
			t.Errorf("%d packets from %s were received", n, from)
		}
	}
	if text, err := os.ReadFile("/proc/net/if_inet6"); err == nil && strings.Contains(string(text), link) {
		t.Errorf("%s has an IPv6 address", link)
	}
	if err := os.WriteFile(filter, []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := received(address(victim)); n != 5 {
		t.Errorf("without the filter %d of 5 forged packets were received: the test proves nothing", n)
	}
}

// echos is how many ICMP echo requests the machine has received (/proc/net/snmp).
func echos(t *testing.T) int {
	t.Helper()
	text, err := os.ReadFile("/proc/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if fields[0] != "Icmp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "InEchos" {
				n, _ := strconv.Atoi(fields[i])
				return n
			}
		}
	}
	t.Fatal("no InEchos")
	return 0
}

// interfaceTo is the machine's end of the veth pair of the sandbox at an address.
func interfaceTo(t *testing.T, address string) string {
	t.Helper()
	a := netip.MustParseAddr(address).As4()
	want := fmt.Sprintf("%02X%02X%02X%02X", a[3], a[2], a[1], a[0])
	text, err := os.ReadFile("/proc/net/route")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == want {
			return f[0]
		}
	}
	t.Fatalf("no route to %s", address)
	return ""
}
