package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
)

// checks are all that doctor looks at, in the order that they are told.
func checks() []check {
	return []check{
		{"root", checkRoot},
		{"kernel", checkKernel},
		{"cgroups", checkCgroups},
		{"user namespaces", checkUserNamespaces},
		{"overlay and idmap", checkIDMap},
		{"seccomp", checkSeccomp},
		{"loop disks", checkLoop},
		{"igzip", checkIgzip},
		{"forwarding", checkForwarding},
		{"veth", checkVeth},
		{"nftables", checkNFTables},
		{"kernel modules", checkModules},
		{"name servers", checkDNS},
		{"subnet", checkSubnet},
		{"host ids", checkUIDs},
		{"disk space", checkDisk},
		{"disk budget", checkBudget},
		{"open files", checkFiles},
		{"engines", checkEngineSet},
		{"images", checkImages},
		{"runners", checkRunners},
	}
}

func checkRoot(context.Context, *config.Config) finding {
	if os.Geteuid() != 0 {
		return bad(fail, "sudo runnerd doctor", "not root: the daemon must be, and so must this check to try what it needs")
	}
	return good("running as root")
}

// minKernel has idmapped overlay mounts (Linux 5.19) on ext4, xfs and btrfs.
var minKernel = [2]int{5, 19}

func checkKernel(context.Context, *config.Config) finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return bad(fail, "", "uname: %v", err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var have [2]int
	if _, err := fmt.Sscanf(release, "%d.%d", &have[0], &have[1]); err != nil {
		return bad(warn, "", "Linux %s: the version is not understood", release)
	}
	if slices.Compare(have[:], minKernel[:]) < 0 {
		return bad(fail, "use a kernel of 5.19 or later, such as Debian 12's", "Linux %s is older than %d.%d: it has no idmapped overlay mounts", release, minKernel[0], minKernel[1])
	}
	return good("Linux %s", release)
}

func checkCgroups(context.Context, *config.Config) finding {
	need := []string{"cpu", "memory", "pids"}
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		text, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil {
			return bad(fail, "mount -t cgroup2 none /sys/fs/cgroup", "version 2: %v", err)
		}
		have := strings.Fields(string(text))
		if missing := without(need, have); len(missing) > 0 {
			return bad(fail, "add cgroup_enable="+strings.Join(missing, ",")+" to the kernel's command line", "version 2 without the controllers %s", strings.Join(missing, ", "))
		}
		return good("version 2 with %s", strings.Join(have, ", "))
	}
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return bad(fail, "", "%v", err)
	}
	var have []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup" {
			have = append(have, strings.Split(f[3], ",")...)
		}
	}
	if missing := without(append(need, "devices", "freezer"), have); len(missing) > 0 {
		return bad(fail, "mount -t cgroup -o "+missing[0]+" none /sys/fs/cgroup/"+missing[0], "version 1 without the controllers %s", strings.Join(missing, ", "))
	}
	return finding{Verdict: warn, Found: "version 1, which is supported but no more developed", Mend: "boot with systemd.unified_cgroup_hierarchy=1"}
}

func without(need, have []string) []string {
	return slices.DeleteFunc(slices.Clone(need), func(s string) bool { return slices.Contains(have, s) })
}

func readNumber(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}

func checkUserNamespaces(ctx context.Context, c *config.Config) finding {
	n, err := readNumber("/proc/sys/user/max_user_namespaces")
	if err != nil {
		return bad(fail, "use a kernel with CONFIG_USER_NS", "the kernel has no user namespaces: %v", err)
	}
	if n < int64(c.Capacity.Jobs) {
		return bad(fail, "sysctl -w user.max_user_namespaces=65536", "user.max_user_namespaces is %d", n)
	}
	// What a sandbox does: a process as root of a namespace of its own, with a range of ids.
	cmd := exec.CommandContext(ctx, "/bin/true")
	mapped := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(c.UIDRange.First), Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		UidMappings: mapped, GidMappings: mapped,
	}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
	if err := cmd.Run(); err != nil {
		return bad(fail, "sysctl -w kernel.unprivileged_userns_clone=1\nsysctl -w kernel.apparmor_restrict_unprivileged_userns=0", "a user namespace cannot be made: %v", err)
	}
	return good("made one with the ids from %d; at most %d", c.UIDRange.First, n)
}

