package registry

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
)

// remoteRegistry is another registry, a real one, that wants a token for all that is read, gives it to everybody but
// for repositories below private/, and has faults.
type remoteRegistry struct {
	*httptest.Server
	registry *Registry
	asked    sync.Map // method and path to *atomic.Int64
	// fault, when it returns true, has answered the request.
	fault atomic.Pointer[func(w http.ResponseWriter, req *http.Request) bool]
}

func startRemote(t *testing.T) *remoteRegistry {
	u := &remoteRegistry{registry: open(t, t.TempDir(), nil)}
	u.Server = httptest.NewServer(http.HandlerFunc(u.serve))
	t.Cleanup(u.Close)
	return u
}

func (u *remoteRegistry) serve(w http.ResponseWriter, req *http.Request) {
	_, password, _ := req.BasicAuth()
	if req.URL.Path == "/token" && req.Method != http.MethodGet { // as registries do that do not speak OAuth 2
		w.WriteHeader(http.StatusMethodNotAllowed)
		return
	}
	if req.URL.Path == "/token" {
		if strings.Contains(req.URL.Query().Get("scope"), ":private/") && password != "secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token": %q}`, req.URL.Query().Get("scope"))
		return
	}
	to, _ := routeOf(req)
	if !strings.Contains(req.Header.Get("Authorization"), "repository:"+to.repository+":pull") {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test",scope="repository:%s:pull"`, u.URL, to.repository))
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	n, _ := u.asked.LoadOrStore(req.Method+" "+to.name, new(atomic.Int64))
	n.(*atomic.Int64).Add(1)
	if f := u.fault.Load(); f != nil && (*f)(w, req) {
		return
	}
	u.registry.Handler().ServeHTTP(w, req)
}

func (u *remoteRegistry) count(what string) int64 {
	n, ok := u.asked.Load(what)
	if !ok {
		return 0
	}
	return n.(*atomic.Int64).Load()
}

func (u *remoteRegistry) set(f func(w http.ResponseWriter, req *http.Request) bool) {
	u.fault.Store(&f)
}

func (u *remoteRegistry) put(t *testing.T, ref string, img v1.Image) {
	t.Helper()
	if err := remote.Write(tag(t, host+"/"+ref), img, remote.WithTransport(inProcess{u.registry.Handler()})); err != nil {
		t.Fatal(err)
	}
}

