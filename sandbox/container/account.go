package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// stages are how long the steps of opening or closing a sandbox took, by the daemon's clock.
type stages struct {
	mu   sync.Mutex
	took []sandbox.Stage
}

// during makes f a stage.
func (s *stages) during(name sandbox.StageName, f func() error) func() error {
	return func() error {
		began := time.Now()
		err := f()
		s.add(name, time.Since(began))
		return err
	}
}

// add adds a stage. Of several of one name, which run beside each other, the longest counts.
func (s *stages) add(name sandbox.StageName, took time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range s.took {
		if s.took[i].Name == name {
			s.took[i].Took = max(s.took[i].Took, took)
			return
		}
	}
	s.took = append(s.took, sandbox.Stage{Name: name, Took: took})
}

func (s *stages) all() []sandbox.Stage {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]sandbox.Stage(nil), s.took...)
}

// The shims are no part of the sandboxes' cgroups: a limit of a job's must not hit its shim, and killing what a sandbox
// runs must leave it the shim that tells of it. Each sandbox has another cgroup for its own, below NAME.shims.
const shimsSuffix = ".shims"

func (d *Driver) shims() cgroup {
	return cgroup{h: d.cgroups.ofShims(), path: "/" + d.cfg.Name + shimsSuffix}
}

// ofShims are those of cgroup v1 in which a shim is accounted. containerd insists on devices
// (cgroups, cgroup1.RequireDevices).
func (h hierarchies) ofShims() hierarchies { return h.only("cpuacct", "memory", "devices") }

// only is h with some of v1's hierarchies.
func (h hierarchies) only(controllers ...string) hierarchies {
	if h.unified {
		return h
	}
	some := hierarchies{dirs: map[string]string{}}
	for _, c := range controllers {
		if dir := h.dirs[c]; dir != "" {
			some.dirs[c] = dir
		}
	}
	return some
}

// shim is the cgroup of a sandbox's shim.
func (c cgroup) shim() cgroup {
	name, id := filepath.Split(c.path)
	return cgroup{h: c.h.ofShims(), path: strings.TrimSuffix(name, "/") + shimsSuffix + "/" + id}
}

// makeCgroup makes the sandbox's cgroup, and that of its shim.
func (sb *Sandbox) makeCgroup() error {
	return errors.Join(sb.cgroup.create(sb.spec.Limits), sb.cgroup.shim().mkdirs())
}

// account has the kernel tell whose the transfers to and from the sandbox's disk are.
//
// On v1 a kernel counts a disk's transfers by cgroup only once some limit is set for it (block/blk-throttle.h,
// blk_should_throtl, since Linux 6.9), so there is one that no disk can reach.
func (sb *Sandbox) account() error {
	t, err := newTransfers(sb.disk.dir)
	if err != nil {
		return fmt.Errorf("account the disk of sandbox %s: %w", sb.spec.ID, err)
	}
	sb.meter.mu.Lock()
	sb.meter.disk = t
	sb.meter.mu.Unlock()
	if dir := sb.cgroup.h.dirs["blkio"]; dir != "" {
		text := fmt.Sprintf("%s %d", t.device, int64(1)<<60)
		err = os.WriteFile(filepath.Join(dir, sb.cgroup.path, "blkio.throttle.read_bps_device"), []byte(text), 0o200)
		if errors.Is(err, fs.ErrNotExist) { // a kernel without CONFIG_BLK_DEV_THROTTLING: all of it is PartOther's
			err = nil
		}
	}
	return err
}

// transfers counts what a sandbox's disk has read and written since it became the sandbox's.
type transfers struct {
	device        string // "7:3"
	read, written int64  // before
}

func newTransfers(dir string) (*transfers, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	t := &transfers{device: fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))}
	t.read, t.written = t.count()
	return t, nil
}

// count is what the kernel has counted since there is the device, in bytes (Linux, Documentation/block/stat.rst).
func (t *transfers) count() (read, written int64) {
	text, err := os.ReadFile(filepath.Join("/sys/dev/block", t.device, "stat"))
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 7 {
		return 0, 0
	}
	const sector = 512
	read, _ = strconv.ParseInt(fields[2], 10, 64)
	written, _ = strconv.ParseInt(fields[6], 10, 64)
	return read * sector, written * sector
}

func (t *transfers) total() (read, written int64) {
	if t == nil {
		return 0, 0
	}
	read, written = t.count()
	return max(0, read-t.read), max(0, written-t.written)
}

// account has the member's machinery told from its payload: that of an engine lies in a cgroup of its own from here on.
func (m *member) account() error {
	pid, payload := int(m.task.Pid()), sandbox.PartServices
	switch {
	case m.engine && m.name == mainMember:
		payload = sandbox.PartBuildSteps
	case m.engine:
		payload = sandbox.PartContainers
	case m.name == mainMember:
		payload = sandbox.PartScript
	}
	c := m.cgroup()
	if m.engine {
		machinery := cgroup{h: c.h.only("cpuacct", "memory", "blkio"), path: filepath.Join(c.path, machineryPart)}
		if err := machinery.adopt(pid); err != nil {
			return err
		}
		if err := machinery.delegate("", m.sb.slot.base); err != nil {
			return err
		}
	}
	if unified := c.h.dirs["unified"]; unified != "" { // where v1 knows of pressure; nobody else puts it there
		_ = cgroup{h: hierarchies{dirs: map[string]string{"unified": unified}}, path: m.sb.cgroup.path}.adopt(pid)
	}
	m.sb.meter.add(c, payload, m.engine, pid)
	return nil
}

// adopt makes the cgroup, if need be, and moves a process into it.
func (c cgroup) adopt(pid int) error {
	for _, dir := range c.all() {
		err := os.Mkdir(dir, 0o755)
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o200)
		}
		if err != nil {
			return fmt.Errorf("move process %d to cgroup %s: %w", pid, c.path, err)
		}
	}
	return nil
}

// pressure is nil where the kernel does not tell it. On v1 the hierarchy of v2 that is there beside v1's may have it.
func (c cgroup) pressure() *sandbox.Pressure {
	controller := ""
	if !c.h.unified {
		controller = "unified"
	}
	root := c.h.dirs[controller]
	if root == "" {
		return nil
	}
	dir := filepath.Join(root, c.path)
	var p sandbox.Pressure
	for file, w := range map[string]*sandbox.Waits{"cpu.pressure": &p.CPU, "memory.pressure": &p.Memory, "io.pressure": &p.IO} {
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			return nil
		}
		*w = waits(string(text))
	}
	return &p
}

// waits reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=12", in microseconds, and the same of "full".
func waits(text string) (w sandbox.Waits) {
	for line := range strings.Lines(text) {
		kind, _, _ := strings.Cut(line, " ")
		_, value, _ := strings.Cut(strings.TrimSpace(line), "total=")
		n, _ := strconv.ParseInt(value, 10, 64)
		switch kind {
		case "some":
			w.Some = time.Duration(n) * time.Microsecond
		case "full":
			w.Full = time.Duration(n) * time.Microsecond
		}
	}
	return w
}
