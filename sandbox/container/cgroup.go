package container

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// cgroupRoot is where the machine's cgroup hierarchies are.
const cgroupRoot = "/sys/fs/cgroup"

// hierarchies are the mounted cgroup hierarchies of the machine: on v2 one, on v1 one a controller.
type hierarchies struct {
	unified bool
	// dirs maps a v1 controller ("memory", "pids", "name=systemd") to its mount point; on v2, "" to it.
	dirs map[string]string
}

// findHierarchies reads the hierarchies from /proc/self/mountinfo (proc(5)).
func findHierarchies() (hierarchies, error) {
	h := hierarchies{dirs: map[string]string{}}
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return h, fmt.Errorf("%s: %w: mount the cgroup file system", cgroupRoot, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		h.unified = true
		h.dirs[""] = cgroupRoot
		return h, nil
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return h, err
	}
	for line := range bytes.Lines(mounts) {
		fields := strings.Fields(string(line))
		sep := slices.Index(fields, "-")
		if sep < 6 || sep+3 >= len(fields) || !strings.HasPrefix(fields[sep+1], "cgroup") || !strings.HasPrefix(fields[4], cgroupRoot+"/") {
			continue
		}
		if fields[sep+1] == "cgroup2" { // the hybrid layout's, without the controllers that v1 has
			h.dirs["unified"] = fields[4]
			continue
		}
		for option := range strings.SplitSeq(fields[sep+3], ",") {
			if option != "rw" && option != "ro" {
				h.dirs[option] = fields[4]
			}
		}
	}
	for _, needed := range []string{"memory", "cpu", "pids", "freezer"} {
		if h.dirs[needed] == "" {
			return h, fmt.Errorf("no cgroup v1 hierarchy for %s below %s: mount it, or boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1)", needed, cgroupRoot)
		}
	}
	return h, nil
}

// cgroup is one sandbox's subtree. Its limits lie on its root, which belongs to the machine's root, so
// nothing in the sandbox can lift them; what a sandbox's engine administers lies below.
type cgroup struct {
	h    hierarchies
	path string // such as "/runnerd/job-1", the same in every hierarchy
	ooms *oomEvents
}

// all are the subtree's directories, one a hierarchy, without doubles (cpu,cpuacct may be one mount).
func (c cgroup) all() []string {
	var dirs []string
	for _, mountPoint := range c.h.dirs {
		if dir := filepath.Join(mountPoint, c.path); !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (c cgroup) dir(controller string) string {
	if c.h.unified {
		controller = ""
	}
	return filepath.Join(c.h.dirs[controller], c.path)
}

// create makes the subtree and sets its limits.
func (c *cgroup) create(l sandbox.Limits) (err error) {
	if err := c.mkdirs(); err != nil {
		return err
	}
	if !c.h.unified {
		if c.ooms, err = c.watchOOM(); err != nil {
			return err
		}
	}
	return c.limit(l)
}

// mkdirs makes the subtree, without limits.
func (c cgroup) mkdirs() error {
	if c.h.unified {
		if err := c.delegateDown(); err != nil {
			return err
		}
	}
	for _, dir := range c.all() {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
	}
	if cpuset := c.h.dirs["cpuset"]; cpuset != "" { // v1: a new cpuset is empty and holds nobody
		copyCPUSet(filepath.Join(cpuset, filepath.Dir(c.path)))
		copyCPUSet(filepath.Join(cpuset, c.path))
	}
	return nil
}

// copyCPUSet fills an empty v1 cpuset from its parent.
func copyCPUSet(dir string) {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if own, err := os.ReadFile(filepath.Join(dir, file)); err == nil && len(bytes.TrimSpace(own)) == 0 {
			if parent, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file)); err == nil {
				_ = os.WriteFile(filepath.Join(dir, file), parent, 0o644)
			}
		}
	}
}

// delegateDown enables the controllers in every ancestor of a v2 subtree: they are handed down level by
// level (cgroup-v2, "Enabling and Disabling").
func (c cgroup) delegateDown() error {
	var ancestors []string
	for dir := filepath.Dir(c.path); ; dir = filepath.Dir(dir) {
		ancestors = append(ancestors, dir)
		if dir == "/" {
			break
		}
	}
	slices.Reverse(ancestors)
	for _, dir := range ancestors {
		full := filepath.Join(c.h.dirs[""], dir)
		if err := os.MkdirAll(full, 0o755); err != nil {
			return fmt.Errorf("create cgroup: %w", err)
		}
		for _, controller := range []string{"cpu", "memory", "pids", "io", "cpuset"} {
			err := os.WriteFile(filepath.Join(full, "cgroup.subtree_control"), []byte("+"+controller), 0o644)
			if err != nil && controller != "io" && controller != "cpuset" {
				return fmt.Errorf("enable the %s controller in %s: %w: start runnerd with Delegate=yes", controller, full, err)
			}
		}
	}
	return nil
}

// limit sets the subtree's limits. It may be called again, with other limits, while processes run.
func (c cgroup) limit(l sandbox.Limits) error {
	const period = 100_000 // microseconds
	quota := int64(l.CPU) * period / 1000
	var settings []setting
	if c.h.unified {
		settings = []setting{
			{"", "memory.max", strconv.FormatInt(l.Memory, 10)},
			{"", "memory.swap.max", "0"},
			{"", "cpu.max", fmt.Sprintf("%d %d", quota, period)},
			{"", "pids.max", strconv.FormatInt(l.PIDs, 10)},
		}
	} else {
		memory := strconv.FormatInt(l.Memory, 10)
		settings = []setting{
			{"memory", "memory.memsw.limit_in_bytes", "-1"}, // never below memory's, which may be about to rise
			{"memory", "memory.limit_in_bytes", memory},
			{"memory", "memory.memsw.limit_in_bytes", memory},
			{"cpu", "cpu.cfs_period_us", strconv.Itoa(period)},
			{"cpu", "cpu.cfs_quota_us", strconv.FormatInt(quota, 10)},
			{"pids", "pids.max", strconv.FormatInt(l.PIDs, 10)},
		}
	}
	for _, s := range settings {
		if err := c.write(s); err != nil {
			return err
		}
	}
	return c.weigh(l.CPU)
}

