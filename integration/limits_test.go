//go:build integration

package integration

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// openLimited starts a container sandbox that is closed, and looked after, at the end of the test.
func openLimited(t *testing.T, id string, l sandbox.Limits) *container.Sandbox {
	t.Helper()
	sb, err := host.container.Start(t.Context(), nil, sandbox.Spec{ID: id, Image: debian, Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeClean(t, sb) })
	return sb.(*container.Sandbox)
}

// closeClean closes a sandbox and asserts that nothing of it is left.
func closeClean(t *testing.T, sb sandbox.Sandbox) {
	t.Helper()
	if err := sb.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if left := host.leftovers(sb.ID()); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// unified reports whether the machine's cgroups are version 2.
func unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// cgroupText reads a file of a sandbox's cgroup: v2's, or one of a v1 controller.
func cgroupText(t *testing.T, id, v2, controller, v1 string) string {
	t.Helper()
	file := filepath.Join("/sys/fs/cgroup", host.name, id, v2)
	if !unified() {
		file = filepath.Join("/sys/fs/cgroup", controller, host.name, id, v1)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Error(err)
	}
	return strings.TrimSpace(string(text))
}

// assertLimits compares what the kernel has with what was asked for.
func assertLimits(t *testing.T, id string, l sandbox.Limits) {
	t.Helper()
	quota := strconv.FormatInt(int64(l.CPU)*100, 10) // microseconds of 100 ms
	if unified() {
		quota += " 100000"
	}
	for _, c := range []struct{ v2, controller, v1, want string }{
		{"memory.max", "memory", "memory.limit_in_bytes", strconv.FormatInt(l.Memory, 10)},
		{"cpu.max", "cpu", "cpu.cfs_quota_us", quota},
		{"pids.max", "pids", "pids.max", strconv.FormatInt(l.PIDs, 10)},
	} {
		if got := cgroupText(t, id, c.v2, c.controller, c.v1); got != c.want {
			t.Errorf("%s is %q, want %q", c.v2, got, c.want)
		}
	}
}

func run(t *testing.T, sb sandbox.Host, script string) (string, sandbox.Exit) {
	t.Helper()
	out := sandbox.NewTail(4096)
	exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Stdout: out, Stderr: out})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), exit
}

