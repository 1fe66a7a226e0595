//go:build integration && bench

package integration

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/sandbox"
)

// TestBench prints a table of what runnerd promises and what it measures, in one run on one machine.
func TestBench(t *testing.T) {
	printHeader()
	for _, group := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"start", benchStart},
		{"engine", benchEngine},
		{"worker", benchWorker},
		{"builds", benchBuilds},
		{"farm", benchFarm},
		{"gitlab", benchGitLab},
		{"dockerbuild", benchDockerBuild},
		{"cache", benchCache},
		{"memory", benchMemory},
		{"density", benchDensity},
		{"sharing", benchSharing},
		{"usage", benchUsage},
		{"mask", benchMask},
		{"wasm", benchWASM},
	} {
		t.Run(group.name, group.run)
	}
}

var (
	containerNesting = sandbox.Nesting{sandbox.Container}
	dindNesting      = sandbox.Nesting{sandbox.Container, sandbox.DinD}
)

func openSandbox(ctx context.Context, n sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: host.dind}
	return sandbox.Open(ctx, nil, n, s, drivers, sandbox.DefaultPolicy())
}

func closeSandbox(t *testing.T, sb sandbox.Sandbox) {
	t.Helper()
	if err := sb.Close(context.Background()); err != nil {
		t.Error(err)
	}
}

// echo runs a process in a sandbox and returns when its first byte is here.
func echo(t *testing.T, sb sandbox.Sandbox) {
	t.Helper()
	reader, writer := io.Pipe()
	go func() {
		exit, err := sb.Exec(context.Background(), sandbox.Process{Args: []string{"/bin/echo", "hello"}, Stdout: writer})
		if err == nil && !exit.Success() {
			err = fmt.Errorf("exit %v", exit)
		}
		writer.CloseWithError(err)
	}()
	if _, err := io.ReadFull(reader, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, reader)
}