// setting is a value for a file of the subtree's root.
type setting struct{ controller, file, value string }

func (c cgroup) write(s setting) error {
	err := os.WriteFile(filepath.Join(c.dir(s.controller), s.file), []byte(s.value), 0o644)
	swapless := errors.Is(err, fs.ErrNotExist) && strings.Contains(s.file, "sw") // kernels without swap accounting
	if err != nil && !swapless {
		return fmt.Errorf("limit cgroup %s: write %s to %s: %w", c.path, s.value, s.file, err)
	}
	return nil
}

// weigh sets how much of the processors the subtree gets when others want them too: as much as that many
// processes do that each keep a processor busy.
//
// A processor is 100 of v2's weight and 1024 of v1's shares, what the kernel gives to a cgroup that does not say
// (kernel/sched/core.c).
func (c cgroup) weigh(cpu sandbox.MilliCPU) error {
	if c.h.unified {
		return c.write(setting{"", "cpu.weight", strconv.FormatInt(min(max(int64(cpu)/10, 1), 10_000), 10)})
	}
	return c.write(setting{"cpu", "cpu.shares", strconv.FormatInt(min(max(int64(cpu)*1024/1000, 2), 262_144), 10)})
}

// delegate gives a part of the subtree to the sandbox's root, so that an engine can make cgroups there:
// the directory and the files that move processes and enable controllers, not the limits
// (cgroup-v2, "Model of Delegation").
func (c cgroup) delegate(part string, uid uint32) error {
	for _, dir := range c.all() {
		dir = filepath.Join(dir, part)
		for _, name := range []string{"", "cgroup.procs", "tasks", "cgroup.subtree_control", "cgroup.threads"} {
			err := os.Lchown(filepath.Join(dir, name), int(uid), int(uid))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("delegate cgroup: %w", err)
			}
		}
	}
	return nil
}

// usage adds what a meter does not have.
func (c cgroup) usage(u *sandbox.Usage) {
	u.PIDs = number(c.dir("pids"), "pids.current")
	u.OOMKills = c.oomKills()
}

// oomKills is how many processes of the subtree were killed for want of memory.
func (c cgroup) oomKills() (n int64) {
	memory := c.dir("memory")
	if c.h.unified {
		return field(memory, "memory.events", "oom_kill")
	}
	// v1 counts a kill where the victim was, not in the ancestors (mm/memcontrol.c, memcg_memory_event).
	_ = filepath.WalkDir(memory, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			n += field(path, "memory.oom_control", "oom_kill")
		}
		return nil
	})
	return max(n, c.ooms.count()) // the victim's cgroup may be gone
}

// kill ends every process of the subtree and waits until there is none. Killing them one by one loses
// against processes that fork as fast: v2 kills all at once, on v1 they are frozen while they are killed.
func (c cgroup) kill(ctx context.Context) error {
	c.unthrottle()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if len(c.pids()) == 0 {
			return nil
		}
		if c.h.unified {
			_ = os.WriteFile(filepath.Join(c.dir(""), "cgroup.kill"), []byte("1"), 0o644) // since Linux 5.14
		} else {
			c.freeze("FROZEN")
		}
		pids := c.pids()
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if !c.h.unified {
			c.thaw() // a frozen process dies when it thaws
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cgroup %s: %d processes survive SIGKILL, such as %d: %w", c.path, len(pids), slices.Max(append(pids, 0)), context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// unthrottle lifts the subtree's limits on processor time, not its weight: a process needs some to die, and
// thousands with a fifth of a processor between them need minutes.
func (c cgroup) unthrottle() {
	file, none := "cpu.cfs_quota_us", "-1"
	if c.h.unified {
		file, none = "cpu.max", "max"
	}
	_ = filepath.WalkDir(c.dir("cpu"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.WriteFile(filepath.Join(path, file), []byte(none), 0o644)
		}
		return nil
	})
}

// pids lists the processes of the subtree.
func (c cgroup) pids() []int {
	var pids []int
	_ = filepath.WalkDir(c.dir("pids"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		file, err := os.Open(filepath.Join(path, "cgroup.procs"))
		if err != nil {
			return nil
		}
		defer file.Close()
		for scan := bufio.NewScanner(file); scan.Scan(); {
			if pid, err := strconv.Atoi(scan.Text()); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	return pids
}

// remove removes the emptied subtree. The kernel frees a dead process's cgroup a moment after its death,
// so a busy directory is tried again.
func (c cgroup) remove(ctx context.Context) error {
	var errs []error
	for _, dir := range c.all() {
		errs = append(errs, removeCgroupDir(ctx, dir))
	}
	return errors.Join(errs...)
}

func removeCgroupDir(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var dirs []string
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		var busy error
		for _, d := range slices.Backward(dirs) { // children before parents
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				busy = &fs.PathError{Op: "rmdir", Path: d, Err: err}
			}
		}
		if busy == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup: %w", busy)
		case <-time.After(wait):
		}
	}
}

// number reads a file that holds one number; 0 when there is none.
func number(dir, file string) int64 {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64)
	return n
}

// field reads one line's number of a file of "key value" lines; 0 when there is none.
func field(dir, file, key string) int64 {
	text, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), " "); ok && k == key {
			n, _ := strconv.ParseInt(v, 10, 64)
			return n
		}
	}
	return 0
}
