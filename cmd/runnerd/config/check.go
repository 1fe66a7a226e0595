package config

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/runnerd/runnerd/sandbox"
)

// IDsEach is how many ids of the machine a sandbox has.
const IDsEach = 65536

// The least that makes sense.
const (
	minMemory = 4 << 20
	minDisk   = 16 << 20
	minLog    = 64 << 10
	minBudget = 64 << 20
	// maxSocketPath is the length of sun_path, unix(7).
	maxSocketPath = 107
)

type complaint struct{ path, message string }

type checker struct{ out []complaint }

func (k *checker) bad(path, format string, args ...any) {
	k.out = append(k.out, complaint{path, fmt.Sprintf(format, args...)})
}

func (k *checker) that(ok bool, path, format string, args ...any) {
	if !ok {
		k.bad(path, format, args...)
	}
}

// check says what is wrong with values that could be read.
func (c *Config) check() []complaint {
	var k checker
	k.that(c.Version == 1, "version", "%d is not known: use 1", c.Version)
	k.absolute("state_dir", c.StateDir, true)
	k.absolute("run_dir", c.RunDir, true)
	k.absolute("socket.path", c.Socket.Path, false)
	k.that(len(c.Socket.Path) <= maxSocketPath, "socket.path", "is longer than %d bytes, which a socket's path may have", maxSocketPath)
	k.absolute("engines_dir", c.EnginesDir, false)
	for i, dir := range c.Images.Preload {
		k.absolute(fmt.Sprintf("images.preload[%d]", i), dir, true)
	}
	k.absolute("containerd.address", strings.TrimPrefix(c.Containerd.Address, "unix://"), false)
	k.absolute("registry.root", c.Registry.Root, false)
	k.network(c.Network)
	k.uids(c.UIDRange)
	k.limits(c.Limits, c.Capacity)
	k.that(c.Timeout.Default > 0, "timeout.default", "must be more than 0")
	k.that(c.Timeout.Max >= c.Timeout.Default, "timeout.max", "%s is less than timeout.default (%s)", c.Timeout.Max, c.Timeout.Default)
	k.disk(c.Disk)
	k.that(c.Logs.MaxBytes >= minLog, "logs.max_bytes", "%s is too little: at least %s", c.Logs.MaxBytes, Size(minLog))
	k.that(c.Logs.Keep > 0, "logs.keep", "must be more than 0")
	k.that(c.Logs.KeepJobs > 0, "logs.keep_jobs", "must be more than 0")
	k.that(c.Outputs.MaxBytes > 0, "outputs.max_bytes", "must be more than 0")
	k.that(c.Outputs.Keep > 0, "outputs.keep", "must be more than 0")
	k.cache(c.Cache)
	k.policy(c.Policy)
	k.absolute("plugins.admission", c.Plugins.Admission, false)
	k.absolute("plugins.log_filter", c.Plugins.LogFilter, false)
	k.pool(c)
	k.that(c.Builder.Disk >= 1<<30, "builder.disk", "%s is too little for a build cache: at least 1GiB", c.Builder.Disk)
	k.that(c.Builder.Memory == 0 || c.Builder.Memory >= 64<<20, "builder.memory", "%s is too little: at least 64MiB", c.Builder.Memory)
	k.that(c.Builder.Idle > 0, "builder.idle", "must be more than 0")
	k.image("builder.image", c.Builder.Image, false)
	for i, f := range c.Builder.Frontends {
		k.image(fmt.Sprintf("builder.frontends[%d]", i), f, true)
	}
	for i, r := range c.Builder.Insecure {
		if host, port, err := net.SplitHostPort(r); err != nil || host == "" || port == "" || strings.ContainsAny(r, "/\"\n") {
			k.bad(fmt.Sprintf("builder.insecure_registries[%d]", i), "%q is not host:port", r)
		}
	}
	k.image("builder.share.ref", c.Builder.Share.Ref, false)
	if ref, err := reference.ParseNormalizedNamed(c.Builder.Share.Ref); err == nil {
		k.that(reference.IsNameOnly(ref), "builder.share.ref", "%q has a tag: name a repository alone", c.Builder.Share.Ref)
	}
	k.absolute("builder.share.password_file", c.Builder.Share.PasswordFile, false)
	k.image("sandbox_image", c.SandboxImage, true)
	k.image("job_image", c.JobImage, true)
	if _, port, err := net.SplitHostPort(c.Registry.Address); err != nil || port == "" {
		k.bad("registry.address", "%q is not an address: write it like :5000 or 10.0.0.1:5000", c.Registry.Address)
	}
	if address := c.Metrics.Address; address != "" {
		_, port, err := net.SplitHostPort(address)
		k.that(err == nil && port != "", "metrics.address", "%q is not an address: write it like 127.0.0.1:9252", address)
	}
	k.terminal(c.Terminal)
	for i, pattern := range c.Registry.Shared {
		_, err := path.Match(pattern, "")
		k.that(err == nil && pattern != "", fmt.Sprintf("registry.shared[%d]", i), "%q is not a pattern", pattern)
	}
	k.mirror(c.Registry.Mirror)
	k.oneOf("pull_policy", c.PullPolicy, string(sandbox.IfNotPresent), string(sandbox.Always), string(sandbox.Never))
	k.oneOf("log.format", c.Log.Format, "text", "json")
	k.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	return k.out
}

