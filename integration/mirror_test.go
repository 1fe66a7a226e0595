//go:build integration

package integration

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/runnerd/runnerd/registry"
)

// elsewhere is another registry: a real one, that wants a password for what is below private/.
type elsewhere struct {
	*httptest.Server
	image v1.Image // the private one

	mu    sync.Mutex
	asked map[string]int // method and path
	down  bool
}

func startElsewhere(t *testing.T) *elsewhere {
	t.Helper()
	reg, err := registry.New(t.Context(), registry.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = reg.Close() })
	e := &elsewhere{asked: map[string]int{}}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		e.mu.Lock()
		down := e.down
		e.mu.Unlock()
		req.URL.RawQuery = strings.ReplaceAll(req.URL.RawQuery, "ns=", "x=") // which other registries than runnerd's do not know
		_, password, _ := req.BasicAuth()
		path := req.URL.Path
		switch {
		case down:
			w.WriteHeader(http.StatusBadGateway)
			return
		case strings.HasPrefix(path, "/v2/evil/"): // shows the private image's manifest and has none of its blobs
			if strings.Contains(path, "/blobs/") {
				w.WriteHeader(http.StatusNotFound)
				return
			}
			req.URL.Path = strings.Replace(path, "/evil/", "/private/", 1)
		case strings.HasPrefix(path, "/v2/private/") && password != "s3cret-of-a":
			w.Header().Set("WWW-Authenticate", `Basic realm="elsewhere"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		e.mu.Lock()
		e.asked[req.Method+" "+req.URL.Path]++
		e.mu.Unlock()
		reg.Handler().ServeHTTP(w, req)
	}))
	t.Cleanup(e.Close)
	base := layoutImage(t, "debian:bookworm-slim")
	layer, err := random.Layer(1<<20, types.DockerLayer)
	if err != nil {
		t.Fatal(err)
	}
	if e.image, err = mutate.AppendLayers(base, layer); err != nil {
		t.Fatal(err)
	}
	host := strings.TrimPrefix(e.URL, "http://")
	for ref, img := range map[string]v1.Image{"team/base:1": base, "private/app:1": e.image} {
		to, err := name.ParseReference(host + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		req := httptest.NewRequest(http.MethodGet, "/", nil)
		req.SetBasicAuth("a", "s3cret-of-a")
		if err := remote.Write(to, img, remote.WithTransport(withHeader{"Authorization", req.Header.Get("Authorization")})); err != nil {
			t.Fatal(err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	clear(e.asked)
	return e
}

type withHeader struct{ key, value string }

func (h withHeader) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set(h.key, h.value)
	return http.DefaultTransport.RoundTrip(req)
}

func (e *elsewhere) blobs(repository string) (most, total int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for what, n := range e.asked {
		if strings.HasPrefix(what, "GET /v2/"+repository+"/blobs/") {
			most, total = max(most, n), total+n
		}
	}
	return most, total
}

// layoutImage is an image of ../bin/images.
func layoutImage(t *testing.T, ref string) v1.Image {
	t.Helper()
	index, err := layout.ImageIndexFromPath("../bin/images")
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range m.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == ref {
			img, err := index.Image(d.Digest)
			if err != nil {
				t.Fatal(err)
			}
			return img
		}
	}
	t.Fatalf("no %s in ../bin/images", ref)
	return nil
}

// TestJobImages runs jobs with images of another registry: fetched once, for who may have them only.
func TestJobImages(t *testing.T) {
	e := startElsewhere(t)
	bin, err := filepath.Abs("../bin/runnerd")
	if err != nil {
		t.Fatal(err)
	}
	d := startMirror(t, bin, stateDir(t), fmt.Sprintf("{host: elsewhere.example, url: %[1]q}, {host: docker.io, url: %[1]q}", e.URL), "capacity: {cpu: 40, memory: 20GiB, jobs: 40}\n")
	docker := t.TempDir()
	t.Setenv("DOCKER_CONFIG", docker)
	login := func(password string) {
		t.Helper()
		auth := base64.StdEncoding.EncodeToString([]byte("a:" + password))
		if err := os.WriteFile(filepath.Join(docker, "config.json"), fmt.Appendf(nil, `{"auths": {"elsewhere.example": {"auth": %q}}}`, auth), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	logout := func() { _ = os.Remove(filepath.Join(docker, "config.json")) }
	run := func(want int, text string, args ...string) {
		t.Helper()
		stdout, stderr, code := d.run(append(append([]string{"run", "--memory", "128MiB", "--cpu", "0.5"}, args...), "--", "echo", "it", "ran")...)
		if code != want || !strings.Contains(stdout+stderr, text) {
			t.Errorf("%v: exit code %d, want %d: %s%s, want %q", args, code, want, stdout, stderr, text)
		}
	}
	const public, private = "elsewhere.example/team/base:1", "elsewhere.example/private/app:1"

	t.Run("concurrently", func(t *testing.T) {
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() { run(0, "it ran", "--image", public) })
		}
		all.Wait()
		if most, total := e.blobs("team/base"); most != 1 || total == 0 {
			t.Errorf("%d blobs were fetched, one of them %d times", total, most)
		}
	})
	t.Run("private", func(t *testing.T) {
		digest, err := e.image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		refused := func() {
			t.Helper()
			_, before := e.blobs("private/app")
			for _, pull := range []string{"if-not-present", "always", "never"} {
				run(3, "private/app", "--project", "b", "--pull", pull, "--image", private)
				run(3, "private/app", "--project", "b", "--pull", pull, "--image", "elsewhere.example/private/app@"+digest.String())
			}
			if _, after := e.blobs("private/app"); after != before {
				t.Errorf("%d blobs of it were fetched for one who may not have it", after-before)
			}
		}
		refused()
		login("s3cret-of-a")
		run(0, "it ran", "--project", "a", "--image", private)
		run(0, "it ran", "--project", "a", "--image", private, "--pull", "never")
		logout()
		refused()
		login("wrong")
		refused()
		logout()
		// Whoever knows the digest shows it as an image of their own.
		run(125, "", "--project", "b", "--image", "elsewhere.example/evil/app:1")
		for _, at := range []string{"registry/docker/registry/v2/repositories/mirror/elsewhere.example/private", "registry/owners"} {
			if err := filepath.WalkDir(filepath.Join(d.state, at), func(path string, _ os.DirEntry, err error) error {
				if text, _ := os.ReadFile(path); strings.Contains(string(text), "private/app") {
					t.Errorf("%s is kept", path)
				}
				return nil
			}); err != nil && !os.IsNotExist(err) {
				t.Error(err)
			}
		}
		if strings.Contains(d.log.String(), "s3cret-of-a") {
			t.Error("the password is in the daemon's log")
		}
	})
	t.Run("machine's own services", func(t *testing.T) {
		run(3, "no address of a registry", "--image", strings.TrimPrefix(e.URL, "http://")+"/team/base:1")
	})
	t.Run("build", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+public+"\nRUN true\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, stderr, code := d.run("build", "-t", "registry.runnerd.internal/team/built:1", "--push", "--project", "a", dir); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		run(0, "it ran", "--project", "a", "--untrusted", "--image", "registry.runnerd.internal/team/built:1")
		run(3, "team/built belongs to a", "--project", "b", "--image", "registry.runnerd.internal/team/built:1")
		run(3, "team/built", "--project", "a", "--image", "team/built:1") // which is Docker Hub's
		if most, _ := e.blobs("team/base"); most != 1 {
			t.Error("the builder did not get the image from the mirror")
		}
	})
	t.Run("engine in a sandbox", func(t *testing.T) {
		stdout, stderr, code := d.run("run", "--sandbox", "container/dind", "--memory", "2GiB", "--", "docker", "run", "--rm", public, "echo", "inside")
		if code != 0 || !strings.Contains(stdout, "inside") {
			t.Errorf("exit code %d: %s%s", code, stdout, stderr)
		}
		if most, _ := e.blobs("team/base"); most != 1 {
			t.Error("the engine did not get the image from the mirror")
		}
	})
	t.Run("elsewhere is down", func(t *testing.T) {
		e.mu.Lock()
		e.down = true
		e.mu.Unlock()
		login("s3cret-of-a")
		run(0, "it ran", "--image", public)
		run(0, "it ran", "--image", public, "--pull", "never")
		run(125, "does not answer", "--image", public, "--pull", "always")
		for _, pull := range []string{"if-not-present", "always", "never"} {
			run(125, "private/app", "--image", private, "--pull", pull)
		}
	})
}
