package registry

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/budget"
)

// age makes all that is in a registry as old as it has to be to be removed.
func age(t *testing.T, r *Registry) {
	t.Helper()
	before := time.Now().Add(-2 * leaseTime)
	err := filepath.WalkDir(r.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		return os.Chtimes(path, before, before)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.leases.mu.Lock()
	defer r.leases.mu.Unlock()
	clear(r.leases.all)
	r.uses.mu.Lock()
	defer r.uses.mu.Unlock()
	for id, u := range r.uses.all {
		u.Last = before
		r.uses.all[id] = u
	}
}

func entriesOf(t *testing.T, s budget.Store) map[string]budget.Entry {
	t.Helper()
	all, err := s.Entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	byName := map[string]budget.Entry{}
	for _, e := range all {
		name, _, _ := strings.Cut(e.ID, "@")
		byName[name] = e
	}
	return byName
}

func TestStore(t *testing.T) {
	up := startRemote(t)
	fetched, pushed, preloaded, cached := bigImage(t, 1<<20), bigImage(t, 2<<20), image(t), image(t)
	up.put(t, "a/app:1", fetched)
	root := t.TempDir()
	r := openGuarded(t, root)
	m, err := newMirror(t.Context(), []Upstream{{Host: "docker.io", URL: up.URL}}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	r.mirror = m
	operator, job := from{r, operatorAddr}, from{r, addressOf(untrustedA)}
	if err := r.Preload(t.Context(), write(t, map[string]v1.Image{"debian:1": preloaded})); err != nil {
		t.Fatal(err)
	}
	cache := cachePrefix + untrustedA.ID() + "/app"
	for name, img := range map[string]v1.Image{"a/built": pushed, cache: cached} {
		if err := job.push(t, name, img); err != nil {
			t.Fatal(err)
		}
	}
	operator.ask(t, http.MethodGet, "/v2/a/app/manifests/1?ns=docker.io", "")
	for range 2 {
		if code, _ := operator.ask(t, http.MethodGet, "/v2/a/app/blobs/"+layerDigest(t, fetched)+"?ns=docker.io", ""); code != http.StatusOK {
			t.Fatal(code)
		}
	}
	s := r.Store()
	got := entriesOf(t, s)
	mirrored := got["mirror/docker.io/a/app"]
	if len(got) != 3 || got["library/debian"].ID != "" {
		t.Errorf("entries: %v", got)
	}
	if b := got["a/built"]; b.Scope != untrustedA.String() || b.Description != "a/built:1" || !b.InUse || b.Bytes < 2<<20 {
		t.Errorf("the pushed one: %+v", b)
	}
	if mirrored.Scope != "" || mirrored.Uses != 1 || mirrored.Bytes < 1<<20 {
		t.Errorf("the mirrored one: %+v", mirrored)
	}
	usage, err := s.Usage(t.Context())
	if err != nil || usage < 3<<20 || usage > 6<<20 {
		t.Errorf("usage: %d, %v", usage, err)
	}
	ids := []string{mirrored.ID, got["a/built"].ID, "library/debian@" + digestOf(t, preloaded).String(), "nothing@sha256:00", "nonsense"}
	if freed, err := s.Remove(t.Context(), ids); err != nil || freed != 0 {
		t.Errorf("removed what is in use: %d, %v", freed, err)
	}
	age(t, r)
	freed, err := s.Remove(t.Context(), ids)
	if err != nil || freed < 3<<20 {
		t.Errorf("freed %d, %v", freed, err)
	}
	after, err := s.Usage(t.Context())
	if err != nil || usage-after != freed {
		t.Errorf("usage is %d, it was %d, %d were freed", after, usage, freed)
	}
	if got := entriesOf(t, s); len(got) != 1 || got[cache].ID == "" {
		t.Errorf("left: %v", got)
	}
	// The rest is whole, the names are free again, and the mirror fetches again.
	if err := operator.pull(t, "library/debian"); err != nil {
		t.Error(err)
	}
	if err := job.pull(t, cache); err != nil {
		t.Error(err)
	}
	if err := (from{r, addressOf(trustedB)}).push(t, "a/built", pushed); err != nil {
		t.Errorf("the name is not free: %v", err)
	}
	if code, _ := operator.ask(t, http.MethodGet, "/v2/a/app/blobs/"+layerDigest(t, fetched)+"?ns=docker.io", ""); code != http.StatusOK {
		t.Errorf("the blob is not fetched again: %d", code)
	}
}

// TestCollectUnderPushes holds that garbage is collected while images are pushed and pulled, and that nobody notices.
func TestCollectUnderPushes(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	job := from{r, addressOf(trustedA)}
	stop := make(chan struct{})
	var collecting sync.WaitGroup
	collecting.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if err := r.collect(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		}
	})
	var all sync.WaitGroup
	for _, name := range []string{"a/one", "a/two", "a/three"} {
		all.Go(func() {
			for range 5 {
				img := image(t)
				if err := job.push(t, name, img); err != nil {
					t.Errorf("push: %v", err)
				}
				if err := job.pull(t, name); err != nil {
					t.Errorf("pull: %v", err)
				}
			}
		})
	}
	all.Wait()
	close(stop)
	collecting.Wait()
}

