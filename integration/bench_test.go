//go:build integration && bench

package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/runnerd/runnerd/sandbox"
)

const pairs = 30

// TestBench prints a table of ratios against peers, measured pair by pair in one run, in random order within
// each pair, with the bootstrap 95 % interval of the median. The A/A row is the peer against itself: what
// lies in its interval is noise.
func TestBench(t *testing.T) {
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: host.dind}
	open := func(ctx context.Context, n sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
		return sandbox.Open(ctx, nil, n, s, drivers, sandbox.DefaultPolicy())
	}
	nesting := sandbox.Nesting{sandbox.Container}
	pool := sandbox.NewPool([]sandbox.PoolKind{{Nesting: nesting, Spec: sandbox.Spec{Image: debian}, Size: 2}}, open, slog.Default())
	defer pool.Close(context.Background())
	runc := newRuncBundle(t)
	ids := 0
	firstLine := func(sb sandbox.Sandbox) {
		if exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"/bin/true"}}); err != nil || !exit.Success() {
			t.Fatal(exit, err)
		}
	}
	closeLater := func(sb sandbox.Sandbox) {
		if err := sb.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
	cold := func() time.Duration {
		ids++
		began := time.Now()
		sb, err := open(t.Context(), nesting, sandbox.Spec{ID: fmt.Sprintf("bench-%d", ids), Image: debian})
		if err != nil {
			t.Fatal(err)
		}
		firstLine(sb)
		took := time.Since(began)
		closeLater(sb)
		return took
	}
	pooled := func() time.Duration {
		for ready := 0; ready < 1; ready, _ = pool.Ready() {
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond) // not beside its own refill
		began := time.Now()
		sb, ok := pool.Take(nesting, sandbox.Spec{Image: debian, Limits: sandbox.Limits{CPU: 1000, Memory: 1 << 30, PIDs: 1024}})
		if !ok {
			t.Fatal("the pool is empty")
		}
		firstLine(sb)
		took := time.Since(began)
		closeLater(sb)
		return took
	}
	engineReady := func() time.Duration {
		ids++
		sb, err := open(t.Context(), sandbox.Nesting{sandbox.Container, sandbox.DinD}, sandbox.Spec{ID: fmt.Sprintf("bench-%d", ids), Image: engine})
		if err != nil {
			t.Fatal(err)
		}
		docker, _ := sandbox.As[sandbox.DockerHost](sb)
		began := time.Now()
		if err := docker.EngineReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		closeLater(sb)
		return took
	}
	cold() // unpacks the image
	fmt.Printf("%-44s %10s %10s %8s %17s %8s  %s\n", "what", "ours p50", "peer p50", "ratio", "95 % interval", "goal", "verdict")
	compare(t, "runc run, against itself (A/A)", runc.run, runc.run, 0)
	compare(t, "sandbox cold to first process / runc run", cold, runc.run, 3)
	compare(t, "sandbox pooled to first process / runc run", pooled, runc.run, 0.25)
	times := make([]time.Duration, 10)
	for i := range times {
		times[i] = engineReady()
	}
	slices.Sort(times)
	fmt.Printf("%-44s %10s   (no peer: a bare dockerd was not run)\n", "Docker Engine ready in a sandbox", times[len(times)/2].Round(time.Millisecond))
}

// compare prints one row. A goal of 0 has no verdict.
func compare(t *testing.T, what string, ours, peer func() time.Duration, goal float64) {
	t.Helper()
	var a, b, ratios []float64
	for range pairs {
		var x, y time.Duration
		if rand.IntN(2) == 0 {
			x, y = ours(), peer()
		} else {
			y, x = peer(), ours()
		}
		a, b = append(a, x.Seconds()*1000), append(b, y.Seconds()*1000)
		ratios = append(ratios, x.Seconds()/y.Seconds())
	}
	low, high := bootstrap(ratios)
	verdict, aim := "", ""
	if goal > 0 {
		aim, verdict = fmt.Sprintf("<= %.2f", goal), "missed"
		if high <= goal {
			verdict = "met"
		}
	}
	fmt.Printf("%-44s %7.1f ms %7.1f ms %8.3f  [%6.3f, %6.3f] %8s  %s\n", what, median(a), median(b), median(ratios), low, high, aim, verdict)
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// bootstrap returns the 95 % interval of the median.
func bootstrap(values []float64) (low, high float64) {
	medians := make([]float64, 2000)
	sample := make([]float64, len(values))
	for i := range medians {
		for j := range sample {
			sample[j] = values[rand.IntN(len(values))]
		}
		medians[i] = median(sample)
	}
	slices.Sort(medians)
	return medians[len(medians)*25/1000], medians[len(medians)*975/1000]
}

// runcBundle runs the pinned runc by hand: the same image and namespaces, user namespace included, without
// network, disk and limits.
type runcBundle struct {
	t     *testing.T
	dir   string
	count int
}

func newRuncBundle(t *testing.T) *runcBundle {
	dir, err := os.MkdirTemp("/var/tmp", "runnerd-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	lowers, err := filepath.Glob(filepath.Join(host.dir, "state/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/bin"))
	if err != nil {
		t.Fatal(err)
	}
	if len(lowers) == 0 { // the first layer to be unpacked is debian's
		sb, err := host.container.Start(t.Context(), nil, sandbox.Spec{ID: "bench-unpack", Image: debian})
		if err != nil {
			t.Fatal(err)
		}
		if err := sb.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		lowers, _ = filepath.Glob(filepath.Join(host.dir, "state/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/bin"))
	}
	if len(lowers) == 0 {
		t.Fatal("no unpacked image found")
	}
	base := uint32(1879048192 + 4094*65536)
	for _, sub := range []string{"rootfs", "upper", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(dir, sub), int(base), int(base)); err != nil {
			t.Fatal(err)
		}
	}
	ids := fmt.Sprintf("0:%d:65536", base)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: []string{
		"lowerdir=" + filepath.Dir(lowers[0]), "upperdir=" + filepath.Join(dir, "upper"), "workdir=" + filepath.Join(dir, "work"),
		"uidmap=" + ids, "gidmap=" + ids,
	}}
	if err := m.Mount(filepath.Join(dir, "rootfs")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mount.UnmountAll(filepath.Join(dir, "rootfs"), 0) })
	mapping := []specs.LinuxIDMapping{{ContainerID: 0, HostID: base, Size: 65536}}
	spec := specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Mounts:  []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/dev", Type: "tmpfs", Source: "tmpfs"}},
		Linux: &specs.Linux{UIDMappings: mapping, GIDMappings: mapping, Namespaces: []specs.LinuxNamespace{
			{Type: specs.UserNamespace},
			{Type: specs.NetworkNamespace},
			{Type: specs.PIDNamespace},
			{Type: specs.IPCNamespace},
			{Type: specs.UTSNamespace},
			{Type: specs.MountNamespace},
			{Type: specs.CgroupNamespace},
		}},
	}
	text, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return &runcBundle{t: t, dir: dir}
}

func (r *runcBundle) run() time.Duration {
	r.count++
	cmd := exec.Command("../bin/engines/runc", "--root", filepath.Join(r.dir, "runc"), "run", "--bundle", r.dir, fmt.Sprintf("bench-%d", r.count))
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		r.t.Fatal(err, strings.TrimSpace(string(out)))
	}
	return took
}
