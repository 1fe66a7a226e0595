//go:build integration && bench

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// benchCgroup holds what peers put into cgroups.
const benchCgroup = "/runnerd-bench"

// scratchDir is a directory on a real file system that is gone after the test.
func scratchDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "runnerd-bench-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func engineBinary(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../bin/engines", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// firstLine runs a command and returns how long it took until it wrote its first byte.
func firstLine(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, readErr := io.ReadFull(out, make([]byte, 1))
	took := time.Since(began)
	_, _ = io.Copy(io.Discard, out)
	if err := errors.Join(readErr, cmd.Wait()); err != nil {
		t.Fatal(cmd.Args, err, errs.String())
	}
	return took
}

// runcBundle is the pinned runc, run by hand with the very configuration that one of our sandboxes has:
// root file system, mounts, capabilities, seccomp filter, cgroup. Its namespaces are new ones, with the same
// id mapping. What it lacks is a network and a disk.
type runcBundle struct {
	t     *testing.T
	dir   string
	base  uint32 // the first host id
	count int
}

// newRuncBundle takes the configuration from a sandbox that lives until the end of the test.
func newRuncBundle(t *testing.T) *runcBundle {
	sb, err := host.container.Start(t.Context(), nil, sandbox.Spec{ID: "bench-model", Image: debian})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	text, err := os.ReadFile(filepath.Join(host.dir, "run/containerd/io.containerd.runtime.v2.task", host.name, "bench-model.main/config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(text, &spec); err != nil {
		t.Fatal(err)
	}
	spec.Process.Args, spec.Process.Env = []string{"/bin/echo", "hello"}, []string{"PATH=/bin"}
	spec.Linux.CgroupsPath = "/" + host.name + "/bench-model/peer"
	first, count := sb.(interface{ UIDs() (uint32, uint32) }).UIDs()
	mapping := []specs.LinuxIDMapping{{HostID: first, Size: count}}
	spec.Linux.UIDMappings, spec.Linux.GIDMappings = mapping, mapping
	for i := range spec.Linux.Namespaces {
		spec.Linux.Namespaces[i].Path = ""
	}
	if text, err = json.Marshal(spec); err != nil {
		t.Fatal(err)
	}
	r := &runcBundle{t: t, dir: scratchDir(t), base: first}
	if err := os.WriteFile(filepath.Join(r.dir, "config.json"), text, 0o644); err != nil {
		t.Fatal(err)
	}
	return r
}

// debianLayer is where the one layer of the image is.
func debianLayer(t *testing.T) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(host.dir, "state/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/usr/bin/echo"))
	if err != nil || len(found) == 0 {
		t.Fatal("no unpacked image found: ", err)
	}
	return strings.TrimSuffix(found[0], "/usr/bin/echo")
}

func (r *runcBundle) run() time.Duration {
	r.count++
	return firstLine(r.t, exec.Command(engineBinary(r.t, "runc"), "--root", filepath.Join(r.dir, "runc"), "run", "--bundle", r.dir, fmt.Sprintf("bench-%d", r.count)))
}

// floor is the least that a sandbox costs: testdata/floor.c, on the layers of the image.
type floor struct {
	t          *testing.T
	dir, lower string
	base       uint32
	count      int
}

func newFloor(t *testing.T, r *runcBundle) *floor {
	f := &floor{t: t, dir: scratchDir(t), base: r.base}
	f.lower = filepath.Join(f.dir, "lower") // where mapped ids can reach it
	if err := errors.Join(os.Mkdir(f.lower, 0o755), unix.Mount(debianLayer(t), f.lower, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(f.lower, 0); err != nil {
			t.Error(err)
		}
	})
	timed(t, exec.Command("gcc", "-O2", "-static", "-o", filepath.Join(f.dir, "floor"), "testdata/floor.c"))
	return f
}

func (f *floor) run() time.Duration {
	f.count++
	scratch := filepath.Join(f.dir, fmt.Sprint(f.count))
	if err := errors.Join(os.Mkdir(scratch, 0o755), os.Chown(scratch, int(f.base), int(f.base))); err != nil {
		f.t.Fatal(err)
	}
	return firstLine(f.t, exec.Command(filepath.Join(f.dir, "floor"), f.lower, scratch, fmt.Sprint(f.base), "/bin/echo", "hello"))
}

// bareDockerd is the pinned dockerd as root of the machine, in a network namespace of its own, so that it
// leaves the machine's network alone.
type bareDockerd struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
	log *bytes.Buffer
}

// startDockerd starts one with an empty data root, and more arguments, and returns when it answers GET /_ping.
func startDockerd(t *testing.T, args ...string) (*bareDockerd, time.Duration) {
	d := &bareDockerd{t: t, log: &bytes.Buffer{}}
	var err error
	if d.dir, err = os.MkdirTemp("/var/tmp", "runnerd-bench-"); err != nil {
		t.Fatal(err)
	}
	d.cmd = exec.Command(engineBinary(t, "dockerd"), append([]string{
		"--host=unix://" + d.socket(), "--config-file=/dev/null", "--log-level=warn",
		"--data-root=" + d.dir + "/data", "--exec-root=" + d.dir + "/exec", "--pidfile=" + d.dir + "/pid", "--userland-proxy=false",
		"--cgroup-parent=" + benchCgroup, "--exec-opt=native.cgroupdriver=cgroupfs",
	}, args...)...)
	d.cmd.Env = []string{"PATH=" + filepath.Dir(d.cmd.Path) + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + d.dir}
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS, Unshareflags: syscall.CLONE_NEWNS}
	began := time.Now()
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", d.socket())
	}}}
	defer client.CloseIdleConnections()
	for time.Since(began) < 30*time.Second {
		response, err := client.Get("http://docker/_ping")
		if err == nil {
			_ = response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return d, time.Since(began)
			}
		}
		time.Sleep(time.Millisecond)
	}
	d.stop()
	t.Fatal("dockerd does not answer: ", d.log.String())
	return nil, 0
}

