//go:build integration

package integration

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/runnerd/runnerd/budget"
)

// largeImages is an OCI layout with the image of jobs and n images on top of it, called large-0 and so on, each
// with a layer of its own.
func largeImages(t *testing.T, n int, layer int64) string {
	t.Helper()
	from, err := layout.FromPath(debianOnly(t))
	if err != nil {
		t.Fatal(err)
	}
	index, err := from.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	base, err := from.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	to, err := layout.Write(dir, index)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		content := make([]byte, layer)
		_, _ = rand.Read(content)
		var text bytes.Buffer
		w := tar.NewWriter(&text)
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "large", Mode: 0o644, Size: layer}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		img, err := mutate.AppendLayers(base, static.NewLayer(text.Bytes(), types.OCIUncompressedLayer))
		if err != nil {
			t.Fatal(err)
		}
		name := map[string]string{"org.opencontainers.image.ref.name": fmt.Sprintf("large-%d:1", i)}
		if err := to.AppendImage(img, layout.WithAnnotations(name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// du is the account, as --json tells it.
func (d *daemon) du() (a budget.Account) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(d.want(0, "", "cache", "du", "--json")), &a); err != nil {
		d.t.Fatal(err)
	}
	return a
}

func (d *daemon) cacheEntries() (all []budget.Listed) {
	d.t.Helper()
	if err := json.Unmarshal([]byte(d.want(0, "", "cache", "du", "-v", "--json")), &all); err != nil {
		d.t.Fatal(err)
	}
	return all
}

// TestDiskBudget has jobs fill a small disk: what is worth least goes before the next one is started, and never
// anything under a job that runs.
func TestDiskBudget(t *testing.T) {
	d, disk := startDaemonOnDisk(t, "2G", "disk: {budget: 850MiB, high: 90%, low: 70%, floor: 100MiB, min_age: 0s, wait: 90s}\nimages: {preload: ["+largeImages(t, 4, 60<<20)+"]}\n")
	b := startBystander(d)
	first := d.du()
	t.Logf("at first: %+v", first)

	for i := range 4 {
		image := fmt.Sprintf("large-%d:1", i)
		d.want(0, "", "run", "--image", image, "--", "true")
		t.Logf("after %s: %s in use", image, budget.Text(d.du().Bytes))
	}
	pruned := func() int { return strings.Count(d.log.String(), "pruned the disk") }
	d.want(0, "", "run", "--", "true")
	if pruned() == 0 {
		t.Errorf("nothing was pruned:\n%s\n%s", d.want(0, "", "cache", "du"), d.want(0, "", "cache", "du", "-v"))
	}
	account := d.du()
	if account.Bytes > account.Marks.High {
		t.Errorf("%s are in use, more than %s", budget.Text(account.Bytes), budget.Text(account.Marks.High))
	}
	var left []string
	for _, e := range d.cacheEntries() {
		if e.Store == "images" {
			left = append(left, e.Description)
			if strings.Contains(e.Description, "debian") != e.InUse {
				t.Errorf("in use: %+v", e)
			}
		}
	}
	if n := len(left); n < 2 || n > 4 || !slices.Contains(left, "docker.io/library/debian:bookworm-slim") || !slices.Contains(left, "docker.io/library/large-3:1") {
		t.Errorf("left are %v", left)
	}
	d.want(0, "", "run", "--image", "large-0:1", "--", "true") // what was removed is pulled again

	t.Run("dry run", func(t *testing.T) {
		before := d.cacheEntries()
		stdout := d.want(0, "", "cache", "prune", "--all", "--dry-run")
		if !strings.Contains(stdout, "would remove") {
			t.Errorf("%s", stdout)
		}
		if after := d.cacheEntries(); len(after) != len(before) {
			t.Errorf("there were %d entries and are %d", len(before), len(after))
		}
	})
	t.Run("gap", func(t *testing.T) {
		if g := d.du().Gap; g.Large || g.Bytes < -g.Tolerance {
			t.Errorf("after real jobs: %+v", g)
		}
		unknown := filepath.Join(d.state, "unknown")
		if err := os.WriteFile(unknown, make([]byte, 300<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if g := d.du().Gap; !g.Large || g.Bytes < 300<<20-g.Tolerance || g.Bytes > 300<<20+g.Tolerance {
			t.Errorf("with an unknown file: %+v", g)
		}
		stdout := d.want(0, "", "cache", "du")
		if !strings.Contains(stdout, "is not accounted") {
			t.Errorf("%s", stdout)
		}
		t.Logf("\n%s", stdout)
		if err := os.Remove(unknown); err != nil {
			t.Fatal(err)
		}
		if g := d.du().Gap; g.Large {
			t.Errorf("without it: %+v", g)
		}
	})
	t.Run("prune", func(t *testing.T) {
		stdout := d.want(0, "", "cache", "prune", "--store", "images", "--all", "-f")
		t.Logf("\n%s", stdout)
		for _, e := range d.cacheEntries() {
			if e.Store == "images" && !e.InUse {
				t.Errorf("left: %+v", e)
			}
		}
		d.want(1, "no such store", "cache", "prune", "--store", "nonsense", "--all")
		d.want(2, "--to", "cache", "prune", "--to", "0", "-f")
		if g := d.du().Gap; g.Large || g.Bytes < -g.Tolerance {
			t.Errorf("after pruning: %+v", g)
		}
	})
	t.Run("floor", func(t *testing.T) {
		d.want(0, "", "cache", "prune", "--all", "-f")
		f, err := budget.Look(disk)
		if err != nil {
			t.Fatal(err)
		}
		filler := filepath.Join(disk, "filler")
		if err := os.WriteFile(filler, make([]byte, f.Free-80<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		id := strings.TrimSpace(d.want(0, "", "run", "--name", "waits", "--detach", "--", "true"))
		var jobs string
		for deadline := time.Now().Add(40 * time.Second); !strings.Contains(jobs, "are kept free, and nothing"); time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("the job does not wait: %s", jobs)
			}
			jobs = d.want(0, "", "jobs", "--json", "--all")
		}
		t.Log(d.want(0, "", "jobs"))
		if j := d.await("waits", "waiting"); j.ID != id {
			t.Errorf("%+v", j)
		}
		if err := os.Remove(filler); err != nil {
			t.Fatal(err)
		}
		if j := d.await("waits", "finished"); j.Result.Outcome != "succeeded" {
			t.Errorf("%+v", j)
		}
	})
	b.end(t)
}