// TestLimits holds that a sandbox gets the limits it was started with, and no more.
func TestLimits(t *testing.T) {
	limits := sandbox.Limits{CPU: 500, Memory: 128 << 20, PIDs: 64}

	t.Run("Memory", func(t *testing.T) {
		sb := openLimited(t, "limits-memory", limits)
		assertLimits(t, sb.ID(), limits)
		if out, exit := run(t, sb, "tail /dev/zero"); !exit.OOM || exit.Code != 137 {
			t.Errorf("got %v, %q, out of memory: %v", exit, out, exit.OOM)
		}
		usage, err := sb.Usage(t.Context())
		if err != nil || usage.OOMKills == 0 || usage.MemoryPeak < limits.Memory/2 || usage.MemoryPeak > limits.Memory || usage.CPU == 0 || usage.PIDs == 0 {
			t.Errorf("%+v, %v", usage, err)
		}
		if _, exit := run(t, sb, "exit 137"); exit.OOM {
			t.Error("a process that exits with 137 by itself counts as out of memory")
		}
	})
	t.Run("CPU", func(t *testing.T) {
		sb := openLimited(t, "limits-cpu", limits)
		before, _ := sb.Usage(t.Context())
		began := time.Now()
		run(t, sb, "timeout 2 sh -c 'while :; do :; done' & timeout 2 sh -c 'while :; do :; done'; wait")
		after, _ := sb.Usage(t.Context())
		used, granted := after.CPU-before.CPU, time.Since(began)/2
		if used < granted/2 || used > granted*5/4 {
			t.Errorf("used %s of the processor, may use %s", used, granted)
		}
	})
	t.Run("PIDs", func(t *testing.T) {
		sb := openLimited(t, "limits-pids", limits)
		if out, exit := run(t, sb, "for i in $(seq 100); do sleep 60 & done"); exit.Success() || !strings.Contains(out, "ork") {
			t.Errorf("100 processes: got %v, %q", exit, out)
		}
		if out, exit := run(t, sb, "echo again"); !exit.Success() || out != "again" {
			t.Errorf("after that: got %v, %q", exit, out)
		}
	})
	t.Run("ForkBomb", func(t *testing.T) {
		sb := openLimited(t, "limits-bomb", sandbox.Limits{CPU: 2000, Memory: 1 << 30, PIDs: 500})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			_, _ = sb.Exec(context.WithoutCancel(t.Context()), sandbox.Process{Args: []string{"sh", "-c", "f() { f | f & f; }; f; sleep 600"}})
		}()
		peak := 0
		for deadline := time.Now().Add(time.Minute); peak < 400 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			now, _ := strconv.Atoi(cgroupText(t, sb.ID(), "pids.current", "pids", "pids.current"))
			peak = max(peak, now)
		}
		if peak < 400 {
			t.Errorf("the bomb has %d processes", peak)
		}
		began := time.Now()
		closeClean(t, sb)
		t.Logf("closed with %d processes in %s", peak, time.Since(began))
		<-ended
	})
	t.Run("Pool", func(t *testing.T) {
		nesting := sandbox.Nesting{sandbox.Container}
		open := func(ctx context.Context, _ sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
			return host.container.Start(ctx, nil, s)
		}
		pool := sandbox.NewPool([]sandbox.PoolKind{{Nesting: nesting, Spec: sandbox.Spec{Image: debian, Limits: limits}, Size: 1}}, sandbox.Spare{}, open, slog.Default())
		t.Cleanup(func() {
			if err := pool.Close(context.Background()); err != nil {
				t.Error(err)
			}
		})
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			if ready, _ := pool.Ready(); ready == 1 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the pool is not ready")
			}
		}
		more := sandbox.Limits{CPU: 1500, Memory: 512 << 20, PIDs: 1000}
		sb, ok := pool.Take(nesting, sandbox.Spec{Image: debian, Limits: more})
		if !ok {
			t.Fatal("the pool gives none")
		}
		defer closeClean(t, sb)
		assertLimits(t, sb.ID(), more)
		less := sandbox.Limits{CPU: 200, Memory: 64 << 20, PIDs: 50}
		if err := sb.(*container.Sandbox).SetLimits(less); err != nil {
			t.Error(err)
		}
		assertLimits(t, sb.ID(), less)
		if _, exit := run(t, sb, "tail /dev/zero"); !exit.OOM {
			t.Errorf("got %v, want out of memory", exit)
		}
	})
	t.Run("Engine", func(t *testing.T) {
		sb, err := host.container.StartEngine(t.Context(), sandbox.Spec{ID: "limits-engine", Image: engine, Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		defer closeClean(t, sb)
		for name, script := range map[string]string{
			"lifts a limit":         `cd /sys/fs/cgroup; for f in memory.max pids.max cpu.max memory/memory.limit_in_bytes pids/pids.max cpu/cpu.cfs_quota_us; do if [ -e $f ] && echo -1 >$f; then exit 0; fi; if [ -e $f ] && echo max >$f; then exit 0; fi; done; exit 1`,
			"leaves its cgroup":     `mkdir /tmp/c && if mount -t cgroup2 none /tmp/c; then test "$(cat /tmp/c/cgroup.procs | wc -l)" -gt 50; else exit 1; fi`,
			"sees the machine's":    `grep -q limits-engine /proc/self/cgroup`,
			"cannot make its own":   `cd /sys/fs/cgroup; [ -e cgroup.controllers ] || cd pids; ! mkdir x || ! rmdir x`,
			"cannot move processes": `cd /sys/fs/cgroup; [ -e cgroup.controllers ] || cd pids; mkdir y && ! sh -c 'echo $$ >y/cgroup.procs'`,
		} {
			if out, exit := run(t, sb, script); exit.Success() {
				t.Errorf("an engine %s: %s", name, out)
			}
		}
	})
}
