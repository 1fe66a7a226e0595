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
	"github.com/runnerd/runnerd/sandbox/dind"
)

const (
	ksmDir = "/sys/kernel/mm/ksm"
	thp    = "/sys/kernel/mm/transparent_hugepage/enabled"
)

// setting sets a switch of the machine's until the end of the test.
func setting(t *testing.T, file, value string) {
	t.Helper()
	before, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, []byte(value), 0o644)
	}
	if err != nil {
		t.Fatalf("%v: this kernel cannot be asked", err)
	}
	was := strings.TrimSpace(string(before))
	if _, rest, ok := strings.Cut(was, "["); ok {
		was, _, _ = strings.Cut(rest, "]")
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, []byte(was), 0o644); err != nil {
			t.Error(err)
		}
	})
}

func ksm(file string) int64 {
	text, _ := os.ReadFile(filepath.Join(ksmDir, file))
	n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	return n
}

// ksmdTime is the processor time that the kernel's thread has used (proc(5), stat; ticks are 10 ms).
func ksmdTime(t *testing.T) time.Duration {
	t.Helper()
	comms, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, c := range comms {
		if comm, _ := os.ReadFile(c); string(comm) == "ksmd\n" {
			stat, _ := os.ReadFile(filepath.Join(filepath.Dir(c), "stat"))
			fields := strings.Fields(string(stat))
			user, _ := strconv.ParseInt(fields[13], 10, 64)
			system, _ := strconv.ParseInt(fields[14], 10, 64)
			return time.Duration(user+system) * 10 * time.Millisecond
		}
	}
	t.Fatal("there is no ksmd")
	return 0
}

// engines opens sandboxes with engines that are tuned so.
func engines(t *testing.T, name string, count int, tuning dind.Tuning) (pids [][]int) {
	t.Helper()
	driver := dind.New(dind.Config{Image: engine, MTU: host.container.MTU(), Mirror: fmt.Sprintf("%s:%d", host.container.Gateway(), host.port), Tuning: tuning})
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: driver}
	for i := range count {
		sb, err := sandbox.Open(t.Context(), nil, dindNesting, sandbox.Spec{ID: fmt.Sprintf("%s-%d", name, i), Image: engine}, drivers, sandbox.DefaultPolicy())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeSandbox(t, sb) })
		engineReady(t, sb)
		inside, _ := sandbox.As[interface{ PIDs() []int }](sb)
		pids = append(pids, inside.PIDs())
	}
	return pids
}

func rollup(pids [][]int, key string) (sum int64) {
	for _, of := range pids {
		for _, pid := range of {
			sum += procField(fmt.Sprintf("/proc/%d/smaps_rollup", pid), key) << 10
		}
	}
	return sum
}

// benchSharing measures what sharing equal pages of engines saves and costs, and what huge pages do to their memory.
// The switches are the machine's, and are what they were afterwards.
func benchSharing(t *testing.T) {
	const count = 3
	mib := func(n int64) string { return fmt.Sprintf("%.1f MiB", float64(n)/count/(1<<20)) }
	t.Run("ksm", func(t *testing.T) {
		plain, merged := engines(t, "ksm-off", count, dind.Tuning{}), engines(t, "ksm-on", count, dind.Tuning{Merge: true})
		setting(t, filepath.Join(ksmDir, "run"), "1")
		t.Cleanup(func() { _ = os.WriteFile(filepath.Join(ksmDir, "run"), []byte("2"), 0o644) }) // unmerges, then as it was
		spent, scans := ksmdTime(t), ksm("full_scans")
		for deadline := time.Now().Add(90 * time.Second); ksm("full_scans") < scans+3 && time.Now().Before(deadline); time.Sleep(time.Second) {
		}
		took := ksmdTime(t) - spent
		absolute("KSM, 3 engines: memory of one, without", mib(rollup(plain, "Pss:")), "", false)
		absolute("  memory of one, with", mib(rollup(merged, "Pss:")), "", false)
		absolute("  anonymous memory of one", mib(rollup(merged, "Anonymous:")), "", false)
		absolute("  saved for one, the kernel's own figure", mib(ksm("general_profit")), "", false)
		absolute("  processor time until all was seen 3 times, one", millis(took/count), "", false)
		const idle = 15 * time.Second
		spent = ksmdTime(t)
		time.Sleep(idle)
		share := float64(ksmdTime(t)-spent) / float64(idle)
		absolute("  of a processor, for good, all of them", fmt.Sprintf("%.2f %%", 100*share), "<= 0.1 %", share <= 0.001)
	})
	for _, mode := range []string{"madvise", "always"} {
		t.Run("huge pages "+mode, func(t *testing.T) {
			setting(t, thp, mode)
			huge, small := engines(t, "huge", count, dind.Tuning{}), engines(t, "small", count, dind.Tuning{SmallPages: true})
			time.Sleep(5 * time.Second)
			absolute("huge pages, "+mode+": memory of an engine", mib(rollup(huge, "Pss:")), "", false)
			absolute("  of which in huge pages", mib(rollup(huge, "AnonHugePages:")), "", false)
			absolute("  memory of one that has none", mib(rollup(small, "Pss:")), "", false)
		})
	}
}

// benchUsage measures what accounting 100 jobs takes: the processor time of this process, in which the driver is, while
// nothing else happens. It is an upper bound.
func benchUsage(t *testing.T) {
	const count, span = 100, 60 * time.Second
	for i := range count {
		sb, err := openSandbox(t.Context(), containerNesting, sandbox.Spec{ID: fmt.Sprintf("usage-%d", i), Image: debian})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { closeSandbox(t, sb) })
	}
	time.Sleep(30 * time.Second) // until all are looked at as seldom as they will be
	own := func() time.Duration {
		var r syscall.Rusage
		_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	before := own()
	time.Sleep(span)
	share := float64(own()-before) / float64(span)
	absolute("accounting 100 sandboxes, of a processor", fmt.Sprintf("%.3f %%", 100*share), "<= 0.1 %", share <= 0.001)
}
