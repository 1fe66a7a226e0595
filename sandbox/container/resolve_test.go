package container

import (
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/runnerd/runnerd/sandbox"
)

// TestFind holds who may have which image, and where it is then kept.
func TestFind(t *testing.T) {
	images := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	store := httptest.NewServer(images)
	defer store.Close()
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"library/public:1", "private/app:1", "own/app:1", "all/app:1"} {
		to, err := name.ParseReference(strings.TrimPrefix(store.URL, "http://") + "/" + ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(to, img); err != nil {
			t.Fatal(err)
		}
	}
	// The machine's registry has what is public, and own/app for those who ask as "a".
	down := false
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		switch ns := req.URL.Query().Get("ns"); {
		case strings.HasPrefix(req.URL.Path, "/v2/private/"), ns == "unknown.example", ns == strings.TrimPrefix(store.URL, "http://"):
			w.WriteHeader(http.StatusNotFound)
		case strings.HasPrefix(req.URL.Path, "/v2/own/") && req.Header.Get("Who") != "a",
			strings.HasPrefix(req.URL.Path, "/v2/all/") && req.Header.Get("Who") == "":
			w.WriteHeader(http.StatusForbidden)
		case down && req.Header.Get("Cache-Control") == "no-cache":
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			images.ServeHTTP(w, req)
		}
	}))
	defer mirror.Close()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if _, password, _ := req.BasicAuth(); password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		images.ServeHTTP(w, req)
	}))
	defer elsewhere.Close()
	i := newImages(nil, Config{
		Name: "runnerd", Mirror: strings.TrimPrefix(mirror.URL, "http://"), MirrorNames: []string{"registry.internal"}, Public: map[string]string{"Who": "anybody"},
		Upstreams: map[string]string{"up.example": elsewhere.URL},
	})
	a := map[string]string{"Who": "a"}
	for _, c := range []struct {
		ref  string
		how  sandbox.Pull
		kept string // the beginning of the namespace
		err  error
	}{
		{"public:1", sandbox.Pull{}, "runnerd", nil},
		{"public:1", sandbox.Pull{Policy: sandbox.Never}, "runnerd", nil},
		{"public:1", sandbox.Pull{Policy: sandbox.Always}, "runnerd", nil},
		{"up.example/team/nothing:1", sandbox.Pull{}, "", sandbox.ErrUnknownImage},
		{"registry.internal:5000/own/app:1", sandbox.Pull{Asking: a}, "runnerd-", nil},
		{"registry.internal:5000/all/app:1", sandbox.Pull{Asking: a}, "runnerd-own", nil},
		{"registry.internal:5000/own/app:1", sandbox.Pull{}, "", sandbox.ErrDenied},
		{"registry.internal:5000/own/nothing:1", sandbox.Pull{Asking: a}, "", sandbox.ErrUnknownImage},
		{"up.example/private/app:1", sandbox.Pull{Username: "u", Password: "secret"}, "runnerd-", nil},
		{"up.example/private/app:1", sandbox.Pull{Policy: sandbox.Always, Username: "u", Password: "secret"}, "runnerd-", nil},
		{"up.example/private/app:1", sandbox.Pull{Policy: sandbox.Never, Username: "u", Password: "secret"}, "", sandbox.ErrUnknownImage},
		{"up.example/private/app:1", sandbox.Pull{Username: "u", Password: "wrong"}, "", sandbox.ErrUnknownImage},
		{"up.example/private/app:1", sandbox.Pull{}, "", sandbox.ErrUnknownImage},
		{strings.TrimPrefix(store.URL, "http://") + "/private/app:1", sandbox.Pull{Password: "x"}, "", sandbox.ErrDenied},
		{"[::1]:80/private/app:1", sandbox.Pull{Password: "x"}, "", sandbox.ErrDenied},
		{"not an image", sandbox.Pull{}, "", sandbox.ErrUnknownImage},
	} {
		f, err := i.find(t.Context(), c.ref, c.how)
		if !errors.Is(err, c.err) || err != nil && c.err == nil {
			t.Errorf("%s %+v: %v, want %v", c.ref, c.how, err, c.err)
		}
		private := c.kept == "runnerd-" && len(f.namespace) > len(c.kept)
		if err == nil && f.namespace != c.kept && !private {
			t.Errorf("%s: kept in %s", c.ref, f.namespace)
		}
	}
	i.cfg.Public = nil
	if f, err := i.find(t.Context(), "registry.internal:5000/all/app:1", sandbox.Pull{Asking: a}); err != nil || f.namespace == "runnerd-own" {
		t.Errorf("kept in %s, though nobody knows who may read it: %v", f.namespace, err)
	}
	offline := newImages(nil, Config{Name: "runnerd", Mirror: strings.TrimPrefix(mirror.URL, "http://")})
	if _, err := offline.find(t.Context(), "unknown.example/a:1", sandbox.Pull{Password: "x"}); !errors.Is(err, sandbox.ErrUnknownImage) {
		t.Errorf("without upstreams: %v", err)
	}
	down = true
	if _, err := i.find(t.Context(), "public:1", sandbox.Pull{}); err != nil {
		t.Error(err)
	}
	if _, err := i.find(t.Context(), "public:1", sandbox.Pull{Policy: sandbox.Always}); err == nil {
		t.Error("always goes on without its registry")
	}
	elsewhere.Close()
	if _, err := i.find(t.Context(), "up.example/private/app:1", sandbox.Pull{Username: "u", Password: "secret"}); err == nil {
		t.Error("a private image without its registry's word")
	}
}
