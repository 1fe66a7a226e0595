//go:build integration && bench

package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// benchMemory prints what the machinery of an idle sandbox holds: the proportional set sizes (proc(5),
// smaps_rollup) of its shim, its init and its engine.
func benchMemory(t *testing.T) {
	for _, c := range []struct {
		what    string
		nesting sandbox.Nesting
		image   string
		count   int
		goal    float64 // MiB
	}{
		{"memory of an idle sandbox", containerNesting, debian, 20, 8},
		{"memory of an idle sandbox with a Docker Engine", dindNesting, engine, 4, 90},
	} {
		var total int64
		var open []sandbox.Sandbox
		for i := range c.count {
			sb, err := openSandbox(t.Context(), c.nesting, sandbox.Spec{ID: fmt.Sprintf("memory-%d", i), Image: c.image})
			if err != nil {
				t.Fatal(err)
			}
			open = append(open, sb)
			if len(c.nesting) > 1 {
				engineReady(t, sb)
			}
		}
		time.Sleep(2 * time.Second)
		for _, sb := range open {
			pids := shims(sb.ID())
			if len(pids) == 0 {
				t.Fatalf("sandbox %s has no shim", sb.ID())
			}
			inside, ok := sandbox.As[interface{ PIDs() []int }](sb)
			if !ok {
				t.Fatalf("%T does not tell its processes", sb)
			}
			for _, pid := range append(pids, inside.PIDs()...) {
				total += pss(pid)
			}
		}
		for _, sb := range open {
			closeSandbox(t, sb)
		}
		each := float64(total) / float64(c.count) / (1 << 20)
		absolute(c.what, fmt.Sprintf("%.1f MiB", each), fmt.Sprintf("<= %.0f", c.goal), each <= c.goal)
	}
}

// shims are the containerd shims of a sandbox.
func shims(id string) []int { return processesWith("-id\x00" + id + ".") }

// pss is a process's proportional set size in bytes.
func pss(pid int) int64 { return procField(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss:") << 10 }

// procField reads a number of a file of "Key: number" lines; 0 if there is none.
func procField(file, key string) int64 {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return n
		}
	}
	return 0
}

// benchDensity lets a daemon keep 1,000 sandboxes ready, kills it, and times the sweep at the next start.
func benchDensity(t *testing.T) {
	const count = 1000
	d := startDaemon(t, "")
	d.stop(syscall.SIGTERM)
	config := filepath.Join(d.state, "runnerd.yaml")
	without, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	with := fmt.Sprintf("%spool: [{sandbox: container, image: %q, size: %d}]\n", without, debian, count)
	if err := os.WriteFile(config, []byte(with), 0o644); err != nil {
		t.Fatal(err)
	}
	free := func() int64 { return procField("/proc/meminfo", "MemAvailable:") << 10 }
	live := func() int {
		dirs, _ := os.ReadDir(filepath.Join(d.state, "run/sandboxes"))
		return len(dirs)
	}
	d.start()
	at := map[int]time.Time{}
	memory := map[int]int64{}
	began := time.Now()
	for next := 100; next <= count; {
		if n := live(); n >= next {
			at[next], memory[next] = time.Now(), free()
			next += 100
		}
		if time.Since(began) > 10*time.Minute {
			t.Fatalf("%d of %d sandboxes after %s:\n%s", live(), count, time.Since(began), d.log)
		}
		time.Sleep(10 * time.Millisecond)
	}
	first, last := at[200].Sub(at[100]), at[count].Sub(at[count-100])
	absolute(fmt.Sprintf("%d live sandboxes: started, one after another", count), fmt.Sprintf("%.1f /s", (count-100)/at[count].Sub(at[100]).Seconds()), "", false)
	absolute("  the last 100 starts against the second 100", fmt.Sprintf("%.2f x", last.Seconds()/first.Seconds()), "<= 1.2", last.Seconds()/first.Seconds() <= 1.2)
	slope := float64(memory[100]-memory[count]) / (count - 100) / (1 << 20)
	absolute("  memory of the machine, a sandbox", fmt.Sprintf("%.1f MiB", slope), "", false)

	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait()
	if err := os.WriteFile(config, without, 0o644); err != nil {
		t.Fatal(err)
	}
	began = time.Now()
	d.start()
	took := time.Since(began)
	absolute("  swept by the next start after kill -9", fmt.Sprintf("%.1f s", took.Seconds()), "<= 5 s", took <= 5*time.Second)
	if n := live(); n > 0 {
		t.Errorf("%d sandboxes are left", n)
	}
}
