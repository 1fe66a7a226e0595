package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/client"
)

// ReadPlan is planfile.Read, which imports this package.
var ReadPlan func(context.Context, Input) (Plan, error)

const (
	enginesDir = "../bin/engines"
	imagesDir  = "../bin/images"
	baseImage  = "debian:bookworm-slim"
)

// daemon is a buildkitd on the machine itself, configured as a worker's, and a registry that is its mirror.
type daemon struct {
	*client.Client
	socket   string
	engines  string // directory
	registry string // host:port

	mu       sync.Mutex
	requests []string // to the registry
}

// startDaemon starts one for the test. It skips the test where there is no root or no engine.
func startDaemon(t testing.TB) *daemon {
	t.Helper()
	if testing.Short() || os.Getuid() != 0 {
		t.Skip("needs root")
	}
	engines, err := filepath.Abs(enginesDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"buildkitd", "runc"} {
		if _, err := os.Stat(filepath.Join(engines, name)); err != nil {
			t.Skip("no engines: run make engines: ", err)
		}
	}
	d := &daemon{engines: engines}
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d.mu.Lock()
		d.requests = append(d.requests, r.Method+" "+r.URL.Path)
		d.mu.Unlock()
		if user, password, _ := r.BasicAuth(); strings.Contains(r.URL.Path, "/private/") && (user != "me" || password != "s3cret-password") {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	d.registry = strings.TrimPrefix(server.URL, "http://")
	pushImages(t, d.registry, baseImage)

	dir := t.TempDir()
	text := strings.ReplaceAll(WorkersConfig{Mirror: d.registry, Registry: d.registry, KeepBytes: 4 << 30}.config(), StatePath, filepath.Join(dir, "root"))
	group := fmt.Sprint("runnerd-test-", os.Getpid())
	text = strings.Replace(text, `defaultCgroupParent = "/"`, fmt.Sprintf("defaultCgroupParent = %q", group), 1)
	config, socket := filepath.Join(dir, "buildkitd.toml"), filepath.Join(dir, "sock")
	d.socket = socket
	writeFile(t, dir, "buildkitd.toml", text)
	output, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd := exec.Command(filepath.Join(engines, "buildkitd"), "--config", config, "--addr", "unix://"+socket)
	cmd.Env = []string{"PATH=" + engines + ":/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + dir}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		killer := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer killer.Stop()
		_ = cmd.Wait()
		for _, pattern := range []string{"/sys/fs/cgroup/%s/buildkit", "/sys/fs/cgroup/*/%s/buildkit"} {
			groups, _ := filepath.Glob(fmt.Sprintf(pattern, group))
			for _, dir := range groups { // not empty: a step has outlived its build
				if err := errors.Join(os.Remove(dir), os.Remove(filepath.Dir(dir))); err != nil {
					t.Error(err)
				}
			}
		}
		if t.Failed() {
			text, _ := os.ReadFile(filepath.Join(dir, "log"))
			t.Logf("buildkitd: %s", text[max(0, len(text)-4000):])
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("buildkitd has not started")
		}
	}
	if d.Client, err = client.New(t.Context(), "unix://"+socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Client.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := awaitWorker(ctx, d.Client, make(chan struct{})); err != nil {
		t.Fatal(err)
	}
	return d
}

// pushImages puts images of imagesDir into a registry.
func pushImages(t testing.TB, host string, images ...string) {
	t.Helper()
	index, err := layout.ImageIndexFromPath(imagesDir)
	if err != nil {
		t.Skip("no images: run make images: ", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range manifest.Manifests {
		title := m.Annotations["org.opencontainers.image.ref.name"]
		i := slices.Index(images, title)
		if i < 0 {
			continue
		}
		images = slices.Delete(images, i, i+1)
		image, err := index.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(title, "/") {
			title = "library/" + title
		}
		ref, err := name.ParseReference(host + "/" + title)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, image); err != nil {
			t.Fatal(err)
		}
	}
	if len(images) > 0 {
		t.Skipf("%s holds no %v: run make images", imagesDir, images)
	}
}

// asked counts the requests to the registry for a repository.
func (d *daemon) asked(repository string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, r := range d.requests {
		if strings.Contains(r, "/v2/"+repository+"/") {
			n++
		}
	}
	return n
}

// workspace writes files, as name and text in turn ("-> TARGET" makes a link), and reads the plan they make.
func workspace(t testing.TB, files ...string) Build {
	t.Helper()
	dir := t.TempDir()
	out := filepath.Join(dir, "out")
	if err := os.Mkdir(out, 0o755); err != nil {
		t.Fatal(err)
	}
	b := Build{
		Dir: filepath.Join(dir, "src"), Insecure: func(string) bool { return true },
		Create: func(name string) (io.WriteCloser, error) { return os.Create(filepath.Join(out, name)) },
	}
	for i := 0; i+1 < len(files); i += 2 {
		if to, link := strings.CutPrefix(files[i+1], "-> "); link {
			writeFile(t, b.Dir, files[i]+".dir", "") // makes its directory
			if err := os.Symlink(to, filepath.Join(b.Dir, files[i])); err != nil {
				t.Fatal(err)
			}
			continue
		}
		writeFile(t, b.Dir, files[i], files[i+1])
	}
	plan, err := ReadPlan(t.Context(), Input{Dir: b.Dir})
	if err != nil {
		t.Fatal(err)
	}
	b.Plan, b.Target = plan, plan.Build[0]
	return b
}

// of is the build of another target of the same plan.
func (b Build) of(target string) Build {
	b.Plan, b.Target = b.Plan.Closure(target), target
	return b
}

func (d *daemon) run(t testing.TB, b Build) Result {
	t.Helper()
	result, err := b.Run(t.Context(), d.Client, nil)
	if err != nil {
		t.Fatalf("%s: %v", b.Target, err)
	}
	return result
}

func numbered(format string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i))
	}
	return out
}
