package container

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

func TestDeviceBytes(t *testing.T) {
	for text, want := range map[string][2]int64{
		"7:30 Read 9\n7:3 Read 12\n7:3 Write 34\n7:3 Total 46\nTotal 55\n":                    {12, 34},
		"8:0 rbytes=1 wbytes=2\n7:3 rbytes=12 wbytes=34 rios=1 wios=1 dbytes=0 dios=0\n7:4\n": {12, 34},
		"Total 0\n": {},
		"7:3\n":     {},
		"":          {},
	} {
		if read, written := deviceBytes(text, "7:3"); read != want[0] || written != want[1] {
			t.Errorf("%q: %d, %d, want %v", text, read, written, want)
		}
	}
}

func TestWaits(t *testing.T) {
	w := waits("some avg10=0.00 avg60=1.50 avg300=2.30 total=12\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
	if w.Some != 12*time.Microsecond || w.Full != 7*time.Microsecond {
		t.Errorf("%+v", w)
	}
}

func TestLeadingNumber(t *testing.T) {
	for text, want := range map[string]int64{"123\n": 123, "  7 8": 7, "": 0, "max\n": 0} {
		if got := leadingNumber([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// TestProcess holds that a process's clock is its own and stays when it has ended.
func TestProcess(t *testing.T) {
	cmd := exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; read x")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := watchProcess(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	var cpu time.Duration
	var memory int64
	for deadline := time.Now().Add(10 * time.Second); cpu < 10*time.Millisecond && time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		cpu, memory = p.look()
	}
	if cpu < 10*time.Millisecond || memory <= 0 || memory > 64<<20 {
		t.Errorf("%s, %d bytes", cpu, memory)
	}
	_ = in.Close()
	_ = cmd.Wait()
	if after, memory := p.look(); after < cpu || memory != 0 {
		t.Errorf("after its end: %s and %d bytes, before %s", after, memory, cpu)
	}
	if p.pid != cmd.Process.Pid {
		t.Error("another process")
	}
}

// TestPartTally holds that an average weighs by time, whenever it is looked.
func TestPartTally(t *testing.T) {
	var a partTally
	a.look(0, 0)
	a.look(100, 2*time.Second) // a slope: 50 on average
	a.look(100, 8*time.Second)
	if a.area != 900 || a.now != 100 || a.MemoryPeak != 100 {
		t.Errorf("%+v", a)
	}
}

// TestMeterSums holds with cgroups that are files that the parts are all there is, and that what is gone is kept.
func TestMeterSums(t *testing.T) {
	h := hierarchies{dirs: map[string]string{}}
	for _, controller := range []string{"cpuacct", "memory", "blkio"} {
		h.dirs[controller] = filepath.Join(t.TempDir(), controller)
	}
	set := func(path string, cpu, memory int64) {
		t.Helper()
		for file, value := range map[string]int64{"cpuacct/cpuacct.usage": cpu, "memory/memory.usage_in_bytes": memory, "memory/memory.max_usage_in_bytes": 2 * memory} {
			controller, name := filepath.Split(file)
			dir := filepath.Join(h.dirs[filepath.Clean(controller)], path)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, name), []byte(strconv.FormatInt(value, 10)+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	const self = 10 * int64(time.Hour) // more than this process, which stands for the inits, has used
	c := cgroup{h: h, path: "/test/job"}
	set("/test/job", 5*self, 5<<30)
	set("/test/job/main", 2*self, 2<<30)
	set("/test/job/engine", 3*self, 3<<30)
	set("/test/job/engine/init", self, 1<<30)
	set("/test.shims/job", 1000, 1<<20)
	synctest.Test(t, func(t *testing.T) {
		m := newMeter(c)
		m.add(cgroup{h: h, path: "/test/job/main"}, sandbox.PartScript, false, os.Getpid())
		m.add(cgroup{h: h, path: "/test/job/engine"}, sandbox.PartContainers, true, os.Getpid())
		time.Sleep(time.Minute)
		check := func(u sandbox.Usage) {
			t.Helper()
			payload, machinery := u.Sum(true), u.Sum(false)
			if u.CPU != time.Duration(5*self+1000) || payload.CPU+machinery.CPU != u.CPU {
				t.Errorf("%s and %s of %s", payload.CPU, machinery.CPU, u.CPU)
			}
			if d := payload.MemoryAverage + machinery.MemoryAverage - u.MemoryAverage; d > 10 || d < -10 {
				t.Errorf("%d and %d of %d", payload.MemoryAverage, machinery.MemoryAverage, u.MemoryAverage)
			}
			if got := u.Part(sandbox.PartContainers).CPU; got != time.Duration(2*self) {
				t.Errorf("containers: %s", got)
			}
			if got := u.Part(sandbox.PartOther).CPU; got != 0 {
				t.Errorf("nobody's: %s", got)
			}
		}
		u := m.usage()
		check(u)
		if got := u.Part(sandbox.PartScript); got.MemoryPeak != 4<<30 || got.MemoryAverage > 2<<30 || got.MemoryAverage < 19<<30/10 {
			t.Errorf("the script: %+v", got)
		}
		m.note(cgroup{h: h, path: "/test/job/engine"})
		m.remove(cgroup{h: h, path: "/test/job/engine"})
		check(m.usage())
		m.restart()
		m.close()
		time.Sleep(time.Hour) // nothing looks any more: synctest would see a timer that never ends
	})
}

// BenchmarkLook is what an average costs: one look at a sandbox with an engine, of which each has one every lastLook.
func BenchmarkLook(b *testing.B) {
	h, err := findHierarchies()
	if err != nil {
		b.Skip(err)
	}
	m := newMeter(cgroup{h: h})
	m.add(cgroup{h: h}, sandbox.PartScript, false, os.Getpid())
	m.add(cgroup{h: h}, sandbox.PartContainers, true, os.Getpid())
	defer m.close()
	for b.Loop() {
		m.mu.Lock()
		m.look()
		m.mu.Unlock()
	}
	perJob := b.Elapsed().Seconds() / float64(b.N) / lastLook.Seconds()
	b.ReportMetric(100*100*perJob, "%-of-a-core-for-100-jobs")
}
