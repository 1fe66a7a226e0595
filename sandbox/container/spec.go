package container

import (
	"maps"
	"slices"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/containerd/v2/pkg/cap"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// InitPath is where the sandbox's init is seen inside: on /dev, which is a tmpfs of the container, so that
// no image needs a place for it.
const InitPath = "/dev/.runnerd-init"

// jobCapabilities are Docker's defaults (moby, daemon/pkg/oci/caps/defaults.go): what images expect of
// root. They bind in the sandbox's user namespace only.
var jobCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// specOf describes a member of a sandbox to the runtime (OCI runtime-spec, config.md).
func specOf(m *member, hostname string, readonly, binds map[string]string) *specs.Spec {
	capabilities := jobCapabilities
	if m.engine {
		capabilities = cap.Known()
	}
	spec := &specs.Spec{
		Version: specs.Version,
		// One shim serves all containers of a sandbox. It is named after the one it is started for: by that
		// name it removes its socket.
		Annotations: map[string]string{"io.containerd.runc.v2.group": m.sb.containerID(mainMember)},
		Hostname:    hostname,
		Root:        &specs.Root{Path: m.rootfs},
		Process: &specs.Process{
			Args: []string{InitPath},
			Cwd:  "/",
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Permitted: capabilities, Effective: capabilities,
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: m.cgroupPath(),
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.UserNamespace, Path: m.sb.slot.usernsPath()},
				{Type: specs.NetworkNamespace, Path: m.sb.slot.netnsPath()},
				{Type: specs.PIDNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		},
	}
	mode := "ro"
	if m.engine {
		mode = "rw"
	} else {
		// In an engine nothing is masked: the kernel lets a namespace mount a fresh /proc only where it sees
		// all of one, and /proc/sys is guarded by the user namespace (fs/namespace.c, mount_too_revealing).
		spec.Linux.MaskedPaths = []string{
			"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
			"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
			"/sys/devices/virtual/powercap",
		}
		// /sys by a flag of the mount and not of the file system, which is one for all containers of a network namespace:
		// else an engine of the sandbox can start no privileged container, which wants to write to its own.
		spec.Linux.ReadonlyPaths = []string{"/sys", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "rw"}},
		specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}})
	for _, destination := range slices.Sorted(maps.Keys(readonly)) {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: destination, Type: "bind", Source: readonly[destination], Options: []string{"bind", "ro", "nosuid", "nodev"},
		})
	}
	for _, destination := range slices.Sorted(maps.Keys(binds)) {
		spec.Mounts = append(spec.Mounts, specs.Mount{
			Destination: destination, Type: "bind", Source: binds[destination],
			Options: []string{"rbind", "rprivate", "rw", "nosuid", "nodev"},
		})
	}
	spec.Linux.Seccomp = seccompProfile(spec, m.engine)
	return spec
}

// seccompProfile is containerd's default profile, which is Docker's, cut to what makes the filter quick to
// build: a third of a cold start went into it.
func seccompProfile(spec *specs.Spec, engine bool) *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile(spec)
	// Nothing uses the x32 ABI: Debian's kernels have it switched off, and exploits have come in by it.
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool { return a == specs.ArchX32 })
	// One rule of many names, instead of one for each capability's group.
	allowed := specs.LinuxSyscall{Action: specs.ActAllow}
	var rest []specs.LinuxSyscall
	for _, s := range profile.Syscalls {
		if s.Action == specs.ActAllow && len(s.Args) == 0 {
			allowed.Names = append(allowed.Names, s.Names...)
		} else {
			rest = append(rest, s)
		}
	}
	if engine {
		allowed.Names = append(allowed.Names, "pivot_root")
		// A nested runc wants a session keyring, and does without where the kernel has none (runc,
		// libcontainer/standard_init_linux.go); so it need not have one.
		noKeyrings := uint(unix.ENOSYS)
		rest = append(rest, specs.LinuxSyscall{Names: []string{"keyctl"}, Action: specs.ActErrno, ErrnoRet: &noKeyrings})
	}
	slices.Sort(allowed.Names)
	allowed.Names = slices.Compact(allowed.Names)
	profile.Syscalls = append(rest, allowed)
	return profile
}
