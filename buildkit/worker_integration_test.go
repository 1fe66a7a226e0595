//go:build integration

package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

const (
	workerImage = "runnerd/sandbox:latest"
	firstUID    = 13 << 27 // away from other tests'
)

// realMachine is a driver of real sandboxes and a registry, for one test.
type realMachine struct {
	cfg    WorkersConfig
	driver *container.Driver
	dir    string // of all that they keep
	port   int    // of the registry
	log    *sandbox.Tail
}

func newRealMachine(t *testing.T) *realMachine {
	t.Helper()
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: registry.New(registry.Logger(log.New(io.Discard, "", 0))), ReadHeaderTimeout: time.Minute}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	port := listener.Addr().(*net.TCPAddr).Port
	local := fmt.Sprintf("127.0.0.1:%d", port)
	pushImages(t, local, baseImage, workerImage)

	dir, err := os.MkdirTemp("/var/tmp", "runnerd-buildkit-") // not on a tmpfs or an overlay
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	engines, err := filepath.Abs(enginesDir)
	if err != nil {
		t.Fatal(err)
	}
	output := sandbox.NewTail(1 << 16)
	driver, err := container.New(t.Context(), container.Config{
		Name: "runnerd-bk", StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"), EngineDir: engines, Mirror: local,
		Subnet: netip.MustParsePrefix("10.216.0.0/16"), Ports: []int{port}, FirstUID: firstUID, UIDRanges: 100,
		Defaults: sandbox.Limits{CPU: 2000, Memory: 2 << 30, PIDs: 2048, Disk: 8 << 30, Inodes: 1 << 19}, Log: slog.New(slog.NewTextHandler(output, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := driver.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	if err := driver.Pull(t.Context(), workerImage); err != nil {
		t.Fatal(err)
	}
	// After the last worker and before the driver, whose end would hide it.
	t.Cleanup(func() {
		mounts, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(mounts), filepath.Join(dir, "run/sandboxes")) {
			t.Errorf("mounts are left: %s", mounts)
		}
		devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
		for _, device := range devices {
			if file, err := os.ReadFile(device); err == nil && strings.HasPrefix(string(file), dir) {
				t.Errorf("%s is left: %s", device, file)
			}
		}
		left, err := os.ReadDir(filepath.Join(dir, "run/sandboxes"))
		if err != nil || len(left) > 0 {
			t.Errorf("directories are left: %v, %v", left, err)
		}
	})
	return &realMachine{dir: dir, log: output, driver: driver, port: port, cfg: WorkersConfig{
		Open: driver.StartEngine, Image: workerImage, Mirror: fmt.Sprintf("%s:%d", driver.Gateway(), port), KeepBytes: 4 << 30,
		IdleTimeout: 50 * time.Millisecond, Cloner: filepath.Join(engines, "runnerd-clone"),
		Registry: fmt.Sprintf("registry.runnerd.internal:%d", port), RegistryAddress: driver.Gateway().String(),
	}}
}

// TestWorker runs a worker in a real sandbox.
func TestWorker(t *testing.T) {
	m := newRealMachine(t)
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	lease := func(project string) *Lease {
		t.Helper()
		began := time.Now()
		l, err := ws.Lease(t.Context(), trusted(project))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("worker of %s ready after %s", project, time.Since(began))
		return l
	}
	b := workspace(t, "Dockerfile", `FROM debian:bookworm-slim
RUN test ! -e /proc/2 && id -u && cat /proc/self/uid_map
RUN ! kill -9 -1 2>/dev/null; echo alive && cat /proc/sys/kernel/random/uuid >/id
`)
	target := b.Plan.Targets["default"]
	target.Tags = []string{fmt.Sprintf("registry.runnerd.internal:%d/it/worker:1", m.port)}
	b.Plan.Targets["default"], b.Push = target, true

	l := lease("one")
	cold, err := b.Run(t.Context(), l.Client, nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close(t.Context())
	began := time.Now()
	eventually(t, "an idle worker stops", func() bool { ws.mu.Lock(); defer ws.mu.Unlock(); return len(ws.all)+len(ws.ending) == 0 })

	t.Logf("stopped after %s", time.Since(began))
	l = lease("one") // starts again on the state it left
	warm, err := b.Run(t.Context(), l.Client, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cold %s, after a restart %s: %d of %d steps cached", cold.Duration, warm.Duration, warm.Cached, warm.Steps)
	if warm.Cached != warm.Steps || warm.Digest != cold.Digest {
		t.Errorf("the state is lost: %+v, before %+v", warm, cold)
	}
	// A build that runs when the worker dies is not the user's failure, and the next lease works.
	slow := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo here and there && sleep 600\n")
	ended := make(chan error, 1)
	go func() { _, err := slow.Run(t.Context(), l.Client, nil); ended <- err }()
	time.Sleep(time.Second)
	if _, err := l.Exec(t.Context(), sandbox.Process{Args: []string{"/bin/sh", "-c", "pkill -9 -x buildkitd || for p in /proc/[0-9]*; do test \"$(cat $p/comm)\" = buildkitd && kill -9 ${p#/proc/}; done; true"}}); err != nil {
		t.Fatal(err)
	}
	var step *StepError
	if err := <-ended; err == nil || errors.As(err, &step) {
		t.Errorf("the build of a worker that died: %v", err)
	}
	next := lease("one")
	_ = l.Close(t.Context())
	if again, err := b.Run(t.Context(), next.Client, nil); err != nil || again.Cached != again.Steps {
		t.Errorf("after a crash: %+v, %v", again, err)
	}
	other := lease("two") // has a cache of its own
	if result, err := b.Run(t.Context(), other.Client, nil); err != nil || result.Cached != 0 || result.Digest == cold.Digest {
		t.Errorf("another project: %+v, %v", result, err)
	}
	_ = next.Close(t.Context())
	_ = other.Close(t.Context())
	began = time.Now()
	ws.Close()
	t.Logf("two workers closed after %s", time.Since(began))
}
