package container

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// slot is the pair of namespaces that the containers of one sandbox share: a user namespace that maps its
// ids to an exclusive host range, and a network namespace that belongs to it, so that the sandbox's root
// is the network's administrator. Only file descriptors hold them: when the last process and the last
// descriptor are gone, the kernel removes both and the veth in them, so there is nothing to leak.
type slot struct {
	base   uint32
	userns *os.File
	netns  *os.File
}

// newSlot makes the namespaces by cloning a child into them that never gets to run: it is stopped by
// ptrace at its exec, as containerd does it (core/mount/mount_idmapped_utils_linux.go).
func newSlot(base uint32) (_ *slot, err error) {
	runtime.LockOSThread() // ptrace binds the child to this thread
	defer runtime.UnlockOSThread()
	mapping := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: rangeSize}}
	child, err := os.StartProcess("/proc/self/exe", []string{"runnerd-slot"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:                 unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings:                mapping,
		GidMappings:                mapping,
		GidMappingsEnableSetgroups: true,
		Ptrace:                     true,
		Pdeathsig:                  syscall.SIGKILL,
	}})
	if errors.Is(err, unix.ENOSPC) { // kernel/user_namespace.c, create_user_ns
		return nil, fmt.Errorf("create user namespace: there are 32 in one another, or user.max_user_namespaces of them: %w: start runnerd less deep, or run \"runnerd doctor\"", err)
	}
	if err != nil {
		return nil, fmt.Errorf("create user and network namespace (ids %d-%d): %w: run \"runnerd doctor\"", base, base+rangeSize-1, err)
	}
	defer func() { // the namespaces outlive the child through the descriptors
		_ = child.Kill()
		_, _ = child.Wait()
	}()
	s := &slot{base: base}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if s.userns, err = os.Open(fmt.Sprintf("/proc/%d/ns/user", child.Pid)); err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	if s.netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", child.Pid)); err != nil {
		return nil, fmt.Errorf("open network namespace: %w", err)
	}
	return s, nil
}

// usernsPath and netnsPath name the namespaces for another process of the machine, runc.
func (s *slot) usernsPath() string { return descriptorPath(s.userns) }
func (s *slot) netnsPath() string  { return descriptorPath(s.netns) }

func descriptorPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

func (s *slot) close() error {
	var errs []error
	for _, f := range []*os.File{s.userns, s.netns} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
