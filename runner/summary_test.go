package runner

import (
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

func TestSummary(t *testing.T) {
	if lines := summary(sandbox.Usage{CPU: time.Second}); lines != nil {
		t.Errorf("nothing is known: %q", lines)
	}
	u := sandbox.Usage{
		CPU: 12 * time.Second, MemoryPeak: 3 << 30 / 2, MemoryAverage: 1 << 30, Read: 512, Written: 20 << 20,
		Parts: []sandbox.Part{
			{Name: sandbox.PartScript, Payload: true, CPU: 11 * time.Second, MemoryAverage: 900 << 20},
			{Name: sandbox.PartInit, CPU: time.Millisecond},
			{Name: sandbox.PartShim, CPU: 100 * time.Millisecond},
			{Name: sandbox.PartInnerShims, CPU: 899 * time.Millisecond, MemoryAverage: 124 << 20},
		},
		SetUp:  []sandbox.Stage{{Name: sandbox.StageDisk, Took: 12 * time.Millisecond}, {Name: sandbox.StageInit, Took: time.Microsecond}},
		Copied: []sandbox.Copied{{Way: sandbox.CopyPull, Bytes: 5 << 20}},
	}
	want := []string{
		"used 12.0 s of processor: payload 11.0 s, machinery 1.000 s (inner shims 0.899 s, shim 0.100 s); memory 1.5 GiB at most, 1 GiB on average, machinery 124 MiB; disk 512 B read, 20 MiB written; waits are not told by this kernel (no PSI)",
		"set-up: disk 0.012 s; copied again: pull 5 MiB",
	}
	got := summary(u)
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got\n%s", got)
	}
	u.Pressure = &sandbox.Pressure{CPU: sandbox.Waits{Some: time.Second}}
	if got := summary(u)[0]; !strings.HasSuffix(got, "20 MiB written; waited 1.000 s for a processor, 0.000 s for memory, 0.000 s for disks") {
		t.Error(got)
	}
}
