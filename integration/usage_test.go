//go:build integration

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// kernelCPU is what the kernel says of a cgroup of the driver's, by a way of its own.
func kernelCPU(t *testing.T, path string) time.Duration {
	t.Helper()
	if !unified() {
		text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct", path, "cpuacct.usage"))
		if err != nil {
			t.Error(err)
		}
		n, _ := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
		return time.Duration(n)
	}
	text, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", path, "cpu.stat"))
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[0] == "usage_usec" {
			n, _ := strconv.ParseInt(fields[1], 10, 64)
			return time.Duration(n) * time.Microsecond
		}
	}
	return 0
}

// burn is a shell command that keeps a processor busy for so many hundredths of a second of its own time.
func burn(hundredths int) string {
	return fmt.Sprintf(`perl -e 'while ((times)[0] + (times)[1] < %d / 100) {}'`, hundredths)
}

// near reports whether a is b, give or take a share of b.
func near(a, b, share float64) bool { return a >= b*(1-share) && a <= b*(1+share) }

func partOf(u sandbox.Usage, name sandbox.PartName) sandbox.Part {
	for _, p := range u.Parts {
		if p.Name == name {
			return p
		}
	}
	return sandbox.Part{}
}

// assertSums holds that payload and machinery are all that was used.
func assertSums(t *testing.T, u sandbox.Usage) {
	t.Helper()
	payload, machinery := u.Sum(true), u.Sum(false)
	for what, c := range map[string]struct{ sum, whole float64 }{
		"processor": {float64(payload.CPU + machinery.CPU), float64(u.CPU)},
		"memory":    {float64(payload.MemoryAverage + machinery.MemoryAverage), float64(u.MemoryAverage)},
		"read":      {float64(payload.Read + machinery.Read), float64(u.Read)},
		"written":   {float64(payload.Written + machinery.Written), float64(u.Written)},
	} {
		if !near(c.sum, c.whole, 0.01) {
			t.Errorf("%s: the parts are %.0f, the whole is %.0f", what, c.sum, c.whole)
		}
	}
	if other := partOf(u, sandbox.PartOther).CPU; other > u.CPU/100 {
		t.Errorf("nobody's are %s of %s", other, u.CPU)
	}
	for _, p := range u.Parts {
		t.Logf("%-12s payload %-5v cpu %-12s memory %5.1f MiB, at most %5.1f; read %d, written %d", p.Name, p.Payload, p.CPU,
			float64(p.MemoryAverage)/(1<<20), float64(p.MemoryPeak)/(1<<20), p.Read, p.Written)
	}
	t.Logf("whole: cpu %s, memory %d, at most %d, read %d, written %d, pressure %+v, set-up %v, tear-down %v", u.CPU, u.MemoryAverage, u.MemoryPeak, u.Read, u.Written, u.Pressure, u.SetUp, u.TearDown)
}

// TestUsage has each part of a sandbox with an engine do a known amount of work, and looks whose it is said to be.
func TestUsage(t *testing.T) {
	const id = "usage"
	sb, err := openDinD(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer closeClean(t, sb)
	script := func(text string) {
		t.Helper()
		if out, exit := run(t, sb, text); !exit.Success() {
			t.Fatalf("%s: %v: %s", text, exit, out)
		}
	}
	pod, _ := sandbox.As[sandbox.Pod](sb)
	service, err := pod.Add(t.Context(), sandbox.Companion{Name: "db", Image: debian})
	if err != nil {
		t.Fatal(err)
	}
	if exit, err := service.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", burn(40)}}); err != nil || !exit.Success() {
		t.Fatal(exit, err)
	}
	if err := service.Close(t.Context()); err != nil { // what it has used stays its own
		t.Fatal(err)
	}
	script(burn(100))
	script("dd if=/dev/zero of=/workspace/f bs=1M count=32 oflag=direct status=none && dd if=/workspace/f of=/dev/null bs=1M iflag=direct status=none")
	script("docker run --rm --cgroup-parent /elsewhere debian:bookworm-slim sh -c " + strconv.Quote(burn(60)))
	script("docker run --rm debian:bookworm-slim true")
	script("mkdir /workspace/c && printf 'FROM debian:bookworm-slim\\nRUN %s\\n' " + strconv.Quote(burn(70)) + " >/workspace/c/Dockerfile && docker build -q /workspace/c")

	kernel := kernelCPU(t, filepath.Join(host.name, id)) + kernelCPU(t, filepath.Join(host.name+".shims", id))
	u, err := sb.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	assertSums(t, u)
	if !near(float64(u.CPU), float64(kernel), 0.01) {
		t.Errorf("the sandbox has used %s, the kernel says %s", u.CPU, kernel)
	}
	for name, want := range map[sandbox.PartName][2]time.Duration{
		sandbox.PartScript:     {time.Second, 4 * time.Second}, // docker's client is of it
		sandbox.PartServices:   {400 * time.Millisecond, 600 * time.Millisecond},
		sandbox.PartContainers: {1300 * time.Millisecond, 3 * time.Second},
		sandbox.PartDockerd:    {10 * time.Millisecond, 30 * time.Second},
		sandbox.PartContainerd: {10 * time.Millisecond, 30 * time.Second},
		sandbox.PartInnerShims: {10 * time.Millisecond, 30 * time.Second},
		sandbox.PartShim:       {10 * time.Millisecond, 30 * time.Second},
		sandbox.PartInit:       {time.Millisecond, 2 * time.Second},
	} {
		if got := partOf(u, name).CPU; got < want[0] || got > want[1] {
			t.Errorf("%s has used %s, want %s to %s", name, got, want[0], want[1])
		}
	}
	if p := partOf(u, sandbox.PartScript); p.Written < 32<<20 || p.Written > 40<<20 || p.Read < 32<<20 || p.Read > 40<<20 {
		t.Errorf("the script has written %d and read %d, want 32 MiB each", p.Written, p.Read)
	}
	if u.Engine == nil || !u.Engine.Started || u.Engine.Ready == 0 || !u.Engine.Used(u) {
		t.Errorf("the engine: %+v", u.Engine)
	}
	if len(u.Services) != 1 || u.Services[0].Image != debian || u.Services[0].Took == 0 {
		t.Errorf("services: %+v", u.Services)
	}
	pressure, err := os.ReadFile("/proc/pressure/cpu")
	if told := err == nil && len(pressure) > 0; told != (u.Pressure != nil) || told && u.Pressure.CPU.Some == 0 {
		t.Errorf("pressure: %+v, the kernel tells it: %v", u.Pressure, told)
	}
	closeClean(t, sb)
	closed, err := sb.Usage(context.Background())
	if err != nil || len(closed.TearDown) < 4 || closed.CPU < u.CPU {
		t.Errorf("after its end: %+v, %v", closed, err)
	}
	t.Logf("set-up %v, tear-down %v", closed.SetUp, closed.TearDown)
}

