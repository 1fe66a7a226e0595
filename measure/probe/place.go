package probe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	bpf "github.com/elastic/go-seccomp-bpf"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Nest becomes this program with other arguments, in so many sets of namespaces, one in the other: user, mount, pid, UTS,
// IPC and cgroup.
func Nest(levels int, args []string) error {
	if levels == 0 {
		return unix.Exec("/proc/self/exe", append([]string{"runnerd-probe"}, args...), os.Environ())
	}
	cmd := exec.Command("/proc/self/exe", append([]string{"nested", fmt.Sprint(levels - 1)}, args...)...)
	cmd.SysProcAttr = nestedProcess(unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWCGROUP)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

// Nested is how a level of Nest begins.
func Nested(levels int, args []string) error {
	if err := ownProc(); err != nil {
		return err
	}
	return Nest(levels, args)
}

// nestedProcess starts a process in new user, pid and mount namespaces, and others, as root of its user namespace. It
// ends with this one.
func nestedProcess(others uintptr) *syscall.SysProcAttr {
	own := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	return &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | others,
		UidMappings: own, GidMappings: own, Pdeathsig: syscall.SIGKILL,
	}
}

// ownProc mounts the /proc of the process's own pid namespace: what starts the next level is told its process's id there.
func ownProc() error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

// Filter puts the process, all of its threads, behind so many seccomp filters, each Docker's default profile.
func Filter(count int) error {
	profile := seccomp.DefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN", "CAP_SYS_CHROOT"}}}})
	var names []string
	for _, rule := range profile.Syscalls {
		for _, name := range rule.Names {
			if rule.Action == specs.ActAllow && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	// A filter may hold each name that the kernel's table for this machine knows.
	policy := seccompPolicy(names)
	if len(policy.Syscalls[0].Names) < 200 {
		return fmt.Errorf("only %d system calls of the profile are known here", len(policy.Syscalls[0].Names))
	}
	for range count {
		// seccomp(2) wants this for one who is not root in its namespace; for others it changes nothing that is measured.
		if err := bpf.LoadFilter(bpf.Filter{NoNewPrivs: true, Flag: bpf.FilterFlagTSync, Policy: policy}); err != nil {
			return fmt.Errorf("load a seccomp filter: %w", err)
		}
	}
	return nil
}

// seccompPolicy allows those of some system calls that this machine has.
func seccompPolicy(names []string) bpf.Policy {
	var known []string
	for _, name := range names {
		p := bpf.Policy{DefaultAction: bpf.ActionErrno, Syscalls: []bpf.SyscallGroup{{Action: bpf.ActionAllow, Names: []string{name}}}}
		if _, err := p.Assemble(); err == nil {
			known = append(known, name)
		}
	}
	return bpf.Policy{DefaultAction: bpf.ActionErrno, Syscalls: []bpf.SyscallGroup{{Action: bpf.ActionAllow, Names: known}}}
}

// The kinds of storage.
const (
	Raw         = "raw"          // a directory
	Overlay     = "overlay"      // an overlay on one
	OverlayTwo  = "overlay-2"    // an overlay whose lower layer is an overlay
	FuseOverlay = "fuse-overlay" // an overlay by fuse-overlayfs
)

// FuseProgram is the program that FuseOverlay needs.
const FuseProgram = "fuse-overlayfs"

// MountStorage makes storage of a kind in dir, whose lower layer is dir/lower, and returns where it is. The mount namespace
// must be the process's own: with it all mounts go.
func MountStorage(kind, dir string) (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("keep mounts to this process: %w", err)
	}
	if kind == Raw {
		at := filepath.Join(dir, Raw)
		return at, os.MkdirAll(at, 0o755)
	}
	lower := filepath.Join(dir, "lower")
	if kind == OverlayTwo {
		inner, err := overlayIn(filepath.Join(dir, kind+"-inner"), lower)
		if err != nil {
			return "", err
		}
		lower = inner
	}
	if kind == FuseOverlay {
		return fuseIn(filepath.Join(dir, kind), lower)
	}
	return overlayIn(filepath.Join(dir, kind), lower)
}

func overlayDirs(dir, lower string) (options, merged string, err error) {
	upper, work, merged := filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "merged")
	for _, d := range []string{upper, work, merged} {
		err = errors.Join(err, os.MkdirAll(d, 0o755))
	}
	return "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work, merged, err
}

func overlayIn(dir, lower string) (string, error) {
	options, merged, err := overlayDirs(dir, lower)
	if err != nil {
		return "", err
	}
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		return "", fmt.Errorf("mount an overlay: %w", err)
	}
	return merged, nil
}

// fuseIn starts fuse-overlayfs, which ends with this process.
func fuseIn(dir, lower string) (string, error) {
	options, merged, err := overlayDirs(dir, lower)
	if err != nil {
		return "", err
	}
	cmd := exec.Command(FuseProgram, "-f", "-o", options, merged)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("start %s: %w: apt-get install %[1]s", FuseProgram, err)
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if mountOf(merged).Point == merged {
			return merged, nil
		}
	}
	return "", fmt.Errorf("%s does not mount %s", FuseProgram, merged)
}