// checkIDMap mounts an overlay on a directory of the state's file system and shows it with other owners.
func checkIDMap(_ context.Context, c *config.Config) (f finding) {
	if os.Geteuid() != 0 {
		return bad(warn, "sudo runnerd doctor", "not tried: not root")
	}
	dir, err := os.MkdirTemp(existing(c.StateDir), ".doctor-")
	if err != nil {
		return bad(fail, "give another --state-dir", "%v", err)
	}
	defer func() {
		if err := os.RemoveAll(dir); err != nil {
			f = bad(fail, "umount -R "+dir, "the test's directory was not removed: %v", err)
		}
	}()
	for _, name := range []string{"lower", "upper", "work", "merged", "idmapped"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			return bad(fail, "give another --state-dir", "%v", err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "lower/file"), nil, 0o644); err != nil {
		return bad(fail, "give another --state-dir", "%v", err)
	}
	p := func(name string) string { return filepath.Join(dir, name) }
	userns, err := usernsFD(c.UIDRange.First)
	if err != nil {
		return bad(fail, "sysctl -w user.max_user_namespaces=65536", "a user namespace for the mount: %v", err)
	}
	defer func() { _ = userns.Close() }()
	// As containerd does it: the lower layer idmapped, and the overlay on that.
	if err := mount.IDMapMountWithAttrs(p("lower"), p("idmapped"), int(userns.Fd()), 0, 0); err != nil {
		return bad(fail, "put --state-dir on ext4, xfs or btrfs and use a kernel of 5.19 or later", "an idmapped mount on %s cannot be made: %v", existing(c.StateDir), err)
	}
	defer func() { _ = unix.Unmount(p("idmapped"), unix.MNT_DETACH) }()
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", p("idmapped"), p("upper"), p("work"))
	if err := unix.Mount("overlay", p("merged"), "overlay", 0, options); err != nil {
		return bad(fail, "modprobe overlay; put --state-dir on ext4 or xfs, not on an overlay", "an overlay on %s cannot be mounted: %v", existing(c.StateDir), err)
	}
	defer func() { _ = unix.Unmount(p("merged"), unix.MNT_DETACH) }()
	var st unix.Stat_t
	if err := unix.Stat(p("merged/file"), &st); err != nil {
		return bad(fail, "", "%v", err)
	}
	if st.Uid != c.UIDRange.First {
		return bad(fail, "use a kernel of 5.19 or later", "an idmapped file has the owner %d, not %d", st.Uid, c.UIDRange.First)
	}
	return good("an overlay on an idmapped layer works on %s", existing(c.StateDir))
}

// usernsFD makes a user namespace that lives as long as the file.
func usernsFD(first uint32) (*os.File, error) {
	cmd := exec.Command("/bin/sleep", "60")
	mapped := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(first), Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: mapped, GidMappings: mapped}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
}

// existing is the directory, or the nearest above it that exists.
func existing(dir string) string {
	for {
		if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
			return dir
		}
		up := filepath.Dir(dir)
		if up == dir {
			return dir
		}
		dir = up
	}
}

func checkSeccomp(context.Context, *config.Config) finding {
	text, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil {
		return bad(fail, "use a kernel with CONFIG_SECCOMP_FILTER", "the kernel has no seccomp filters: %v", err)
	}
	have := strings.Fields(string(text))
	if missing := without([]string{"errno", "allow", "kill_process"}, have); len(missing) > 0 {
		return bad(fail, "use a newer kernel", "seccomp without the actions %s", strings.Join(missing, ", "))
	}
	return good("actions %s", strings.Join(have, " "))
}

func checkLoop(context.Context, *config.Config) finding {
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return bad(fail, "apt-get install e2fsprogs", "mkfs.ext4 is not found")
	}
	f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return bad(fail, "modprobe loop", "no loop devices: %v", err)
	}
	defer func() { _ = f.Close() }()
	n, err := unix.IoctlRetInt(int(f.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return bad(fail, "modprobe loop", "no free loop device: %v", err)
	}
	return good("mkfs.ext4 is there, /dev/loop%d is free", n)
}

// checkIgzip looks for what containerd unpacks layers with, if it is there (containerd, pkg/archive/compression).
func checkIgzip(context.Context, *config.Config) finding {
	if _, err := exec.LookPath("igzip"); err != nil {
		return bad(warn, "apt-get install isal", "igzip is not found: images are decompressed at a third of the speed")
	}
	return good("images are decompressed by it")
}

func checkFiles(context.Context, *config.Config) finding {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return bad(fail, "", "%v", err)
	}
	if r.Max < 65536 {
		return bad(warn, "set LimitNOFILE=1048576 in the service's unit", "at most %d open files, enough for about %d jobs", r.Max, r.Max/64)
	}
	return good("at most %d", r.Max)
}