// newPool returns a function that takes a sandbox from a pool of one kind.
func newPool(t *testing.T, kind sandbox.PoolKind) func() sandbox.Sandbox {
	pool := sandbox.NewPool([]sandbox.PoolKind{kind}, sandbox.Spare{}, openSandbox, slog.Default())
	t.Cleanup(func() {
		if err := pool.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return func() sandbox.Sandbox {
		spec := kind.Spec
		spec.Limits = sandbox.Limits{CPU: 1000, Memory: 1 << 30, PIDs: 1024}
		sb, ok := pool.Take(kind.Nesting, spec)
		if !ok {
			t.Fatal("the pool is empty")
		}
		return sb
	}
}

// benchStart is about the time from a job to the first line of its script.
func benchStart(t *testing.T) {
	runc := newRuncBundle(t)
	ids := 0
	cold := func() time.Duration {
		ids++
		began := time.Now()
		sb, err := openSandbox(t.Context(), containerNesting, sandbox.Spec{ID: fmt.Sprintf("bench-%d", ids), Image: debian})
		if err != nil {
			t.Fatal(err)
		}
		echo(t, sb)
		took := time.Since(began)
		closeSandbox(t, sb)
		return took
	}
	cold()
	compare(t, "runc run / itself (A/A: the noise)", pairs, runc.run, runc.run, 0)
	floor := newFloor(t, runc)
	compare(t, "floor: namespaces and overlay, in C / runc run", pairs, floor.run, runc.run, 0)
	compare(t, "sandbox, cold, first line / runc run", pairs, cold, runc.run, 3)

	docker, _ := startDockerd(t)
	defer docker.stop()
	docker.load(debian)
	dockerRun := func() time.Duration { return firstLine(t, docker.docker("run", "--rm", debian, "/bin/echo", "hello")) }
	dockerRun()
	compare(t, "sandbox, cold, first line / docker run", pairs, cold, dockerRun, 1.0/3)

	d := startDaemon(t, "pool: [{sandbox: container, image: "+debian+", size: 2}]\n")
	take := newPool(t, sandbox.PoolKind{Nesting: containerNesting, Spec: sandbox.Spec{Image: debian}, Size: 2})
	time.Sleep(time.Second)
	pooled := func() time.Duration {
		time.Sleep(500 * time.Millisecond) // not beside its own refill
		began := time.Now()
		sb := take()
		echo(t, sb)
		took := time.Since(began)
		closeSandbox(t, sb)
		return took
	}
	times := compare(t, "sandbox from the pool, first line / runc run", pairs, pooled, runc.run, 0.25)
	absolute("sandbox from the pool, first line, p50", millis(measure.Median(times)), "<= 10 ms", measure.Median(times) <= 10*time.Millisecond)
	accepted := make([]time.Duration, 100)
	for i := range accepted {
		time.Sleep(500 * time.Millisecond)
		accepted[i] = d.firstLine()
	}
	absolute("job submitted to the API, first line here, p50", millis(measure.Median(accepted)), "<= 10 ms", measure.Median(accepted) <= 10*time.Millisecond)
	absolute("job submitted to the API, first line here, p99", millis(measure.Quantile(accepted, 0.99)), "<= 50 ms", measure.Quantile(accepted, 0.99) <= 50*time.Millisecond)
}

// benchEngine is about the time until a Docker Engine answers.
func benchEngine(t *testing.T) {
	ids := 0
	cold := func() time.Duration {
		ids++
		began := time.Now()
		sb, err := openSandbox(t.Context(), dindNesting, sandbox.Spec{ID: fmt.Sprintf("bench-%d", ids), Image: engine})
		if err != nil {
			t.Fatal(err)
		}
		engineReady(t, sb)
		took := time.Since(began)
		closeSandbox(t, sb)
		return took
	}
	bare := func() time.Duration {
		d, took := startDockerd(t)
		d.stop()
		return took
	}
	cold()
	compare(t, "sandbox and Docker Engine, cold, ready / bare dockerd", pairs, cold, bare, 1.2)
	take := newPool(t, sandbox.PoolKind{Nesting: dindNesting, Spec: sandbox.Spec{Image: engine}, Size: 2})
	pooled := func() time.Duration {
		time.Sleep(2 * time.Second)
		began := time.Now()
		sb := take()
		engineReady(t, sb)
		took := time.Since(began)
		closeSandbox(t, sb)
		return took
	}
	time.Sleep(3 * time.Second)
	times := make([]time.Duration, 15)
	for i := range times {
		times[i] = pooled()
	}
	absolute("Docker Engine from the pool, ready, p50", millis(measure.Median(times)), "<= 10 ms", measure.Median(times) <= 10*time.Millisecond)
}

func engineReady(t *testing.T, sb sandbox.Sandbox) {
	t.Helper()
	docker, ok := sandbox.As[sandbox.DockerHost](sb)
	if !ok {
		t.Fatalf("no engine in %T", sb)
	}
	if err := docker.EngineReady(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// listWorkers waits for a buildkitd's first good answer. It connects anew until somebody accepts, since gRPC
// waits a second after a refusal.
func listWorkers(ctx context.Context, address string) error {
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(address, "unix://"))
		if err == nil {
			_ = conn.Close()
			break
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	c, err := client.New(ctx, address)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.ListWorkers(ctx)
	return err
}

// benchWorker is about the time until a BuildKit worker answers.
func benchWorker(t *testing.T) {
	ws := newWorkers(t)
	projects := 0
	lease := func(project string) (*buildkit.Lease, time.Duration) {
		began := time.Now()
		l, err := ws.Lease(t.Context(), trusted(project))
		if err != nil {
			t.Fatal(err)
		}
		return l, time.Since(began)
	}
	cold := func() time.Duration {
		projects++
		l, took := lease(fmt.Sprintf("bench-%d", projects))
		if err := l.Close(t.Context()); err != nil {
			t.Error(err)
		}
		return took
	}
	bare := func() time.Duration {
		b, took := startBuildkitd(t, fmt.Sprintf("127.0.0.1:%d", host.port))
		b.stop()
		return took
	}
	compare(t, "BuildKit worker of a new project / bare buildkitd", pairs, cold, bare, 1.2)
	times := make([]time.Duration, pairs)
	for i := range times {
		l, took := lease("bench-1")
		if _, err := l.Client.ListWorkers(t.Context()); err != nil {
			t.Fatal(err)
		}
		times[i] = took
		_ = l.Close(t.Context())
	}
	absolute("BuildKit worker that runs already, p50", millis(measure.Median(times)), "<= 10 ms", measure.Median(times) <= 10*time.Millisecond)
}

// benchMask takes the figure from the package's own benchmark.
func benchMask(t *testing.T) {
	out, err := exec.Command("go", "test", "-run", "^$", "-bench", "Mask100Secrets/write=32768", "-cpu", "1", "../runner").CombinedOutput()
	if err != nil {
		t.Fatal(err, string(out))
	}
	fields := strings.Fields(string(out))
	for i, f := range fields {
		if f == "MB/s" {
			rate, err := strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				t.Fatal(err)
			}
			absolute("masking a log, 100 secrets, one core", fmt.Sprintf("%.0f MB/s", rate), ">= 200", rate >= 200)
			return
		}
	}
	t.Fatal("no figure in ", string(out))
}
