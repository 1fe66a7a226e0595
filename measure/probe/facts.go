package probe

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Facts are what a place is, as its kernel tells it.
type Facts struct {
	PID    int    `json:"pid"`     // in its own pid namespace
	UIDMap string `json:"uid_map"` // proc(5), lines joined with commas
	GIDMap string `json:"gid_map"`
	// Seccomp is the mode (0: off, 2: filtered), Filters how many filters each system call goes through; -1: the kernel
	// does not say.
	Seccomp int `json:"seccomp"`
	Filters int `json:"seccomp_filters"`
	// Root and Dir are the mounts that / and Args.Dir are on.
	Root       Mount          `json:"root"`
	Dir        Mount          `json:"dir"`
	Interfaces map[string]int `json:"interfaces"` // MTU in bytes, by name
	Cgroups    []string       `json:"cgroups"`    // as /proc/self/cgroup has them
	Files      uint64         `json:"rlimit_nofile"`
	Namespaces []string       `json:"namespaces"`
	// Program is the device and the inode of the probe's own program.
	Program string `json:"program"`
}

// Mount is one line of mountinfo (proc(5)).
type Mount struct {
	Point   string `json:"point"`
	FS      string `json:"fs"`
	Source  string `json:"source"`
	Options string `json:"options"` // of the mount and of the file system
}

// facts looks around. What cannot be read is left empty.
func facts(dir string) *Facts {
	f := &Facts{PID: os.Getpid(), UIDMap: idMap("uid_map"), GIDMap: idMap("gid_map"), Filters: -1, Interfaces: map[string]int{}}
	status, _ := os.ReadFile("/proc/self/status")
	for scan := bufio.NewScanner(bytes.NewReader(status)); scan.Scan(); {
		key, value, _ := strings.Cut(scan.Text(), ":")
		n, err := strconv.Atoi(strings.TrimSpace(value))
		switch {
		case err != nil:
		case key == "Seccomp":
			f.Seccomp = n
		case key == "Seccomp_filters":
			f.Filters = n
		}
	}
	f.Root = mountOf("/")
	if dir != "" {
		f.Dir = mountOf(dir)
	}
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		f.Interfaces[i.Name] = i.MTU
	}
	cgroups, _ := os.ReadFile("/proc/self/cgroup")
	f.Cgroups = strings.Split(strings.TrimSpace(string(cgroups)), "\n")
	var program unix.Stat_t
	if unix.Stat("/proc/self/exe", &program) == nil {
		f.Program = fmt.Sprintf("%d:%d", program.Dev, program.Ino)
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		f.Files = limit.Cur
	}
	for _, ns := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		if link, err := os.Readlink("/proc/self/ns/" + ns); err == nil {
			f.Namespaces = append(f.Namespaces, link)
		}
	}
	return f
}

func idMap(name string) string {
	text, _ := os.ReadFile("/proc/self/" + name)
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return strings.Join(lines, ",")
}

func mountOf(dir string) (m Mount) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return m
	}
	for _, i := range mounts { // the last of the longest is on top
		if len(i.Mountpoint) >= len(m.Point) {
			m = Mount{Point: i.Mountpoint, FS: i.FSType, Source: i.Source, Options: i.Options + "," + i.VFSOptions}
		}
	}
	return m
}
