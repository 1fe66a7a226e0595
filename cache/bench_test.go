//go:build bench

package cache

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/runnerd/runnerd/archive"
)

// The tree that is saved and restored: that of a large node_modules, in numbers.
const (
	benchFiles = 50_000
	benchBytes = 1 << 30
	benchPairs = 7
	goal       = 1.1
)

// TestBenchCache compares a save and a restore of 1 GiB in 50,000 files with "tar | zstd -T2", in pairs in random
// order, and prints the median of the pairs' ratios with its bootstrap 95 % interval. As in a sandbox, a process of
// its own packs and extracts. RUNNERD_BENCH_DIR is where the files are; its file system counts.
func TestBenchCache(t *testing.T) {
	base, err := os.MkdirTemp(os.Getenv("RUNNERD_BENCH_DIR"), "runnerd-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	b := &bench{T: t, base: base, tree: filepath.Join(base, "tree"), init: filepath.Join(base, "init")}
	b.command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.init, "../cmd/runnerd-init")
	b.plant()

	b.compare("save, empty store", goal, func() time.Duration { return b.save(true) }, b.tar)
	b.compare("save again, 1 % of the files changed", goal, func() time.Duration { b.change(); return b.save(false) }, b.tar)
	b.save(true)
	b.tar()
	b.compare("restore", goal, b.restore, b.untar)
	fmt.Printf("%s of %s compressed, tar.zst has %s\n", mib(must(b.store.Usage(t.Context()))), mib(benchBytes), mib(size(b.tarball())))
}

type bench struct {
	*testing.T
	base, tree, init string
	store            *Store
	round            int
}

func (b *bench) command(name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func (b *bench) tarball() string { return filepath.Join(b.base, "tree.tar.zst") }

// plant makes the files: sizes that vary a hundredfold around the mean, contents that look like source text to zstd,
// in directories of 100.
func (b *bench) plant() {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		word := make([]byte, 3+r.IntN(12))
		for j := range word {
			word[j] = "etaoinshrdlucmfwypvbgk_.(){};= \n"[r.IntN(32)]
		}
		words[i] = word
	}
	const mean = benchBytes / benchFiles
	for i := range benchFiles {
		n := int(float64(mean) * []float64{0.05, 0.2, 0.5, 1, 3.25}[r.IntN(5)])
		text := make([]byte, 0, n+16)
		for len(text) < n {
			text = append(text, words[int(float64(len(words))*r.Float64()*r.Float64())]...)
		}
		dir := filepath.Join(b.tree, fmt.Sprintf("package-%03d", i/1000), fmt.Sprintf("lib-%d", i/100%10))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%d.js", i)), text[:n], 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

// change rewrites a hundredth of the files, the same ones with other contents each time.
func (b *bench) change() {
	b.round++
	for i := 0; i < benchFiles; i += 100 {
		name := filepath.Join(b.tree, fmt.Sprintf("package-%03d", i/1000), fmt.Sprintf("lib-%d", i/100%10), fmt.Sprintf("file-%d.js", i))
		text, err := os.ReadFile(name)
		if err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(name, append([]byte(fmt.Sprintf("// %08d\n", b.round)), text...)[:len(text)], 0o644); err != nil {
			b.Fatal(err)
		}
	}
}

func (b *bench) save(empty bool) time.Duration {
	if empty {
		if b.store != nil {
			_ = b.store.Close()
		}
		dir := filepath.Join(b.base, "store")
		if err := os.RemoveAll(dir); err != nil {
			b.Fatal(err)
		}
		b.store = must(Open(b.Context(), Config{Dir: dir}))
	}
	start := time.Now()
	cmd := exec.Command(b.init, "archive", "pack", "0", "0", ".")
	cmd.Dir = b.tree
	r, w, err := Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_ = w.Close()
	defer func() { _ = r.Close() }()
	saved := must(b.store.Save(b.Context(), trusted, trusted, "k", "j", r))
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	b.Logf("saved %s, %s new, %s written", mib(saved.Bytes), mib(saved.NewBytes), mib(saved.Written))
	return took
}

func (b *bench) tar() time.Duration {
	_ = os.Remove(b.tarball())
	start := time.Now()
	b.command("sh", "-c", "tar -C "+b.tree+" -cf - . | zstd -q -T2 -o "+b.tarball())
	return time.Since(start)
}

// into is an empty directory to extract into.
func (b *bench) into() string {
	dir := filepath.Join(b.base, "into")
	if err := os.RemoveAll(dir); err != nil {
		b.Fatal(err)
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		b.Fatal(err)
	}
	return dir
}

func (b *bench) restore() time.Duration {
	dir := b.into()
	start := time.Now()
	e := must(b.store.Find(b.Context(), trusted, "k"))
	r := b.store.Open(b.Context(), e)
	cmd := exec.Command(b.init, "archive", "extract", strconv.FormatInt(e.Bytes, 10), "0")
	in, w, err := Pipe()
	if err != nil {
		b.Fatal(err)
	}
	cmd.Dir, cmd.Stdin, cmd.Stderr = dir, in, os.Stderr
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_ = in.Close()
	if _, err := r.WriteTo(w); err != nil {
		b.Fatal(err)
	}
	_ = w.Close()
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	if err := r.Close(); err != nil {
		b.Fatal(err)
	}
	took := time.Since(start)
	if sum, err := archive.Pack(io.Discard, dir, []string{"."}, archive.Limits{}); err != nil || sum.Files != benchFiles {
		b.Fatal(sum, err)
	}
	return took
}

func (b *bench) untar() time.Duration {
	dir := b.into()
	start := time.Now()
	b.command("sh", "-c", "zstd -q -d -T2 -c "+b.tarball()+" | tar -C "+dir+" -xf -")
	return time.Since(start)
}

// compare prints the pairs of ours and its peer.
func (b *bench) compare(what string, goal float64, ours, peer func() time.Duration) {
	ours() // warm
	peer()
	var x, y []time.Duration
	var ratios []float64
	for range benchPairs {
		var mine, theirs time.Duration
		if rand.IntN(2) == 0 {
			mine, theirs = ours(), peer()
		} else {
			theirs, mine = peer(), ours()
		}
		x, y, ratios = append(x, mine), append(y, theirs), append(ratios, mine.Seconds()/theirs.Seconds())
	}
	var medians []float64
	for range 2000 {
		sample := make([]float64, len(ratios))
		for i := range sample {
			sample[i] = ratios[rand.IntN(len(ratios))]
		}
		medians = append(medians, median(sample))
	}
	slices.Sort(medians)
	high := medians[1950]
	verdict := "missed"
	if high <= goal {
		verdict = "met"
	}
	fmt.Printf("%-40s ours %6.2f s, tar | zstd -T2 %6.2f s, ratio %.3f [%.3f, %.3f], goal <= %.2f: %s\n", what,
		median(x).Seconds(), median(y).Seconds(), median(ratios), medians[50], high, goal, verdict)
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func mib(n int64) string { return strconv.FormatInt(n>>20, 10) + " MiB" }

func size(name string) int64 { return must(os.Stat(name)).Size() }
