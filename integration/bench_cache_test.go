//go:build integration && bench

package integration

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/archive"
	"github.com/runnerd/runnerd/cache"
)

// The tree that is saved and restored: that of a large node_modules, in numbers.
const (
	cachedFiles = 50_000
	cachedBytes = 1 << 30
	cachePairs  = 7
)

// benchCache compares a save and a restore of 1 GiB in 50,000 files with "tar | zstd -T2". As in a sandbox, a process
// of its own packs and extracts. The files are on a tmpfs where there is one with room for them: the disk's speed
// is not what is measured.
func benchCache(t *testing.T) {
	b := &cacheBench{T: t, dir: memoryDir(t)}
	b.tree, b.tarball = filepath.Join(b.dir, "tree"), filepath.Join(b.dir, "tree.tar.zst")
	b.plant()
	t.Cleanup(func() { _ = b.store.Close() })

	const goal = 1.1
	b.save(true) // warm
	b.tar()
	compare(t, "cache: save 1 GiB, empty store / tar | zstd -T2", cachePairs, func() time.Duration { return b.save(true) }, b.tar, goal)
	compare(t, "cache: save, 1 % of files changed / tar | zstd -T2", cachePairs, func() time.Duration { b.change(); return b.save(false) }, b.tar, goal)
	changed := b.saved.NewBytes
	b.save(true)
	b.tar()
	b.restore()
	b.untar()
	compare(t, "cache: restore 1 GiB / zstd -d | tar -x", cachePairs, b.restore, b.untar, goal)
	tarball, err := os.Stat(b.tarball)
	if err != nil {
		t.Fatal(err)
	}
	absolute(fmt.Sprintf("cache: 1 GiB compressed (tar.zst: %d MiB)", tarball.Size()>>20), fmt.Sprintf("%d MiB", b.saved.Written>>20), "", true)
	absolute("cache: new bytes when 1 % of files change", fmt.Sprintf("%d MiB", changed>>20), "", true)
}

// memoryDir is a directory on a tmpfs with room for the files, the store, the tarball and what is extracted, or one on
// the disk.
func memoryDir(t *testing.T) string {
	t.Helper()
	const shm = "/dev/shm"
	var fs unix.Statfs_t
	if err := unix.Statfs(shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Bavail < 5*cachedBytes/uint64(fs.Bsize) {
		return scratchDir(t)
	}
	dir, err := os.MkdirTemp(shm, "runnerd-bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

type cacheBench struct {
	*testing.T
	dir, tree, tarball string
	store              *cache.Store
	saved              cache.Saved // of the last save
	round              int
}

func (b *cacheBench) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// name is the path of the i-th file: there are 100 in a directory.
func (b *cacheBench) name(i int) string {
	return filepath.Join(b.tree, fmt.Sprintf("package-%03d", i/1000), fmt.Sprintf("lib-%d", i/100%10), fmt.Sprintf("file-%d.js", i))
}

// plant makes the files: sizes that vary a hundredfold around the mean, contents that look like source text to zstd.
func (b *cacheBench) plant() {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		word := make([]byte, 3+r.IntN(12))
		for j := range word {
			word[j] = "etaoinshrdlucmfwypvbgk_.(){};= \n"[r.IntN(32)]
		}
		words[i] = word
	}
	const mean = cachedBytes / cachedFiles
	for i := range cachedFiles {
		n := int(float64(mean) * []float64{0.05, 0.2, 0.5, 1, 3.25}[r.IntN(5)])
		text := make([]byte, 0, n+16)
		for len(text) < n {
			text = append(text, words[int(float64(len(words))*r.Float64()*r.Float64())]...)
		}
		b.must(os.MkdirAll(filepath.Dir(b.name(i)), 0o755))
		b.must(os.WriteFile(b.name(i), text[:n], 0o644))
	}
}

// change rewrites a hundredth of the files, the same ones with other contents each time.
func (b *cacheBench) change() {
	b.round++
	for i := 0; i < cachedFiles; i += 100 {
		text, err := os.ReadFile(b.name(i))
		b.must(err)
		b.must(os.WriteFile(b.name(i), append(fmt.Appendf(nil, "// %08d\n", b.round), text...)[:len(text)], 0o644))
	}
}

// archiver is the sandbox's init, as it packs and extracts.
func (b *cacheBench) archiver(dir string, args ...string) *exec.Cmd {
	cmd := exec.Command(engineBinary(b.T, "runnerd-init"), append([]string{"archive"}, args...)...)
	cmd.Dir, cmd.Stderr = dir, io.Discard
	return cmd
}

func (b *cacheBench) save(empty bool) time.Duration {
	if empty {
		if b.store != nil {
			_ = b.store.Close()
		}
		dir := filepath.Join(b.dir, "store")
		b.must(os.RemoveAll(dir))
		var err error
		b.store, err = cache.Open(b.Context(), cache.Config{Dir: dir})
		b.must(err)
	}
	began := time.Now()
	cmd := b.archiver(b.tree, "pack", "0", "0", "--", ".")
	r, w, err := cache.Pipe()
	b.must(err)
	defer func() { _ = r.Close() }()
	cmd.Stdout = w
	b.must(cmd.Start())
	_ = w.Close()
	b.saved, err = b.store.Save(b.Context(), trusted("bench"), trusted("bench"), "k", "j", r)
	b.must(err)
	b.must(cmd.Wait())
	return time.Since(began)
}

func (b *cacheBench) tar() time.Duration {
	_ = os.Remove(b.tarball)
	return timed(b.T, exec.Command("sh", "-c", "tar -C "+b.tree+" -cf - . | zstd -q -T2 -o "+b.tarball))
}

// into is an empty directory to extract into.
func (b *cacheBench) into() string {
	dir := filepath.Join(b.dir, "into")
	b.must(os.RemoveAll(dir))
	b.must(os.Mkdir(dir, 0o755))
	return dir
}

func (b *cacheBench) restore() time.Duration {
	dir := b.into()
	began := time.Now()
	e, err := b.store.Find(b.Context(), trusted("bench"), "k")
	b.must(err)
	from := b.store.Open(b.Context(), e)
	cmd := b.archiver(dir, "extract", strconv.FormatInt(e.Bytes, 10), "0")
	r, w, err := cache.Pipe()
	b.must(err)
	cmd.Stdin = r
	b.must(cmd.Start())
	_ = r.Close()
	_, err = from.WriteTo(w)
	b.must(err)
	_ = w.Close()
	b.must(cmd.Wait())
	b.must(from.Close())
	took := time.Since(began)
	found, err := archive.Select(dir, archive.Selection{Patterns: []string{"."}}, archive.Limits{})
	b.must(err)
	if sum, err := archive.Pack(io.Discard, dir, found.Names, archive.Packing{Format: archive.Tar}); err != nil || sum.Files != cachedFiles {
		b.Fatal(sum, err)
	}
	return took
}

func (b *cacheBench) untar() time.Duration {
	dir := b.into()
	return timed(b.T, exec.Command("sh", "-c", "zstd -q -d -T2 -c "+b.tarball+" | tar -C "+dir+" -xf -"))
}