func (k *checker) terminal(t Terminal) {
	k.that(t.Timeout > 0, "terminal.timeout", "must be more than 0")
	host, port, err := net.SplitHostPort(t.Listen)
	if t.Listen == "" {
		k.that(t.Advertise == "", "terminal.advertise", "nobody listens there: set terminal.listen, too")
		return
	}
	k.that(err == nil && port != "", "terminal.listen", "%q is not an address: write it like 0.0.0.0:8093", t.Listen)
	if t.Advertise == "" {
		ip, _ := netip.ParseAddr(host)
		k.that(err != nil || host != "" && !ip.IsUnspecified(), "terminal.advertise", "is needed: GitLab cannot connect to %s", t.Listen)
		return
	}
	host, port, err = net.SplitHostPort(t.Advertise)
	k.that(err == nil && host != "" && port != "", "terminal.advertise", "%q is not an address: write it like runner.example.com:8093", t.Advertise)
}

func (k *checker) disk(d Disk) {
	k.that(d.High != Share{}, "disk.high", "must be more than 0")
	comparable := d.High.Percent > 0 && d.Low.Percent > 0 || d.High.Percent == 0 && d.Low.Percent == 0
	less := d.Low.Percent < d.High.Percent || d.Low.Bytes < d.High.Bytes
	k.that(!comparable || less, "disk.low", "%s is not less than disk.high (%s)", d.Low, d.High)
	k.that(d.Budget.Percent > 0 || d.Budget.Bytes == 0 || d.Budget.Bytes >= minBudget, "disk.budget", "%s is too little: at least %s, or 0 for all there is", d.Budget, Size(minBudget))
	k.that(d.High.Percent > 0 || d.Budget.Bytes == 0 || d.High.Bytes <= d.Budget.Bytes, "disk.high", "%s is more than disk.budget (%s)", d.High, d.Budget)
	k.that(d.Floor.Percent < 100, "disk.floor", "%s would leave nothing", d.Floor)
	k.that(d.Wait > 0, "disk.wait", "must be more than 0")
}

func (k *checker) absolute(path, value string, needed bool) {
	switch {
	case value == "" && needed:
		k.bad(path, "must not be empty")
	case value != "" && !filepath.IsAbs(value):
		k.bad(path, "%q must be an absolute path", value)
	}
}

func (k *checker) image(path, value string, needed bool) {
	if value == "" && !needed {
		return
	}
	if _, err := reference.ParseNormalizedNamed(value); err != nil {
		k.bad(path, "%q is not an image: %v", value, err)
	}
}

func (k *checker) mirror(m Mirror) {
	k.that(m.Refresh > 0, "registry.mirror.refresh", "must be more than 0")
	seen := map[string]bool{}
	for i, u := range m.Upstreams {
		at := fmt.Sprintf("registry.mirror.upstreams[%d]", i)
		named, err := reference.ParseNormalizedNamed(u.Host + "/x/y")
		k.that(err == nil && reference.Domain(named) == u.Host, at+".host", "%q is not the host of a registry, like ghcr.io", u.Host)
		k.that(!seen[u.Host], at+".host", "%s is there twice", u.Host)
		seen[u.Host] = true
		if parsed, err := url.Parse(u.URL); u.URL != "" && (err != nil || parsed.Host == "" || parsed.Scheme != "https" && parsed.Scheme != "http") {
			k.bad(at+".url", "%q is not a URL like https://registry-1.docker.io", u.URL)
		}
		k.that((u.Username == "") == (u.PasswordFile == ""), at, "username and password_file need each other")
		k.absolute(at+".password_file", u.PasswordFile, false)
	}
}

func (k *checker) oneOf(path, value string, values ...string) {
	k.that(slices.Contains(values, value), path, "%q is not known: use one of %s", value, strings.Join(values, ", "))
}

func (k *checker) cache(c Cache) {
	if u, err := url.Parse(c.URL); c.URL != "" && (err != nil || u.Scheme != "s3" || u.Host == "") {
		k.bad("cache.url", "%q is no bucket: write s3://NAME?region=REGION, or nothing for a directory", c.URL)
	}
	k.that(c.MaxEntry >= 1<<20, "cache.max_entry", "%s is too little: at least 1MiB", c.MaxEntry)
	k.that(c.MaxFiles > 0, "cache.max_files", "must be more than 0")
	k.that(c.Timeout > 0, "cache.timeout", "must be more than 0")
	k.that(c.Keep > 0, "cache.keep", "must be more than 0")
	k.that(c.KeepArtifact > 0, "cache.keep_artifacts", "must be more than 0")
}

