//go:build integration

package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/rig"
)

// newMeasurement returns what looks for leftovers of a measurement, whose sandboxes have a state directory of their own.
func newMeasurement(t *testing.T) (d *daemon, state string) {
	t.Helper()
	bin, err := filepath.Abs("../bin/runnerd")
	if err != nil {
		t.Fatal(err)
	}
	state, err = os.MkdirTemp("/var/tmp", "runnerd-measure-") // not on a tmpfs or an overlay
	if err == nil {
		err = os.Chmod(state, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	d = newDaemon(t, bin, filepath.Join(state, "measure/running"))
	d.flags, d.log = []string{"--state-dir", state}, &bytes.Buffer{}
	return d, state
}

// nothingMeasured asserts that a measurement that has ended has left nothing but reports.
func nothingMeasured(t *testing.T, d *daemon) {
	t.Helper()
	d.nothingLeft()
	for _, path := range []string{d.state, "/run/" + d.instance() + ".probes"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("left behind: %s", path)
		}
	}
	programs, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, p := range programs {
		if program, _ := os.Readlink(p); filepath.Base(program) == "runnerd-probe" {
			t.Errorf("left behind: %s, %s", p, program)
		}
	}
}

// TestNestingMeasure measures to depth 3, on real engines, little of everything, and looks at what was measured, not at
// how long it took.
func TestNestingMeasure(t *testing.T) {
	d, state := newMeasurement(t)
	stdout, stderr, code := d.run("nesting", "measure", "--depth", "3", "--blocks", "1", "--reps", "1", "--loop", "1ms", "--json", "--compare",
		"--probes", "integer,getppid,fork-exec,stat,copy-up,fsync,tcp-rtt,udp-rtt,neighbour-tcp-rtt,dns,50-execs,container-start,wake-p99",
		"--kinds", "container,dind", "--instances", "1,2", "--go-image", "", "--max-pressure", "100000")
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	nothingMeasured(t, d)
	var r struct {
		measure.Report
		Files []string
	}
	if err := json.Unmarshal([]byte(stdout), &r); err != nil {
		t.Fatal(err, stdout)
	}
	for i, p := range r.Places {
		if p.Depth != i || len(p.PIDs) != i+1 || p.Interfaces["eth0"] == 0 || i > 0 && (p.Dir.FS != "overlay" || p.Filters < 1) {
			t.Errorf("place %d: %+v", i, p)
		}
	}
	var series []string
	for _, s := range r.Series {
		series = append(series, s.Name)
		if len(s.Places) < 2 || len(s.Probes) == 0 {
			t.Errorf("series %s: %d places, %d probes", s.Name, len(s.Places), len(s.Probes))
		}
		for _, p := range s.Probes {
			measured := 0
			for _, c := range p.Comparisons {
				if measured += c.Pairs; c.Pairs > 0 && c.Nanoseconds <= 0 {
					t.Errorf("series %s, probe %s at %s: %+v", s.Name, p.Name, c.Place, c)
				}
			}
			if measured == 0 {
				t.Errorf("series %s, probe %s: nothing was measured", s.Name, p.Name)
			}
		}
	}
	if len(r.Places) != 4 || !slices.Equal(series, measure.Causes()) {
		t.Errorf("%d places, series %v", len(r.Places), series)
	}
	for probe, first := range map[string]int{"integer": 0, "tcp-rtt": 0, "dns": 0, "copy-up": 1, rig.ContainerStart: 1} {
		for depth := first; depth <= 3; depth++ {
			if _, ok := r.Series[0].At(probe, depth); !ok {
				t.Errorf("%s was not measured at depth %d", probe, depth)
			}
		}
	}
	for _, k := range r.Kinds {
		if k.Name != "wasm" && (len(k.Starts) != 2 || len(k.Points) != 3 || k.MiB.Slope <= 0) {
			t.Errorf("kind %+v", k)
		}
	}
	found := map[string]int{"overlays on one another": 2, "upper layers on an overlay": 0, "user namespaces in one another": 32}
	for _, l := range r.Limits {
		if want, ok := found[l.Name]; (ok && l.Found != want) || l.Kernel == "" || l.Says == "" {
			t.Errorf("limit %+v", l)
		}
	}
	if len(r.Limits) != 4 || len(r.Claims) != 11 || len(r.Goals) == 0 {
		t.Errorf("%d limits, %d claims, %d goals", len(r.Limits), len(r.Claims), len(r.Goals))
	}
	for _, ext := range []string{".json", ".md", ".svg"} {
		if !slices.ContainsFunc(r.Files, func(f string) bool {
			info, err := os.Stat(f)
			return strings.HasPrefix(f, state) && strings.HasSuffix(f, ext) && err == nil && info.Size() > 0
		}) {
			t.Errorf("no report %s among %v", ext, r.Files)
		}
	}
}

// TestNestingMeasureCancelled interrupts a measurement while the engine at depth 2 starts, and while probes run.
func TestNestingMeasureCancelled(t *testing.T) {
	for _, moment := range []string{"starting the engine of depth 2", "contended: visit"} {
		d, _ := newMeasurement(t)
		cmd := exec.Command(d.bin, append(d.flags, "nesting", "measure", "--depth", "2", "--blocks", "100", "--reps", "1", "--loop", "1ms",
			"--kinds", "", "--go-image", "", "--series", "contended", "--probes", "wake-p99")...)
		stderr, err := cmd.StderrPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		interrupted := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
		buffer, said := make([]byte, 4096), ""
		for n := 0; err == nil; n, err = stderr.Read(buffer) {
			before := strings.Contains(said, moment)
			said += string(buffer[:n])
			if !before && strings.Contains(said, moment) {
				_ = cmd.Process.Signal(syscall.SIGINT)
			}
		}
		_ = cmd.Wait()
		interrupted.Stop()
		if code := cmd.ProcessState.ExitCode(); code != 130 || !strings.Contains(said, moment) {
			t.Errorf("exit code %d: %s", code, said)
		}
		nothingMeasured(t, d)
	}
}