// TestLease holds that a blob is kept that a client was told is there, though nothing refers to it yet.
func TestLease(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	job := from{r, addressOf(trustedA)}
	img := image(t)
	if err := job.push(t, "a/app", img); err != nil {
		t.Fatal(err)
	}
	d := digestOf(t, img).String()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	kept, _ := layers[0].Digest()
	dropped, _ := layers[1].Digest()
	if code, _ := job.ask(t, http.MethodDelete, "/v2/a/app/manifests/"+d, ""); code != http.StatusAccepted {
		t.Fatal(code)
	}
	age(t, r)
	if code, _ := job.ask(t, http.MethodHead, "/v2/a/app/blobs/"+kept.String(), ""); code != http.StatusOK {
		t.Fatal(code)
	}
	if err := r.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	for blob, want := range map[string]int{kept.String(): http.StatusOK, dropped.String(): http.StatusNotFound} {
		if code, _ := job.ask(t, http.MethodHead, "/v2/a/app/blobs/"+blob, ""); code != want {
			t.Errorf("%s: %d, want %d", blob, code, want)
		}
	}
}

// TestCollectPastCorruption holds that a manifest that is corrupted does not end all collecting.
func TestCollectPastCorruption(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	job := from{r, addressOf(trustedA)}
	img := image(t)
	if err := job.push(t, "a/app", img); err != nil {
		t.Fatal(err)
	}
	spoil(t, r, digestOf(t, img).String())
	if err := job.pull(t, "a/app"); status(err) != http.StatusNotFound {
		t.Errorf("pulled a corrupted image: %v", err)
	}
	age(t, r)
	if err := r.collect(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r.blobFile(digest.Digest(layerDigest(t, img)))); err == nil {
		t.Error("its layers are still there")
	}
}

func TestUsesOutliveARestart(t *testing.T) {
	root := t.TempDir()
	r := openGuarded(t, root)
	job := from{r, addressOf(trustedA)}
	if err := job.push(t, "a/app", image(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := job.pull(t, "a/app"); err != nil {
			t.Fatal(err)
		}
	}
	before := entriesOf(t, r.Store())["a/app"]
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if got := entriesOf(t, openGuarded(t, root).Store())["a/app"]; got.Uses != before.Uses || got.Uses < 3 || !got.LastUsed.Equal(before.LastUsed) {
		t.Errorf("%+v, before %+v", got, before)
	}
}

// TestStoreKeepsWhatAnIndexNeeds holds that an image stays for as long as the index that names it.
func TestStoreKeepsWhatAnIndexNeeds(t *testing.T) {
	r := openGuarded(t, t.TempDir())
	job := from{r, addressOf(trustedA)}
	index, err := random.Index(1000, 1, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(tag(t, host+"/a/multi:1"), index, remote.WithTransport(job)); err != nil {
		t.Fatal(err)
	}
	age(t, r)
	s := r.Store()
	all, err := s.Entries(t.Context())
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	var ids, needed []string
	for _, e := range all {
		ids, needed = append(ids, e.ID), append(needed, e.Needs...)
	}
	if len(needed) != 2 {
		t.Fatalf("the index needs %v", needed)
	}
	if freed, err := s.Remove(t.Context(), needed); err != nil || freed != 0 {
		t.Errorf("freed %d, %v", freed, err)
	}
	if _, err := s.Remove(t.Context(), ids); err != nil {
		t.Error(err)
	}
	if left := entriesOf(t, s); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