func (k *checker) network(n Network) {
	switch p := n.Subnet; {
	case !p.IsValid() || !p.Addr().Is4():
		k.bad("network.subnet", "an IPv4 subnet is needed, like 10.87.0.0/16")
	case p != p.Masked():
		k.bad("network.subnet", "%s has bits set outside its mask: write %s", p, p.Masked())
	case p.Bits() > 24 || p.Bits() < 8:
		k.bad("network.subnet", "%s: between /8 and /24 are needed, every sandbox has an address", p)
	}
	k.that(n.MTU == 0 || n.MTU >= 576 && n.MTU <= 65535, "network.mtu", "%d is not between 576 and 65535", n.MTU)
	for i, a := range n.DNS {
		k.that(!a.IsLoopback(), fmt.Sprintf("network.dns[%d]", i), "%s is this machine's loopback, which sandboxes cannot reach", a)
	}
}

func (k *checker) uids(u UIDRange) {
	k.that(u.First >= IDsEach && u.First%IDsEach == 0, "uid_range.first", "%d must be a multiple of %d and not 0", u.First, IDsEach)
	// The last id of all, 4294967295, means "none" to the kernel.
	most := (int64(math.MaxUint32) - int64(u.First)) / IDsEach
	k.that(u.Count >= 1 && int64(u.Count) <= most, "uid_range.count", "%d is not between 1 and %d, which fit above uid_range.first", u.Count, most)
}

func (k *checker) limits(l Limits, c Capacity) {
	d, m := l.Default, l.Max
	k.that(d.CPU > 0, "limits.default.cpu", "must be more than 0")
	k.that(d.Memory >= minMemory, "limits.default.memory", "%s is too little: at least %s", d.Memory, Size(minMemory))
	k.that(d.PIDs >= 2, "limits.default.pids", "%d is too little: at least 2", d.PIDs)
	k.that(d.Disk >= minDisk, "limits.default.disk", "%s is too little: at least %s", d.Disk, Size(minDisk))
	k.that(d.Inodes >= 1000, "limits.default.inodes", "%d is too little: at least 1000", d.Inodes)
	for _, b := range []struct {
		name         string
		deflt, most  int64
		fits, inText string
	}{
		{"cpu", int64(d.CPU), int64(m.CPU), d.CPU.String(), m.CPU.String()},
		{"memory", int64(d.Memory), int64(m.Memory), d.Memory.String(), m.Memory.String()},
		{"pids", d.PIDs, m.PIDs, fmt.Sprint(d.PIDs), fmt.Sprint(m.PIDs)},
		{"disk", int64(d.Disk), int64(m.Disk), d.Disk.String(), m.Disk.String()},
		{"inodes", d.Inodes, m.Inodes, fmt.Sprint(d.Inodes), fmt.Sprint(m.Inodes)},
	} {
		k.that(b.most >= 0, "limits.max."+b.name, "must not be negative")
		k.that(b.most <= 0 || b.most >= b.deflt, "limits.max."+b.name, "%s is less than limits.default.%s (%s)", b.inText, b.name, b.fits)
	}
	k.that(c.Jobs >= 0, "capacity.jobs", "must not be negative")
	k.that(c.CPU == 0 || c.CPU >= d.CPU, "capacity.cpu", "%s is less than limits.default.cpu (%s): no job would fit", c.CPU, d.CPU)
	k.that(c.Memory == 0 || c.Memory >= d.Memory, "capacity.memory", "%s is less than limits.default.memory (%s): no job would fit", c.Memory, d.Memory)
}

func (k *checker) policy(p Policy) {
	k.that(p.MaxDepth >= 0 && p.MaxDepth <= 8, "policy.max_depth", "%d is not between 0 and 8", p.MaxDepth)
	known := append([]sandbox.Kind{Machine}, sandbox.Kinds()...)
	for outer, inner := range p.May {
		k.that(slices.Contains(known, sandbox.Kind(outer)), "policy.may."+outer, "unknown layer %q: use one of %v", outer, known)
		for i, kind := range inner {
			k.that(slices.Contains(sandbox.Kinds(), kind), fmt.Sprintf("policy.may.%s[%d]", outer, i), "unknown layer %q: use one of %v", kind, sandbox.Kinds())
		}
	}
}

func (k *checker) pool(c *Config) {
	policy := c.Policy.Sandbox()
	for i, p := range c.Pool {
		at := fmt.Sprintf("pool[%d]", i)
		if len(p.Sandbox) == 0 {
			k.bad(at, "sandbox is missing: name a nesting such as container")
		} else if err := policy.Allow(p.Sandbox); err != nil {
			k.bad(at+".sandbox", "%v", err)
		}
		k.image(at+".image", p.Image, false)
		k.that(p.Size >= 1 && p.Size <= c.UIDRange.Count, at+".size", "%d is not between 1 and uid_range.count (%d)", p.Size, c.UIDRange.Count)
	}
	k.that(c.Spare.Size >= 0 && c.Spare.Size <= c.UIDRange.Count, "spare.size", "%d is not between 0 and uid_range.count (%d)", c.Spare.Size, c.UIDRange.Count)
}
