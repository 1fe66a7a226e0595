package main

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
)

type copiesSandbox struct{ sandbox.Sandbox }

func (copiesSandbox) ID() string                  { return "pool-1" }
func (copiesSandbox) Close(context.Context) error { return nil }
func (copiesSandbox) Usage(context.Context) (sandbox.Usage, error) {
	return sandbox.Usage{Engine: &sandbox.EngineUse{Started: true}}, nil
}

// TestCopies asks a registry as an engine in a sandbox does, and as others do.
func TestCopies(t *testing.T) {
	var c copies
	registry := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet {
			_, _ = io.Copy(w, strings.NewReader("0123456789"))
		}
	})
	h := c.counting(registry, func(a netip.Addr) (string, bool) {
		return "pool-1", a == netip.MustParseAddr("10.0.0.2")
	})
	ask := func(from, method, path string) {
		t.Helper()
		req := httptest.NewRequest(method, path, nil)
		req.RemoteAddr = from + ":1234"
		w := httptest.NewRecorder()
		if h.ServeHTTP(w, req); w.Code != http.StatusOK || method == http.MethodGet && w.Body.Len() != 10 {
			t.Error(w.Code, w.Body)
		}
	}
	const job, digest = "10.0.0.2", "sha256:abc"
	ask(job, "GET", "/v2/early/blobs/"+digest) // it is nobody's yet
	sb := c.count(copiesSandbox{}, "job-1")
	for range 3 {
		ask(job, "HEAD", "/v2/library/debian/manifests/bookworm?ns=docker.io")
		ask(job, "GET", "/v2/library/debian/manifests/"+digest+"?ns=docker.io")
		ask(job, "GET", "/v2/library/debian/blobs/"+digest+"?ns=docker.io")
	}
	ask(job, "HEAD", "/v2/team/app/manifests/1?ns=registry.example.com")
	ask(job, "GET", "/v2/team/app/blobs/"+digest+"?ns=registry.example.com")
	ask(job, "HEAD", "/v2/asked/only/manifests/1")
	ask(job, "GET", "/v2/cache/0123/load/blobs/"+digest)
	ask(job, "GET", "/v2/")
	ask("10.0.0.3", "GET", "/v2/library/debian/blobs/"+digest)
	c.Copied("job-1", sandbox.CopyRestore, 7)
	c.Copied("job-2", sandbox.CopyRestore, 9)

	u, err := sb.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []sandbox.Copied{{Way: sandbox.CopyPull, Bytes: 70}, {Way: sandbox.CopyLoad, Bytes: 10}, {Way: sandbox.CopyRestore, Bytes: 7}}
	if len(u.Copied) != len(want) {
		t.Fatalf("%+v", u.Copied)
	}
	for i := range want {
		if u.Copied[i] != want[i] {
			t.Errorf("%+v, want %+v", u.Copied[i], want[i])
		}
	}
	images := map[string]sandbox.PulledImage{}
	for _, p := range u.Engine.Images {
		images[p.Image] = p
	}
	if debian := images["debian:bookworm"]; len(images) != 2 || debian.Times != 3 || debian.Bytes != 60 || debian.Took == 0 {
		t.Errorf("%+v", images)
	}
	if app := images["registry.example.com/team/app:1"]; app.Times != 1 || app.Bytes != 10 {
		t.Errorf("%+v", images)
	}
	if err := sb.Close(t.Context()); err != nil || len(c.jobs)+len(c.sandboxes) != 0 {
		t.Errorf("%v: %v %v are left", err, c.jobs, c.sandboxes)
	}
}
