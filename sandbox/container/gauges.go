package container

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// gauges read what one cgroup, and all below it, has used. What is read often is read by a descriptor that is kept: a
// pread of it costs a fifth of opening, reading and closing the file. A descriptor of a cgroup that is gone reads
// nothing, and does not keep the cgroup from being removed.
type gauges struct {
	c      cgroup
	memory *os.File
}

func newGauges(c cgroup) *gauges { return &gauges{c: c} }

// file is one of the cgroup's: v2's, or that of a v1 controller.
func (g *gauges) file(v2, controller, v1 string) string {
	if g.c.h.unified {
		return filepath.Join(g.c.dir(""), v2)
	}
	return filepath.Join(g.c.dir(controller), v1)
}

// cpu is user and system time.
func (g *gauges) cpu() time.Duration {
	if g.c.h.unified {
		return time.Duration(field(g.c.dir(""), "cpu.stat", "usage_usec")) * time.Microsecond
	}
	return time.Duration(number(g.c.dir("cpuacct"), "cpuacct.usage"))
}

// memoryNow is in bytes, page cache included.
func (g *gauges) memoryNow() int64 {
	if g.memory == nil {
		file, err := os.Open(g.file("memory.current", "memory", "memory.usage_in_bytes"))
		if err != nil {
			return 0
		}
		g.memory = file
	}
	var text [32]byte
	n, err := unix.Pread(int(g.memory.Fd()), text[:], 0)
	if err != nil || n <= 0 {
		return 0
	}
	return leadingNumber(text[:n])
}

// memoryPeak is the kernel's own: nothing is missed between two looks.
func (g *gauges) memoryPeak() int64 {
	if g.c.h.unified {
		return number(g.c.dir(""), "memory.peak")
	}
	return number(g.c.dir("memory"), "memory.max_usage_in_bytes")
}

// io is what was read from and written to a disk, in bytes.
func (g *gauges) io(disk *transfers) (read, written int64) {
	if disk == nil {
		return 0, 0
	}
	text, err := os.ReadFile(g.file("io.stat", "blkio", "blkio.throttle.io_service_bytes_recursive"))
	if err != nil {
		return 0, 0
	}
	return deviceBytes(string(text), disk.device)
}

// deviceBytes finds a device's bytes in v2's io.stat ("7:3 rbytes=1 wbytes=2 …") or v1's ("7:3 Read 1", "7:3 Write 2").
func deviceBytes(text, device string) (read, written int64) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != device {
			continue
		}
		if len(fields) == 3 && !strings.Contains(fields[1], "=") {
			fields = []string{device, fields[1] + "=" + fields[2]}
		}
		for _, f := range fields[1:] {
			key, value, _ := strings.Cut(f, "=")
			n, _ := strconv.ParseInt(value, 10, 64)
			switch key {
			case "rbytes", "Read":
				read = n
			case "wbytes", "Write":
				written = n
			}
		}
	}
	return read, written
}

func (g *gauges) close() {
	if g.memory != nil {
		_ = g.memory.Close()
		g.memory = nil
	}
}

// leadingNumber is the number that a text begins with.
func leadingNumber(text []byte) (n int64) {
	for _, c := range bytes.TrimLeft(text, " ") {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int64(c-'0')
	}
	return n
}

// process is one of the machinery's that lives long, whose share of its cgroup the kernel tells by the process itself.
type process struct {
	pid   int
	statm *os.File // proc(5)
	cpu   time.Duration
}

func watchProcess(pid int) (*process, error) {
	statm, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "statm"))
	if err != nil {
		return nil, err
	}
	p := &process{pid: pid, statm: statm}
	p.look()
	return p, nil
}

// look reads the process's clock and its own memory, in bytes: what it shares, such as the pages of its program, is not
// charged to it alone. Of one that has ended the clock says what it last said, and there is no memory. The descriptor
// belongs to this very process, so the number is another's only if reading it fails.
func (p *process) look() (cpu time.Duration, memory int64) {
	var text [96]byte
	n, err := unix.Pread(int(p.statm.Fd()), text[:], 0)
	if err != nil || n <= 0 {
		return p.cpu, 0
	}
	// The clock of a process is a number made of its own (clock_getcpuclockid(3)).
	var at unix.Timespec
	if unix.ClockGettime(int32(^uint32(p.pid)<<3|2), &at) == nil {
		p.cpu = time.Duration(at.Nano())
	}
	fields := bytes.Fields(text[:n])
	if len(fields) < 3 {
		return p.cpu, 0
	}
	return p.cpu, max(0, leadingNumber(fields[1])-leadingNumber(fields[2])) * int64(os.Getpagesize())
}

func (p *process) close() { _ = p.statm.Close() }