// mirrorOf is a registry that mirrors others: each as what it is called.
func mirrorOf(t *testing.T, log io.Writer, root string, refresh time.Duration, upstreams ...Upstream) (*Registry, string) {
	r, err := New(t.Context(), Config{Root: root, Upstreams: upstreams, Refresh: refresh, Log: slog.New(slog.NewTextHandler(log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(r.Handler())
	t.Cleanup(server.Close)
	return r, server.URL
}

// get reads something and checks its digest, if it is of one.
func get(t *testing.T, url, want string) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", manifestTypes)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, nil
	}
	if res.StatusCode == http.StatusOK && want != "" && digest.FromBytes(text).String() != want {
		t.Errorf("%s: %d bytes of something else", url, len(text))
	}
	return res.StatusCode, text
}

func layerDigest(t *testing.T, img v1.Image) string {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	d, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return d.String()
}

func bigImage(t *testing.T, size int64) v1.Image {
	t.Helper()
	img, err := random.Image(size, 1)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestMirror(t *testing.T) {
	up, other := startRemote(t), startRemote(t)
	img, second := image(t), image(t)
	up.put(t, "library/debian:1", img)
	other.put(t, "library/debian:1", second)
	root := t.TempDir()
	r, url := mirrorOf(t, io.Discard, root, time.Hour, Upstream{Host: "docker.io", URL: up.URL}, Upstream{Host: "other.example:5000", URL: other.URL})
	for range 2 {
		for ns, want := range map[string]v1.Image{"docker.io": img, "other.example:5000": second} {
			if code, _ := get(t, url+"/v2/library/debian/manifests/1?ns="+ns, digestOf(t, want).String()); code != http.StatusOK {
				t.Fatalf("%s: the manifest: %d", ns, code)
			}
			if code, _ := get(t, url+"/v2/library/debian/blobs/"+layerDigest(t, want)+"?ns="+ns, layerDigest(t, want)); code != http.StatusOK {
				t.Fatalf("%s: a layer: %d", ns, code)
			}
		}
	}
	if n, m := up.count("GET manifest"), up.count("GET blob"); n != 1 || m != 1 {
		t.Errorf("the upstream was asked for %d manifests and %d blobs, want 1 and 1", n, m)
	}
	// Another registry's blobs, nothing of which was asked for there.
	if code, _ := get(t, url+"/v2/library/debian/blobs/"+layerDigest(t, img)+"?ns=other.example:5000", ""); code != http.StatusNotFound {
		t.Errorf("a blob of another registry: %d", code)
	}
	for _, path := range []string{"/v2/library/debian/manifests/1?ns=nobody.example", "/v2/library/nothing/manifests/1?ns=docker.io", "/v2/library/debian/manifests/1", "/v2/library/debian/tags/list?ns=docker.io"} {
		if code, _ := get(t, url+path, ""); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	// What was preloaded wins.
	mine := image(t)
	if err := r.Preload(t.Context(), write(t, map[string]v1.Image{"debian:1": mine})); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, url+"/v2/library/debian/manifests/1?ns=docker.io", digestOf(t, mine).String()); code != http.StatusOK {
		t.Errorf("the preloaded image: %d", code)
	}
}

// TestMirrorKeepsNothingPrivate holds that what needs a password is not served, unless the operator has given one.
func TestMirrorKeepsNothingPrivate(t *testing.T) {
	up := startRemote(t)
	img := image(t)
	up.put(t, "private/app:1", img)
	root := t.TempDir()
	r, url := mirrorOf(t, io.Discard, root, time.Hour, Upstream{Host: "docker.io", URL: up.URL}, Upstream{Host: "known.example", URL: up.URL, Username: "u", Password: "secret"})
	for _, path := range []string{"manifests/1", "manifests/" + digestOf(t, img).String(), "blobs/" + layerDigest(t, img)} {
		if code, _ := get(t, url+"/v2/private/app/"+path+"?ns=docker.io", ""); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
		if code, text := get(t, url+"/v2/private/app/"+path+"?ns=known.example", ""); code != http.StatusOK {
			t.Errorf("%s with the operator's password: %d %s", path, code, text)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "docker/registry/v2/repositories/mirror/docker.io/private")); err == nil {
		t.Error("something is kept of it")
	}
	if o, ok := r.owners.of("mirror/docker.io/private/app"); ok {
		t.Errorf("its name is kept: %v", o)
	}
}

// TestMirrorRefresh holds that a moved tag is seen, and one that was taken away, and that an upstream that is down
// keeps nobody from what is here.
func TestMirrorRefresh(t *testing.T) {
	up := startRemote(t)
	first, second := image(t), image(t)
	up.put(t, "a/app:1", first)
	var log bytes.Buffer
	r, url := mirrorOf(t, &log, t.TempDir(), time.Hour, Upstream{Host: "docker.io", URL: up.URL})
	at := url + "/v2/a/app/manifests/1?ns=docker.io"
	stale := func() {
		r.mirror.mu.Lock()
		defer r.mirror.mu.Unlock()
		clear(r.mirror.checked)
		r.mirror.upstreams[hub].mu.Lock()
		defer r.mirror.upstreams[hub].mu.Unlock()
		r.mirror.upstreams[hub].restUntil = time.Time{}
	}
	get(t, at, digestOf(t, first).String())
	up.put(t, "a/app:1", second)
	get(t, at, digestOf(t, first).String())
	stale()
	get(t, at, digestOf(t, second).String())
	stale()
	up.set(func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	asked := up.count("HEAD manifest")
	for range 3 {
		if code, _ := get(t, at, digestOf(t, second).String()); code != http.StatusOK {
			t.Errorf("with an upstream that is down: %d", code)
		}
	}
	if n := up.count("HEAD manifest") - asked; n != 1 {
		t.Errorf("it was asked %d times although it wants to be left alone", n)
	}
	if !strings.Contains(log.String(), "as it was last known") || !strings.Contains(log.String(), "429") {
		t.Errorf("nothing in the log:\n%s", &log)
	}
	if code, _ := get(t, url+"/v2/a/new/manifests/1?ns=docker.io", ""); code != http.StatusServiceUnavailable {
		t.Errorf("an image that is not here: %d", code)
	}
	stale()
	up.set(func(http.ResponseWriter, *http.Request) bool { return false })
	if err := remote.Delete(tag(t, host+"/a/app:1"), remote.WithTransport(inProcess{up.registry.Handler()})); err != nil {
		t.Fatal(err)
	}
	if code, _ := get(t, at, ""); code != http.StatusNotFound {
		t.Errorf("a tag that was taken away: %d", code)
	}
}

// TestMirrorFaults fetches a blob from an upstream that does all that real ones do.
func TestMirrorFaults(t *testing.T) {
	const size = 3 << 20
	for name, c := range map[string]struct {
		fault func(n int64, serve http.HandlerFunc, w http.ResponseWriter, req *http.Request) bool
		want  int
	}{
		"cut": {func(n int64, serve http.HandlerFunc, w http.ResponseWriter, req *http.Request) bool {
			if n > 3 {
				return false
			}
			serve(&cutWriter{ResponseWriter: w, left: size / 4}, req)
			panic(http.ErrAbortHandler)
		}, http.StatusOK},
		"cut without ranges": {func(n int64, serve http.HandlerFunc, w http.ResponseWriter, req *http.Request) bool {
			req.Header.Del("Range")
			if n > 1 {
				return false
			}
			serve(&cutWriter{ResponseWriter: w, left: size / 2}, req)
			panic(http.ErrAbortHandler)
		}, http.StatusOK},
		"storm that ends": {func(n int64, _ http.HandlerFunc, w http.ResponseWriter, _ *http.Request) bool {
			if n > 2 {
				return false
			}
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, http.StatusOK},
		"storm": {func(_ int64, _ http.HandlerFunc, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}, http.StatusServiceUnavailable},
		"too many requests": {func(n int64, _ http.HandlerFunc, w http.ResponseWriter, _ *http.Request) bool {
			if n > 1 {
				return false
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusTooManyRequests)
			return true
		}, http.StatusOK},
		"wrong digest": {func(_ int64, _ http.HandlerFunc, w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(bytes.Repeat([]byte("x"), size))
			return true
		}, 0},
		"slow": {func(_ int64, serve http.HandlerFunc, w http.ResponseWriter, req *http.Request) bool {
			serve(slowWriter{w}, req)
			return true
		}, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			up := startRemote(t)
			img := bigImage(t, size)
			up.put(t, "a/app:1", img)
			blob := layerDigest(t, img)
			up.set(func(w http.ResponseWriter, req *http.Request) bool {
				to, _ := routeOf(req)
				return to.digest != "" && req.Method == http.MethodGet &&
					c.fault(up.count("GET blob"), up.registry.Handler().ServeHTTP, w, req)
			})
			root := t.TempDir()
			r, url := mirrorOf(t, io.Discard, root, time.Hour, Upstream{Host: "docker.io", URL: up.URL})
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					if code, _ := get(t, url+"/v2/a/app/blobs/"+blob+"?ns=docker.io", blob); code != c.want {
						t.Errorf("got %d, want %d", code, c.want)
					}
				})
			}
			all.Wait()
			_, err := os.Stat(r.blobFile(digest.Digest(blob)))
			if (err == nil) != (c.want == http.StatusOK) {
				t.Errorf("in the store: %v", err)
			}
			if left, _ := filepath.Glob(filepath.Join(r.repositoryDir("mirror/docker.io/a/app"), "_uploads/*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// cutWriter breaks the connection after so many bytes.
type cutWriter struct {
	http.ResponseWriter
	left int
}

func (c *cutWriter) Write(p []byte) (int, error) {
	if len(p) > c.left {
		_, _ = c.ResponseWriter.Write(p[:c.left])
		_ = http.NewResponseController(c.ResponseWriter).Flush()
		panic(http.ErrAbortHandler)
	}
	c.left -= len(p)
	return c.ResponseWriter.Write(p)
}

type slowWriter struct{ http.ResponseWriter }

func (s slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return s.ResponseWriter.Write(p)
}

// TestMirrorStreams holds that a client gets a blob while it is being fetched, that the others share the one fetch, and
// that one who goes away does not end it.
func TestMirrorStreams(t *testing.T) {
	up := startRemote(t)
	img := bigImage(t, 1<<20)
	up.put(t, "a/app:1", img)
	blob := layerDigest(t, img)
	release := make(chan struct{})
	up.set(func(w http.ResponseWriter, req *http.Request) bool {
		to, _ := routeOf(req)
		if to.digest == "" {
			return false
		}
		up.registry.Handler().ServeHTTP(&pausingWriter{w, 1 << 19, release}, req)
		return true
	})
	_, url := mirrorOf(t, io.Discard, t.TempDir(), time.Hour, Upstream{Host: "docker.io", URL: up.URL})
	leaving, leave := context.WithCancel(t.Context())
	req, _ := http.NewRequestWithContext(leaving, http.MethodGet, url+"/v2/a/app/blobs/"+blob+"?ns=docker.io", nil)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, res.Body, 400_000); err != nil {
		t.Fatal(err)
	}
	leave()
	res.Body.Close()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if code, _ := get(t, url+"/v2/a/app/blobs/"+blob+"?ns=docker.io", blob); code != http.StatusOK {
				t.Errorf("got %d", code)
			}
		})
	}
	time.Sleep(50 * time.Millisecond)
	close(release)
	all.Wait()
	if n := up.count("GET blob"); n != 1 {
		t.Errorf("the upstream was asked %d times", n)
	}
}

// pausingWriter waits after so many bytes.
type pausingWriter struct {
	http.ResponseWriter
	left    int
	release chan struct{}
}

func (p *pausingWriter) Write(text []byte) (int, error) {
	if p.left -= len(text); p.left < 0 {
		_ = http.NewResponseController(p.ResponseWriter).Flush()
		<-p.release
	}
	return p.ResponseWriter.Write(text)
}

// TestCorruptedBlob holds that a blob that has changed on the disk is not served, and comes back where it can.
func TestCorruptedBlob(t *testing.T) {
	up := startRemote(t)
	fetched, preloaded, pushed := image(t), image(t), image(t)
	up.put(t, "a/app:1", fetched)
	root := t.TempDir()
	r, url := mirrorOf(t, io.Discard, root, time.Hour, Upstream{Host: "docker.io", URL: up.URL})
	if err := r.Preload(t.Context(), write(t, map[string]v1.Image{"debian:1": preloaded})); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag(t, strings.TrimPrefix(url, "http://")+"/b/app:1"), pushed); err != nil {
		t.Fatal(err)
	}
	for at, c := range map[string]struct {
		img  v1.Image
		want int
	}{
		"/v2/a/app/%s?ns=docker.io": {fetched, http.StatusOK},
		"/v2/library/debian/%s":     {preloaded, http.StatusOK},
	} {
		for what, d := range map[string]string{"blobs/": layerDigest(t, c.img), "manifests/": digestOf(t, c.img).String()} {
			url := url + fmt.Sprintf(at, what+d)
			get(t, url, d)
			spoil(t, r, d)
			if code, _ := get(t, url, d); code != c.want {
				t.Errorf("%s: %d", url, code)
			}
		}
	}
	d := layerDigest(t, pushed)
	spoil(t, r, d)
	for _, method := range []string{http.MethodHead, http.MethodGet} {
		if code, _ := (from{r, operatorAddr}).ask(t, method, "/v2/b/app/blobs/"+d, ""); code != http.StatusNotFound {
			t.Errorf("%s of a corrupted blob that was pushed: %d", method, code)
		}
	}
	if err := remote.Write(tag(t, strings.TrimPrefix(url, "http://")+"/b/app:2"), pushed); err != nil {
		t.Errorf("push it again: %v", err)
	}
	get(t, url+"/v2/b/app/blobs/"+d, d)
}

// spoil changes a byte of a blob.
func spoil(t *testing.T, r *Registry, d string) {
	t.Helper()
	f, err := os.OpenFile(r.blobFile(digest.Digest(d)), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, 20); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 1
	if _, err := f.WriteAt(b, 20); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkVerify is what the first read of a blob costs after a start.
func BenchmarkVerify(b *testing.B) {
	r := open(b, b.TempDir(), nil)
	text := bytes.Repeat([]byte("0123456789abcdef"), 4<<20)
	d := digest.FromBytes(text)
	if err := os.MkdirAll(filepath.Dir(r.blobFile(d)), 0o700); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(r.blobFile(d), text, 0o600); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		r.forgetBlob(d)
		if !r.intact(b.Context(), d) {
			b.Fatal("not intact")
		}
	}
}
