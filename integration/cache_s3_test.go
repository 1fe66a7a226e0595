//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/scope"
)

// startS3 compiles and starts a real S3 server on a directory, and returns its address.
func startS3(t *testing.T) (address string) {
	t.Helper()
	dir := stateDir(t)
	bin := filepath.Join(dir, "versitygw")
	build := exec.Command("go", "build", "-C", "s3server", "-o", bin, "github.com/versity/versitygw/cmd/versitygw")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the S3 server: %v\n%s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(dir, "data/bucket"), 0o755); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address = l.Addr().String()
	_ = l.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "runnerd")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "not-a-secret")
	server := exec.Command(bin, "--access", "runnerd", "--secret", "not-a-secret", "--port", address, "--quiet", "posix", filepath.Join(dir, "data"))
	var log bytes.Buffer
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Logf("%s", log.Bytes())
		}
	})
	for range 200 {
		if c, err := net.Dial("tcp", address); err == nil {
			_ = c.Close()
			return address
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("the S3 server does not answer:\n%s", log.Bytes())
	return ""
}

// faults is a proxy before the server that does with some requests what networks do.
type faults struct {
	next http.Handler
	// fault is asked for each request, with its number. It reports whether it has dealt with it.
	fault atomic.Pointer[func(n int64, w http.ResponseWriter, r *http.Request) bool]
	n     atomic.Int64
}

func (f *faults) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if fault := f.fault.Load(); fault != nil && (*fault)(f.n.Add(1), w, r) {
		return
	}
	f.next.ServeHTTP(w, r)
}

func (f *faults) set(fault func(n int64, w http.ResponseWriter, r *http.Request) bool) {
	f.n.Store(0)
	f.fault.Store(&fault)
}

func (f *faults) none() { f.fault.Store(nil) }

// cut closes a request's connection once some of its body was read.
func cut(w http.ResponseWriter, r *http.Request) bool {
	_, _ = io.CopyN(io.Discard, r.Body, 10_000)
	panic(http.ErrAbortHandler)
}

// half passes on half of a response and closes the connection.
func (f *faults) half(w http.ResponseWriter, r *http.Request) bool {
	whole := httptest.NewRecorder()
	f.next.ServeHTTP(whole, r)
	for k, v := range whole.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(whole.Code)
	_, _ = w.Write(whole.Body.Bytes()[:whole.Body.Len()/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func internalError(w http.ResponseWriter) bool {
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(http.StatusInternalServerError)
	_, _ = io.WriteString(w, "<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>")
	return true
}

// TestCacheS3 keeps a cache on a real S3 server, while requests are cut off, fail and are slow.
func TestCacheS3(t *testing.T) {
	address := startS3(t)
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: address})
	pass.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) }
	proxy := &faults{next: pass}
	front := httptest.NewServer(proxy)
	defer front.Close()
	store, err := cache.Open(t.Context(), cache.Config{URL: "s3://bucket?region=us-east-1&use_path_style=true&endpoint=" + url.QueryEscape(front.URL)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}()
	mine := scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}
	ctx := t.Context()
	content := func(seed uint64) []byte {
		p := make([]byte, 20<<20)
		rand.NewChaCha8([32]byte{byte(seed)}).Read(p)
		return p
	}
	save := func(ctx context.Context, seed uint64) (cache.Saved, error) {
		return store.Save(ctx, mine, mine, "k", fmt.Sprint(seed), bytes.NewReader(content(seed)))
	}
	restore := func() (job string, got []byte, err error) {
		e, err := store.Find(ctx, mine, "k")
		if e == nil || err != nil {
			return "", nil, err
		}
		r := store.Open(ctx, e)
		defer func() { _ = r.Close() }()
		got, err = io.ReadAll(struct{ io.Reader }{r})
		return e.Job, got, err
	}
	holds := func(what string, seed uint64) {
		t.Helper()
		job, got, err := restore()
		if err != nil || job != fmt.Sprint(seed) || !bytes.Equal(got, content(seed)) {
			t.Errorf("%s: %d bytes of job %q, not job %d's: %v", what, len(got), job, seed, err)
		}
	}

	saved, err := save(ctx, 1)
	if err != nil || saved.NewBytes != 20<<20 {
		t.Fatal(saved, err)
	}
	holds("saved", 1)
	if saved, err = save(ctx, 1); err != nil || saved.NewBytes != 0 {
		t.Error("saved again: ", saved, err)
	}

	var tried sync.Map // each request fails once
	proxy.set(func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		_, again := tried.LoadOrStore(r.Method+r.URL.Path, true)
		return !again && internalError(w)
	})
	if _, err := save(ctx, 2); err != nil {
		t.Error("some errors: ", err)
	}
	holds("some errors", 2)

	tried.Clear()
	proxy.set(func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		_, again := tried.LoadOrStore(r.Method+r.URL.Path, true)
		return r.Method == http.MethodPut && !again && cut(w, r)
	})
	if _, err := save(ctx, 3); err != nil {
		t.Error("some connections cut: ", err)
	}
	holds("some connections cut", 3)

	proxy.set(func(n int64, w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodPut && n > 20 && cut(w, r)
	})
	if _, err := save(ctx, 4); err == nil {
		t.Error("saved over a connection that is gone")
	}
	proxy.none()
	holds("all connections cut", 3)

	proxy.set(func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/entries/") && internalError(w)
	})
	if _, err := save(ctx, 4); err == nil {
		t.Error("saved without an index")
	}
	proxy.none()
	holds("the index refused", 3)

	tried.Clear()
	proxy.set(func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		_, again := tried.LoadOrStore(r.Method+r.URL.Path, true)
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/chunks/") && !again && proxy.half(w, r)
	})
	holds("some responses cut", 3)

	proxy.set(func(_ int64, w http.ResponseWriter, r *http.Request) bool {
		return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/chunks/") && proxy.half(w, r)
	})
	if _, got, err := restore(); err == nil || !bytes.HasPrefix(content(3), got) {
		t.Errorf("%d bytes of responses that are all cut: %v", len(got), err)
	}
	proxy.none()
	holds("the entry is not to blame", 3)

	proxy.set(func(int64, http.ResponseWriter, *http.Request) bool { time.Sleep(100 * time.Millisecond); return false })
	start := time.Now()
	if _, err := save(ctx, 5); err != nil {
		t.Error("slow: ", err)
	}
	holds("slow", 5)
	t.Log("slow: ", time.Since(start))
	slow := errors.New("too slow")
	short, cancel := context.WithTimeoutCause(ctx, 300*time.Millisecond, slow)
	defer cancel()
	if _, err := save(short, 6); !errors.Is(err, slow) {
		t.Error("too slow: ", err)
	}
	proxy.none()
	holds("too slow", 5)

	// A day has to pass before what nothing names is removed: another daemon may be about to name it.
	if freed, err := store.Tidy(ctx); err != nil || freed != 0 {
		t.Errorf("%d bytes were collected: %v", freed, err)
	}
	holds("tidied", 5)
	entries, err := store.Entries(ctx)
	if err != nil || len(entries) != 1 {
		t.Error(entries, err)
	}
	if n, err := store.Usage(ctx); n != 0 || err != nil {
		t.Errorf("%d bytes of this machine's disk: %v", n, err)
	}
}
