package registry

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/validate"
)

func open(t testing.TB, root string, log *slog.Logger) *Registry {
	t.Helper()
	r, err := New(t.Context(), Config{Root: root, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// serve returns the host and port on which r listens.
func serve(t *testing.T, r *Registry) string {
	t.Helper()
	s := httptest.NewServer(r.Handler())
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

func image(t testing.TB) v1.Image {
	t.Helper()
	img, err := random.Image(100_000, 3)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digestOf(t testing.TB, img v1.Image) v1.Hash {
	t.Helper()
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// write makes an OCI layout of images by name and returns its directory.
func write(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range images {
		if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": ref})); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func tag(t *testing.T, ref string) name.Tag {
	t.Helper()
	n, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func status(err error) int {
	var e *transport.Error
	if errors.As(err, &e) {
		return e.StatusCode
	}
	return 0
}

func TestPushPullDelete(t *testing.T) {
	var log bytes.Buffer
	r := open(t, t.TempDir(), slog.New(slog.NewTextHandler(&log, nil)))
	ref := tag(t, serve(t, r)+"/team/app:v1")
	img := image(t)
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(ref)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
	if d := digestOf(t, got); d != digestOf(t, img) {
		t.Errorf("pulled %s, pushed %s", d, digestOf(t, img))
	}
	if err := remote.Delete(ref.Context().Digest(digestOf(t, img).String())); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Image(ref); status(err) != http.StatusNotFound {
		t.Errorf("pull after delete: %v, want not found", err)
	}
	if log.Len() > 0 {
		t.Errorf("logged:\n%s", &log)
	}
}

func TestImagesOutliveTheRegistry(t *testing.T) {
	root, img := t.TempDir(), image(t)
	first := open(t, root, nil)
	if err := remote.Write(tag(t, serve(t, first)+"/app:v1"), img); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(tag(t, serve(t, open(t, root, nil))+"/app:v1"))
	if err != nil || digestOf(t, got) != digestOf(t, img) {
		t.Errorf("got %v", err)
	}
}

func TestPushOfACorruptedBlobIsRefused(t *testing.T) {
	addr := serve(t, open(t, t.TempDir(), nil))
	res, err := http.Post("http://"+addr+"/v2/app/blobs/uploads/", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	url := res.Header.Get("Location") + "&digest=sha256:" + strings.Repeat("ab", 32)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, url, strings.NewReader("something else"))
	if err != nil {
		t.Fatal(err)
	}
	res, err = http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if res.StatusCode != http.StatusBadRequest {
		t.Errorf("status %d, want 400", res.StatusCode)
	}
}

func TestPreload(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	addr := serve(t, r)
	images := map[string]v1.Image{"debian:bookworm-slim": image(t), "runnerd/sandbox:latest": image(t), "node": image(t)}
	dir := write(t, images)
	for range 2 {
		if err := r.Preload(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	at := map[string]string{
		"debian:bookworm-slim": "library/debian:bookworm-slim", "runnerd/sandbox:latest": "runnerd/sandbox:latest",
		"node": "library/node:latest",
	}
	for ref, img := range images {
		got, err := remote.Image(tag(t, addr+"/"+at[ref]))
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		} else if digestOf(t, got) != digestOf(t, img) {
			t.Errorf("%s: another image", ref)
		}
	}

	newer := image(t)
	if err := r.Preload(t.Context(), write(t, map[string]v1.Image{"node": newer})); err != nil {
		t.Fatal(err)
	}
	if got, err := remote.Image(tag(t, addr+"/library/node:latest")); err != nil || digestOf(t, got) != digestOf(t, newer) {
		t.Errorf("the tag was not moved: %v", err)
	}
}

func TestPreloadAgainPushesNothing(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	dir := write(t, map[string]v1.Image{"debian:bookworm-slim": image(t)})
	if err := r.Preload(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	// Without the layers, pushing would fail.
	blobs := filepath.Join(dir, "blobs", "sha256")
	entries, err := os.ReadDir(blobs)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Size() > 50_000 {
			if err := os.Remove(filepath.Join(blobs, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.Preload(t.Context(), dir); err != nil {
		t.Error(err)
	}
}

// layerFile is the file of the first layer of img under dir.
func layerFile(t *testing.T, img v1.Image, dir string, stored bool) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	if stored {
		return filepath.Join(dir, "docker/registry/v2/blobs/sha256", d.Hex[:2], d.Hex, "data")
	}
	return filepath.Join(dir, "blobs/sha256", d.Hex)
}

func TestPreloadOfACorruptedBlob(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	bad, good := image(t), image(t)
	dir := write(t, map[string]v1.Image{"bad:1": bad, "good:1": good})
	file := layerFile(t, bad, dir, false)
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	content[len(content)/2] ^= 1
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	err = r.Preload(t.Context(), dir)
	if err == nil || !strings.Contains(err.Error(), "bad:1") || strings.Contains(err.Error(), "good:1") {
		t.Errorf("got %v, want an error about bad:1 alone", err)
	}
	addr := serve(t, r)
	if _, err := remote.Image(tag(t, addr+"/library/bad:1")); status(err) != http.StatusNotFound {
		t.Errorf("the corrupted image was put in: %v", err)
	}
	if _, err := remote.Image(tag(t, addr+"/library/good:1")); err != nil {
		t.Error(err)
	}
}

func TestPreloadMendsABlobCutShort(t *testing.T) {
	root, img := t.TempDir(), image(t)
	dir := write(t, map[string]v1.Image{"app:1": img})
	first := open(t, root, nil)
	if err := first.Preload(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(layerFile(t, img, root, true), 10); err != nil {
		t.Fatal(err)
	}
	r := open(t, root, nil)
	if err := r.Preload(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	got, err := remote.Image(tag(t, serve(t, r)+"/library/app:1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(got); err != nil {
		t.Error(err)
	}
}

func TestPreloadErrors(t *testing.T) {
	r := open(t, t.TempDir(), nil)
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	garbage := t.TempDir()
	if err := os.WriteFile(filepath.Join(garbage, "index.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, dir, want string
		ctx             context.Context
	}{
		{"no layout", t.TempDir(), "make images", t.Context()},
		{"not JSON", garbage, "preload images from", t.Context()},
		{"no name", write(t, map[string]v1.Image{"": image(t)}), "has no name", t.Context()},
		{"bad name", write(t, map[string]v1.Image{"UPPER:x": image(t)}), "UPPER", t.Context()},
		{"cancelled", write(t, map[string]v1.Image{"app:1": image(t)}), "context canceled", cancelled},
	} {
		if err := r.Preload(c.ctx, c.dir); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want one with %q", c.what, err, c.want)
		}
	}
}

func TestPurgeOfUploads(t *testing.T) {
	root := t.TempDir()
	uploads := filepath.Join(root, "docker/registry/v2/repositories/team/app/_uploads")
	for name, age := range map[string]time.Duration{"old": 25 * time.Hour, "new": time.Hour} {
		if err := os.MkdirAll(filepath.Join(uploads, name), 0o700); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.WriteFile(filepath.Join(uploads, name, "data"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(uploads, name, "data"), then, then); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(uploads, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	if err := purgeUploads(t.Context(), root, time.Now().Add(-uploadAge)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(uploads)
	if err != nil || len(entries) != 1 || entries[0].Name() != "new" {
		t.Errorf("left: %v, %v; want the new one alone", entries, err)
	}
	if err := purgeUploads(t.Context(), t.TempDir(), time.Now()); err != nil {
		t.Errorf("an empty registry: %v", err)
	}
}

func TestNewErrors(t *testing.T) {
	if _, err := New(t.Context(), Config{}); err == nil {
		t.Error("opened a registry without a directory")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Config{Root: filepath.Join(file, "images")}); err == nil {
		t.Error("opened a registry below a file")
	}
}

func TestTroubleIsLogged(t *testing.T) {
	var log bytes.Buffer
	root := t.TempDir()
	r := open(t, root, slog.New(slog.NewTextHandler(&log, nil)))
	addr := serve(t, r)
	// A file where the storage wants a directory.
	if err := os.MkdirAll(filepath.Join(root, "docker/registry/v2"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "docker/registry/v2/repositories"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag(t, addr+"/app:v1"), image(t), remote.WithRetryStatusCodes()); err == nil {
		t.Fatal("pushed to broken storage")
	}
	if !strings.Contains(log.String(), "level=ERROR") {
		t.Errorf("no error logged:\n%s", &log)
	}
}

func TestCloseLeavesNothingRunning(t *testing.T) {
	before := runtime.NumGoroutine()
	root := t.TempDir()
	for range 10 {
		r := open(t, root, nil)
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		r.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/v2/", nil))
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("a closed registry answers %d", w.Code)
		}
	}
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, before %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func BenchmarkNew(b *testing.B) {
	root := b.TempDir()
	for b.Loop() {
		if err := open(b, root, nil).Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPreloadAgain(b *testing.B) {
	r := open(b, b.TempDir(), nil)
	dir := write(b, map[string]v1.Image{"debian:bookworm-slim": image(b), "runnerd/sandbox:latest": image(b)})
	for b.Loop() {
		if err := r.Preload(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
}

func TestOneProcessADirectory(t *testing.T) {
	root := t.TempDir()
	first, err := New(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), Config{Root: root}); err == nil || !strings.Contains(err.Error(), "another runnerd uses the registry in "+root) {
		t.Errorf("a second registry in one directory: %v", err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := New(t.Context(), Config{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Error(err)
	}
}