// TestUsageOfJobs has a daemon run jobs, and looks at what it tells of them: in their logs, in --json, in the metrics, as
// advice.
func TestUsageOfJobs(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	d := startDaemon(t, "metrics: {address: \""+address+"\"}\n")
	stdout, stderr, code := d.script([]string{"--project", "a", "--name", "both"}, `
		for i in 1 2; do docker pull -q debian:bookworm-slim >&2; docker rmi -f debian:bookworm-slim >&2; done`+"\n"+warmBuild)
	if code != 0 {
		t.Fatalf("exit code %d: %s%s", code, stdout, stderr)
	}
	for range 20 { // as many as there must be to go by
		if _, stderr, code := d.script([]string{"--project", "b", "--name", "unused"}, "true"); code != 0 {
			t.Fatal(stderr)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM debian:bookworm-slim\nCOPY Dockerfile /\nRUN "+burn(50)+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := d.run("build", "--project", "c", dir); code != 0 {
		t.Fatal(stderr)
	}
	type told struct {
		ID, Name string
		Result   struct{ Usage sandbox.Usage }
	}
	stdout, _, _ = d.run("jobs", "--all", "--json")
	var jobs []told
	if err := json.Unmarshal([]byte(stdout), &jobs); err != nil || len(jobs) != 22 {
		t.Fatalf("%v: %s", err, stdout)
	}
	build, unused, both := jobs[0], jobs[1], jobs[21]
	t.Run("both", func(t *testing.T) {
		u := both.Result.Usage
		assertSums(t, u)
		if u.Part(sandbox.PartBuildKitd).CPU == 0 || u.Part(sandbox.PartBuildSteps).CPU == 0 || u.Part(sandbox.PartDockerd).CPU == 0 {
			t.Error("not all layers have used something")
		}
		var image sandbox.PulledImage
		for _, p := range u.Engine.Images {
			if p.Image == "debian:bookworm-slim" {
				image = p
			}
		}
		if image.Times < 2 || image.Bytes < 40<<20 || image.Took == 0 || !u.Engine.Built || !u.Engine.Used(u) {
			t.Errorf("the engine: %+v", u.Engine)
		}
		ways := map[sandbox.CopyWay]int64{}
		for _, c := range u.Copied {
			ways[c.Way] = c.Bytes
		}
		if ways[sandbox.CopyPull] < 40<<20 || ways[sandbox.CopyContext] == 0 {
			t.Errorf("copied: %v", ways)
		}
		t.Logf("copied %v; engine %+v", ways, u.Engine)
		log, _, _ := d.run("logs", both.ID)
		_, log2, _ := d.run("logs", both.ID)
		if log += log2; !strings.Contains(log, "used ") || !strings.Contains(log, " of processor: payload ") || !strings.Contains(log, "set-up: ") {
			t.Errorf("the log does not say what the job has used:\n%s", log)
		}
		if len(u.TearDown) < 5 {
			t.Errorf("tear-down: %v", u.TearDown)
		}
	})
	t.Run("build", func(t *testing.T) {
		u := build.Result.Usage
		assertSums(t, u)
		if steps := u.Part(sandbox.PartBuildSteps); steps.CPU < 500*time.Millisecond || u.Part(sandbox.PartBuildKitd).CPU == 0 || len(u.SetUp) == 0 {
			t.Errorf("%+v", u)
		}
		if len(u.Copied) != 1 || u.Copied[0].Way != sandbox.CopyContext || u.Copied[0].Bytes == 0 {
			t.Errorf("copied: %+v", u.Copied)
		}
	})
	if u := unused.Result.Usage; u.Engine == nil || u.Engine.Used(u) {
		t.Errorf("an engine that nobody used: %+v", u.Engine)
	}
	stdout, stderr, code = d.run("nesting", "advise")
	if code != 0 || !strings.HasPrefix(stdout, "22 jobs since ") || !strings.Contains(stdout, "21 jobs have waited for a sandbox to be opened") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	t.Log(stdout)
	res, err := http.Get("http://" + address + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	stdout = string(text)
	for _, want := range []string{
		`runnerd_sandbox_cpu_seconds_total{kind="machinery",part="dockerd",source="script"}`, `runnerd_sandbox_copied_bytes_total{source="script",way="pull"}`,
		`runnerd_sandbox_stage_duration_seconds_count{phase="close",source="script",stage="network"}`,
	} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the metrics do not have %s", want)
		}
	}
}