func (d *bareDockerd) socket() string { return filepath.Join(d.dir, "sock") }

func (d *bareDockerd) docker(args ...string) *exec.Cmd {
	cmd := exec.Command(engineBinary(d.t, "docker"), append([]string{"--host", "unix://" + d.socket()}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + d.dir}
	return cmd
}

// load puts one of our images into the engine.
func (d *bareDockerd) load(ref string) {
	d.t.Helper()
	index, err := layout.ImageIndexFromPath("../bin/images")
	if err != nil {
		d.t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		d.t.Fatal(err)
	}
	for _, m := range manifest.Manifests {
		if m.Annotations["org.opencontainers.image.ref.name"] != ref {
			continue
		}
		image, err := index.Image(m.Digest)
		if err != nil {
			d.t.Fatal(err)
		}
		tag, err := name.NewTag(ref)
		if err != nil {
			d.t.Fatal(err)
		}
		file := filepath.Join(d.dir, "image.tar")
		if err := tarball.WriteToFile(file, tag, image); err != nil {
			d.t.Fatal(err)
		}
		if out, err := d.docker("load", "--input", file).CombinedOutput(); err != nil {
			d.t.Fatal(err, string(out))
		}
		return
	}
	d.t.Fatalf("no image %s", ref)
}

func (d *bareDockerd) stop() {
	d.t.Helper()
	stopPeer(d.t, d.cmd, d.dir)
}

// bareBuildkitd is the pinned buildkitd as root of the machine, configured as our workers are.
type bareBuildkitd struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

// startBuildkitd starts one with an empty state and returns when it lists its worker.
func startBuildkitd(t *testing.T, registry string) (*bareBuildkitd, time.Duration) {
	b := &bareBuildkitd{t: t}
	var err error
	if b.dir, err = os.MkdirTemp("/var/tmp", "runnerd-bench-"); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf(`root = %q
[worker.containerd]
  enabled = false
[worker.oci]
  snapshotter = "overlayfs"
  networkMode = "host"
  gc = true
  reservedSpace = "0"
  maxUsedSpace = "8589934592"
  defaultCgroupParent = %q
[registry."docker.io"]
  mirrors = [%[3]q]
[registry.%[3]q]
  http = true
`, b.dir+"/root", benchCgroup, registry)
	if err := os.WriteFile(b.dir+"/config.toml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	b.cmd = exec.Command(engineBinary(t, "buildkitd"), "--config", b.dir+"/config.toml", "--addr", b.address())
	b.cmd.Env = []string{"PATH=" + filepath.Dir(b.cmd.Path) + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + b.dir}
	b.cmd.Stdout, b.cmd.Stderr = log, log
	began := time.Now()
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := listWorkers(ctx, b.address()); err != nil {
		t.Fatal("buildkitd does not answer: ", err, log.String())
	}
	return b, time.Since(began)
}

func (b *bareBuildkitd) address() string { return "unix://" + b.dir + "/sock" }

// buildctl builds a Dockerfile's directory.
func (b *bareBuildkitd) buildctl(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(engineBinary(b.t, "buildctl"), append([]string{
		"--addr", b.address(), "build", "--progress", "quiet", "--frontend", "dockerfile.v0",
		"--local", "context=" + dir, "--local", "dockerfile=" + dir, "--output", "type=image", // as ours: it makes the digest
	}, args...)...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + b.dir}
	return cmd
}

func (b *bareBuildkitd) stop() {
	b.t.Helper()
	stopPeer(b.t, b.cmd, b.dir)
}

// stopPeer ends a peer and removes what it does not: its directory and its cgroup.
func stopPeer(t *testing.T, cmd *exec.Cmd, dir string) {
	t.Helper()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	killer := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
	defer killer.Stop()
	_ = cmd.Wait()
	removeBenchCgroup(t)
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// removeBenchCgroup removes the cgroups of peers, which do not remove them themselves.
func removeBenchCgroup(t *testing.T) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/*" + benchCgroup, "/sys/fs/cgroup" + benchCgroup} {
		groups, _ := filepath.Glob(pattern)
		for _, group := range groups {
			var below []string
			_ = filepath.WalkDir(group, func(path string, entry os.DirEntry, err error) error {
				if err == nil && entry.IsDir() && path != group {
					below = append(below, path)
				}
				return nil
			})
			for _, path := range slices.Backward(below) { // the deepest first
				_ = os.Remove(path)
			}
			if err := os.Remove(group); err != nil && !strings.Contains(err.Error(), "no such file") {
				t.Error(err)
			}
		}
	}
}

// timed runs a command to its end and returns how long that took.
func timed(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	began := time.Now()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatal(cmd.Args, err, string(out))
	}
	return time.Since(began)
}
