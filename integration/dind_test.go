//go:build integration

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/sandboxtest"
)

func openDinD(ctx context.Context, id string) (sandbox.Sandbox, error) {
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: host.dind}
	spec := sandbox.Spec{ID: id, Image: engine, Volumes: map[string]string{"workspace": "/workspace"}}
	return sandbox.Open(ctx, nil, sandbox.Nesting{sandbox.Container, sandbox.DinD}, spec, drivers, sandbox.DefaultPolicy())
}

func TestDinD(t *testing.T) {
	sandboxtest.Run(t, openDinD, host.leftovers)
}

// TestDinDWorks does in an engine what jobs do, and looks from outside at what they are allowed.
func TestDinDWorks(t *testing.T) {
	began := time.Now()
	sb, err := openDinD(t.Context(), "dind-works")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sb.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if left := host.leftovers("dind-works"); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}()
	docker, _ := sandbox.As[sandbox.DockerHost](sb)
	if docker.EngineStarted() {
		t.Error("the engine started before anybody spoke to it")
	}
	opened := time.Now()
	timeout := time.Minute
	if testing.Short() {
		timeout *= 10
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	if err := docker.EngineReady(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("sandbox %s, engine ready %s later", opened.Sub(began), time.Since(opened))

	for name, c := range map[string]struct{ script, want string }{
		"memory limit": {`docker run --rm -m 64m debian:bookworm-slim sh -c 'cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max'`, "67108864"},
		"driver":       {`docker info -f '{{.Driver}}'`, "overlayfs"},
		"bridge":       {`docker network create n >/dev/null && docker run -d --name srv --network n debian:bookworm-slim sleep 60 >/dev/null && docker run --rm --network n debian:bookworm-slim getent hosts srv | wc -l`, "1"},
		"volume":       {`docker run --rm -v vol:/v debian:bookworm-slim sh -c 'echo kept >/v/f' && docker run --rm -v vol:/v debian:bookworm-slim cat /v/f`, "kept"},
		"bind mount":   {`echo shared >/workspace/f && docker run --rm -v /workspace:/w debian:bookworm-slim cat /w/f`, "shared"},
		"build":        {`cd /workspace && printf 'FROM debian:bookworm-slim\nRUN echo built >/b\nCMD cat /b\n' >Dockerfile && docker build -q -t b . >/dev/null && docker run --rm b`, "built"},
		"privileged":   {`docker run --rm --privileged debian:bookworm-slim sh -c 'mount -t tmpfs tmpfs /mnt && echo mounted'`, "mounted"},
		"own /sys":     {`grep ' /sys ' /proc/self/mountinfo | tail -1 | cut -d' ' -f6 | cut -d, -f1`, "ro"},
		"mtu":          {`docker run --rm debian:bookworm-slim cat /sys/class/net/eth0/mtu`, strconv.Itoa(host.container.MTU())},
	} {
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			exit, err := sb.Exec(ctx, sandbox.Process{Args: []string{"sh", "-c", c.script}, Stdout: &out, Stderr: &errs})
			if err != nil || !exit.Success() || strings.TrimSpace(out.String()) != c.want {
				t.Errorf("got %q, %v, %v; want %q\n%s", out.String(), exit, err, c.want, errs.String())
			}
		})
	}
	below, ok := sandbox.As[*container.Sandbox](sb)
	if !ok {
		t.Fatal("no container sandbox below the engine")
	}
	assertUnprivileged(t, below)
}

// assertUnprivileged looks from the machine at every process of a sandbox: ids of its own range only, and
// capabilities that bind in its own user namespace only.
func assertUnprivileged(t *testing.T, sb *container.Sandbox) {
	t.Helper()
	first, count := sb.UIDs()
	initial, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		t.Fatal(err)
	}
	pids := sb.PIDs()
	if len(pids) < 4 { // init, engine's init, dockerd, containerd
		t.Errorf("only %d processes found", len(pids))
	}
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue // it ended
		}
		for line := range strings.Lines(string(status)) {
			fields := strings.Fields(line)
			if fields[0] != "Uid:" && fields[0] != "Gid:" {
				continue
			}
			for _, text := range fields[1:] {
				if id, _ := strconv.ParseUint(text, 10, 32); uint32(id) < first || uint32(id) >= first+count {
					t.Errorf("process %d has host id %s, outside %d-%d", pid, text, first, first+count-1)
				}
			}
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid)); err == nil && ns == initial {
			t.Errorf("process %d is in the machine's user namespace", pid)
		}
	}
}
