package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/runnerd/runnerd/scope"
)

// The actors of the tests, by address.
var (
	trustedA   = scope.Scope{Forge: "forge", Project: "a", Trust: scope.Trusted}
	untrustedA = scope.Scope{Forge: "forge", Project: "a", Trust: scope.Untrusted}
	trustedB   = scope.Scope{Forge: "forge", Project: "b", Trust: scope.Trusted}
	untrustedB = scope.Scope{Forge: "forge", Project: "b", Trust: scope.Untrusted}
)

const (
	operatorAddr = "127.0.0.1"
	nobodyAddr   = "10.0.0.99"
)

func addressOf(s scope.Scope) string {
	for address, of := range testScopes() {
		if of == s {
			return address
		}
	}
	return nobodyAddr
}

func testScopes() map[string]scope.Scope {
	return map[string]scope.Scope{"10.0.0.1": trustedA, "10.0.0.2": untrustedA, "10.0.0.3": trustedB, "10.0.0.4": untrustedB}
}

func openGuarded(t *testing.T, root string, shared ...string) *Registry {
	t.Helper()
	r, err := New(t.Context(), Config{Root: root, Shared: shared, Who: func(a netip.Addr) (scope.Scope, bool) {
		s, ok := testScopes()[a.String()]
		return s, ok
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// from is a client that asks from an address.
type from struct {
	r       *Registry
	address string
}

func (f from) RoundTrip(req *http.Request) (*http.Response, error) {
	in := httptest.NewRequest(req.Method, req.URL.String(), req.Body)
	in.Header, in.ContentLength = req.Header.Clone(), req.ContentLength
	in.RemoteAddr = f.address + ":1234"
	w := httptest.NewRecorder()
	f.r.Handler().ServeHTTP(w, in.WithContext(req.Context()))
	res := w.Result()
	res.Request = req
	return res, nil
}

func (f from) push(t *testing.T, repository string, img v1.Image) error {
	t.Helper()
	return remote.Write(tag(t, host+"/"+repository+":1"), img, remote.WithTransport(f), remote.WithRetryStatusCodes())
}

func (f from) pull(t *testing.T, repository string) error {
	t.Helper()
	img, err := remote.Image(tag(t, host+"/"+repository+":1"), remote.WithTransport(f), remote.WithRetryStatusCodes())
	if err != nil {
		return err
	}
	layers, err := img.Layers()
	if err != nil {
		return err
	}
	for _, l := range layers {
		rc, err := l.Compressed()
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, rc); err != nil {
			return err
		}
	}
	return nil
}

func (f from) ask(t *testing.T, method, path string, body string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+host+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := f.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	return res.StatusCode, string(text)
}

// TestAccess tries each action of each actor on what each owner has pushed.
func TestAccess(t *testing.T) {
	actors := map[string]string{
		"operator": operatorAddr, "nobody": nobodyAddr,
		"trusted a": addressOf(trustedA), "untrusted a": addressOf(untrustedA),
		"trusted b": addressOf(trustedB), "untrusted b": addressOf(untrustedB),
	}
	all := []string{"operator", "trusted a", "untrusted a", "trusted b", "untrusted b"}
	aOnly, bothA := []string{"operator", "trusted a"}, []string{"operator", "trusted a", "untrusted a"}
	for _, c := range []struct {
		repository, owner string
		read, write       []string
	}{
		{"library/debian", "operator", all, []string{"operator"}},
		{"tools/base", "operator", all, []string{"operator"}},
		{"mirror/docker.io/library/x", "operator", all, []string{"operator"}},
		{"a/app", "trusted a", bothA, aOnly},
		{"shared/app", "trusted a", all, aOnly},
		{"a/branch", "untrusted a", bothA, bothA}, // a trusted write takes over
		{"shared/branch", "untrusted a", bothA, bothA},
		{cachePrefix + trustedA.ID() + "/app", "trusted a", bothA, aOnly},
		{cachePrefix + untrustedA.ID(), "untrusted a", []string{"operator", "untrusted a"}, []string{"operator", "untrusted a"}},
	} {
		for name, address := range actors {
			t.Run(c.repository+" of "+c.owner+" by "+name, func(t *testing.T) {
				r := openGuarded(t, t.TempDir(), "shared/*")
				img := image(t)
				if err := (from{r, actors[c.owner]}).push(t, c.repository, img); err != nil {
					t.Fatal(err)
				}
				f := from{r, address}
				err := f.pull(t, c.repository)
				if want := slices.Contains(c.read, name); (err == nil) != want {
					t.Errorf("read: %v, want it to be allowed: %v", err, want)
				}
				d := digestOf(t, img).String()
				if code, _ := f.ask(t, http.MethodGet, "/v2/"+c.repository+"/manifests/"+d, ""); (code == http.StatusOK) != slices.Contains(c.read, name) {
					t.Errorf("read by digest: %d", code)
				}
				_, listing := f.ask(t, http.MethodGet, "/v2/_catalog", "")
				if strings.Contains(listing, c.repository) != slices.Contains(c.read, name) {
					t.Errorf("listed: %s", listing)
				}
				allowed := slices.Contains(c.write, name)
				if code, _ := f.ask(t, http.MethodDelete, "/v2/"+c.repository+"/manifests/"+d, ""); (code == http.StatusAccepted) != allowed && !(allowed && code == http.StatusNotFound) {
					t.Errorf("delete: %d, want it to be allowed: %v", code, allowed)
				}
				err = f.push(t, c.repository, image(t))
				if (err == nil) != allowed {
					t.Errorf("write: %v, want it to be allowed: %v", err, allowed)
				}
				if err != nil && (status(err) != http.StatusForbidden || !strings.Contains(err.Error(), "DENIED")) {
					t.Errorf("refused with %v", err)
				}
			})
		}
	}
}

// TestNobodyElsesWord holds that As lowers the operator's rights, and gives nobody else any.
func TestNobodyElsesWord(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	if err := (from{r, addressOf(trustedA)}).push(t, "a/app", image(t)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		address string
		as      scope.Scope
		want    int
	}{
		{operatorAddr, trustedA, http.StatusOK},
		{operatorAddr, trustedB, http.StatusForbidden},
		{operatorAddr, scope.Scope{}, http.StatusForbidden},
		{addressOf(trustedB), trustedA, http.StatusForbidden},
		{nobodyAddr, trustedA, http.StatusForbidden},
	} {
		req := httptest.NewRequest(http.MethodGet, "http://"+host+"/v2/a/app/manifests/1", nil)
		req.Header.Set(As, AsScope(c.as))
		res, _ := from{r, c.address}.RoundTrip(req)
		if res.StatusCode != c.want {
			t.Errorf("%s as %v: %d, want %d", c.address, c.as, res.StatusCode, c.want)
		}
	}
}

// TestMountAsksBoth holds that a blob is not copied out of a repository that may not be read.
func TestMountAsksBoth(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	img := image(t)
	if err := (from{r, addressOf(trustedA)}).push(t, "a/app", img); err != nil {
		t.Fatal(err)
	}
	layers, _ := img.Layers()
	blob, _ := layers[0].Digest()
	for address, want := range map[string]int{addressOf(untrustedA): http.StatusCreated, addressOf(trustedB): http.StatusAccepted} {
		f := from{r, address}
		name := "mine/" + strings.ReplaceAll(address, ".", "-")
		if code, _ := f.ask(t, http.MethodPost, "/v2/"+name+"/blobs/uploads/?mount="+blob.String()+"&from=a/app", ""); code != want {
			t.Errorf("%s: mount: %d, want %d", address, code, want)
		}
		if code, _ := f.ask(t, http.MethodHead, "/v2/"+name+"/blobs/"+blob.String(), ""); (code == http.StatusOK) != (want == http.StatusCreated) {
			t.Errorf("%s: the blob: %d", address, code)
		}
	}
	// As a form, which distribution would read too.
	req := httptest.NewRequest(http.MethodPost, "http://"+host+"/v2/mine/form/blobs/uploads/", strings.NewReader("mount="+blob.String()+"&from=a/app"))
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	if res, _ := (from{r, addressOf(trustedB)}).RoundTrip(req); res.StatusCode != http.StatusAccepted {
		t.Errorf("mount by a form: %d", res.StatusCode)
	}
}

// TestTakeover holds that nothing untrusted is left in a repository that a trusted job has taken over, not even what
// is written at that moment, and that owners outlive a restart.
func TestTakeover(t *testing.T) {
	root := t.TempDir()
	r := openGuarded(t, root)
	before := image(t)
	untrusted, trusted := from{r, addressOf(untrustedA)}, from{r, addressOf(trustedA)}
	if err := untrusted.push(t, "a/app", before); err != nil {
		t.Fatal(err)
	}
	// An upload that never ends.
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		req.RemoteAddr = addressOf(untrustedA) + ":1"
		r.Handler().ServeHTTP(w, req)
	}))
	server.Start()
	defer server.Close()
	body, feed := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		req, _ := http.NewRequestWithContext(context.Background(), http.MethodPut, server.URL+"/v2/a/app/manifests/1", body)
		if res, err := http.DefaultClient.Do(req); err == nil {
			res.Body.Close()
			if res.StatusCode < 400 {
				t.Errorf("the untrusted push ended with %d", res.StatusCode)
			}
		}
	}()
	if _, err := feed.Write([]byte("{")); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	after := image(t)
	if err := trusted.push(t, "a/app", after); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it took %s: it waited for the untrusted job", took)
	}
	_ = feed.Close()
	<-ended
	for range 2 {
		if code, _ := trusted.ask(t, http.MethodGet, "/v2/a/app/manifests/"+digestOf(t, before).String(), ""); code != http.StatusNotFound {
			t.Errorf("what untrusted jobs have pushed is still there: %d", code)
		}
		if err := untrusted.push(t, "a/app", before); status(err) != http.StatusForbidden {
			t.Errorf("an untrusted push afterwards: %v", err)
		}
		if code, _ := untrusted.ask(t, http.MethodGet, "/v2/a/app/manifests/"+digestOf(t, after).String(), ""); code != http.StatusOK {
			t.Errorf("an untrusted pull afterwards: %d", code)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		r = openGuarded(t, root)
		trusted.r, untrusted.r = r, r
	}
}

