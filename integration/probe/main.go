//go:build integration

// Command probe tries what needs a capability in the machine's user namespace, and prints as JSON what came of
// each try: "" for success, else the error. All of it is harmless where it succeeds: values are written as they
// were read, and what is opened is closed.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	defer os.RemoveAll(dir)
	arg := func(name string) int { n, _ := strconv.Atoi(os.Getenv(name)); return n }
	device := unix.Mkdev(uint32(arg("MAJOR")), uint32(arg("MINOR")))
	results := map[string]string{}
	for _, p := range []struct {
		name string
		try  func() error
	}{
		{"write core_pattern", func() error { return rewrite("/proc/sys/kernel/core_pattern") }},
		{"write a cgroup's limit", func() error { return rewrite(os.Getenv("CGROUP_FILE")) }},
		{"sethostname", func() error {
			var u unix.Utsname
			return errors.Join(unix.Uname(&u), unix.Sethostname([]byte(unix.ByteSliceToString(u.Nodename[:]))))
		}},
		{"setns", func() error {
			fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Setns(fd, unix.CLONE_NEWUTS)
		}},
		{"make a device", func() error { return unix.Mknod(filepath.Join(dir, "made"), unix.S_IFBLK|0o600, int(device)) }},
		{"open a device", func() error { return open(os.Getenv("DEVICE"), unix.O_RDWR) }},
		{"open /dev/mem", func() error { return open("/dev/mem", unix.O_RDONLY) }},
		{"mount a device", func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			if err := unix.Mount(os.Getenv("DEVICE"), dir, "ext4", unix.MS_RDONLY, ""); err != nil {
				return err
			}
			return unix.Unmount(dir, 0)
		}},
		{"chown outside the range", func() error {
			file := filepath.Join(dir, "file")
			return errors.Join(os.WriteFile(file, nil, 0o600), unix.Chown(file, 70000, 70000))
		}},
		{"signal a process", func() error { return unix.Kill(arg("PID"), 0) }},
		{"read a process's memory", func() error {
			f, err := os.Open(fmt.Sprintf("/proc/%d/mem", arg("PID")))
			if err != nil {
				return err
			}
			return f.Close()
		}},
		{"load bpf", loadBPF},
		{"load a module", func() error {
			err := unix.InitModule(nil, "")
			if errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.EINVAL) { // it looked at the module
				return nil
			}
			return err
		}},
		{"set the clock", func() error {
			var t unix.Timex
			if _, err := unix.Adjtimex(&t); err != nil {
				return err
			}
			_, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_TICK, Tick: t.Tick})
			return err
		}},
		{"raise the priority", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -1) }},
		{"open by handle", func() error {
			handle, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/etc/passwd", 0)
			if err != nil {
				return err
			}
			root, err := unix.Open("/etc", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(root)
			fd, err := unix.OpenByHandleAt(root, handle, unix.O_RDONLY)
			if err == nil {
				_ = unix.Close(fd)
			}
			return err
		}},
		{"set up an interface", func() error {
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			r, err := unix.NewIfreq("lo")
			if err != nil {
				return err
			}
			return errors.Join(unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, r), unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r))
		}},
	} {
		results[p.name] = ""
		if err := p.try(); err != nil {
			results[p.name] = err.Error()
		}
	}
	_ = json.NewEncoder(os.Stdout).Encode(results)
}

func open(name string, how int) error {
	fd, err := unix.Open(name, how|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// rewrite writes what is in a file.
func rewrite(name string) error {
	text, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return os.WriteFile(name, text, 0o644)
}

// loadBPF loads a traffic classifier that returns 0.
func loadBPF() error {
	program := [2]uint64{0xb7, 0x95} // r0 = 0; exit
	license := []byte("GPL\x00")
	attr := struct {
		kind, count   uint32
		code, license uint64
		_             [96]byte
	}{kind: unix.BPF_PROG_TYPE_SCHED_CLS, count: 2, code: uint64(uintptr(unsafe.Pointer(&program[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_PROG_LOAD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	runtime.KeepAlive(&program)
	runtime.KeepAlive(license)
	if errno != 0 {
		return errno
	}
	return unix.Close(int(fd))
}