// TestLegacy holds that what lies in a store without an owner is nobody's: an earlier version let every job push it.
func TestLegacy(t *testing.T) {
	root := t.TempDir()
	r := openGuarded(t, root)
	img := image(t)
	if err := (from{r, operatorAddr}).push(t, "library/debian", img); err != nil {
		t.Fatal(err)
	}
	if err := r.owners.forget("library/debian"); err != nil {
		t.Fatal(err)
	}
	f := from{r, addressOf(trustedA)}
	if err := f.pull(t, "library/debian"); status(err) != http.StatusNotFound {
		t.Errorf("pull: %v", err)
	}
	good := image(t)
	if err := r.Preload(t.Context(), write(t, map[string]v1.Image{"debian:2": good})); err != nil {
		t.Fatal(err)
	}
	if err := f.pull(t, "library/debian"); status(err) != http.StatusNotFound {
		t.Errorf("the tag of before: %v", err)
	}
	if code, _ := f.ask(t, http.MethodGet, "/v2/library/debian/manifests/2", ""); code != http.StatusOK {
		t.Errorf("the preloaded one: %d", code)
	}
}

func TestCatalogPages(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	for i := range 5 {
		if err := r.owners.adopt(fmt.Sprintf("base/%d", i)); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for path := "/v2/_catalog?n=2"; path != ""; {
		req := httptest.NewRequest(http.MethodGet, "http://"+host+path, nil)
		res, _ := from{r, addressOf(trustedA)}.RoundTrip(req)
		var page struct{ Repositories []string }
		if err := json.NewDecoder(res.Body).Decode(&page); err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Repositories...)
		path, _, _ = strings.Cut(strings.TrimPrefix(res.Header.Get("Link"), "<"), ">")
	}
	if len(got) != 5 || !slices.IsSorted(got) {
		t.Errorf("got %v", got)
	}
}
