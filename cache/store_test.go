package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob/memblob"

	"github.com/runnerd/runnerd/scope"
)

var (
	trusted   = scope.Scope{Forge: "forge.test", Project: "group/app", Trust: scope.Trusted}
	untrusted = scope.Scope{Forge: "forge.test", Project: "group/app", Trust: scope.Untrusted}
	other     = scope.Scope{Forge: "forge.test", Project: "group/other", Trust: scope.Trusted}
)

// stores are one on a directory and one that is not on this machine.
func stores(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Run("file", func(t *testing.T) { test(t, fileStore(t)) })
	t.Run("mem", func(t *testing.T) {
		s, err := (&Store{bucket: memblob.OpenBucket(nil), workers: 4}).with(Config{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { finish(t, s) })
		test(t, s)
	})
}

func fileStore(t *testing.T) *Store {
	s, err := Open(t.Context(), Config{Dir: filepath.Join(t.TempDir(), "cache")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { finish(t, s) })
	return s
}

func finish(t *testing.T, s *Store) {
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if len(s.pins.count) > 0 || len(s.inUse) > 0 {
		t.Errorf("%d chunks are still pinned, %d entries in use", len(s.pins.count), len(s.inUse))
	}
}

// data is n bytes that compress to about half, the same for the same seed.
func data(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	p := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := r.Uint64()
		for j := range 4 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

func save(t *testing.T, s *Store, owner scope.Scope, key string, content []byte) Saved {
	t.Helper()
	saved, err := s.Save(t.Context(), owner, owner, key, "job-1", bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

// find restores what a job finds; found is false for a miss.
func find(t *testing.T, s *Store, by scope.Scope, keys ...string) (content []byte, e *Entry) {
	t.Helper()
	e, err := s.Find(t.Context(), by, keys...)
	if err != nil {
		t.Fatal(err)
	}
	if e == nil {
		return nil, nil
	}
	content, err = restore(t.Context(), s, e)
	if err != nil {
		t.Fatal(err)
	}
	return content, e
}

func restore(ctx context.Context, s *Store, e *Entry) ([]byte, error) {
	r := s.Open(ctx, e)
	defer func() { _ = r.Close() }()
	if e.Bytes%2 == 0 {
		return io.ReadAll(struct{ io.Reader }{r})
	}
	var all bytes.Buffer
	_, err := r.WriteTo(&all)
	return all.Bytes(), err
}

func TestSaveAndRestore(t *testing.T) {
	stores(t, func(t *testing.T, s *Store) {
		for _, n := range []int{0, 1, minChunk, 9_000_001} {
			content := data(uint64(n), n)
			saved := save(t, s, trusted, "k", content)
			if saved.Bytes != int64(n) || saved.NewBytes != int64(n) || n > minChunk && saved.Written > int64(n)*19/20 {
				t.Errorf("%d bytes: %+v", n, saved)
			}
			got, e := find(t, s, trusted, "k")
			if e == nil || !bytes.Equal(got, content) || e.Job != "job-1" {
				t.Errorf("%d bytes: restored %d of %+v", n, len(got), e)
			}
		}
		if _, e := find(t, s, trusted, "K"); e != nil {
			t.Error("a key that nobody has saved was found")
		}
	})
}

// TestUnchangedChunks holds that what has not changed is not written again, wherever in the stream it is.
func TestUnchangedChunks(t *testing.T) {
	stores(t, func(t *testing.T, s *Store) {
		content := data(1, 30<<20)
		save(t, s, trusted, "a", content)
		if saved := save(t, s, untrusted, "b", content); saved.NewBytes != 0 || saved.Written != 0 {
			t.Errorf("the same again: %+v", saved)
		}
		moved := append([]byte("one line more"), content...)
		if saved := save(t, s, trusted, "a", moved); saved.NewBytes == 0 || saved.NewBytes > 3*maxChunk {
			t.Errorf("moved by a line: %+v", saved)
		}
		if got, _ := find(t, s, trusted, "a"); !bytes.Equal(got, moved) {
			t.Error("the last writer has not won")
		}
		if saved := save(t, s, other, "a", content); saved.NewBytes != int64(len(content)) {
			t.Errorf("another project's chunks were used: %+v", saved)
		}
	})
}

func TestFallbackKeys(t *testing.T) {
	s := fileStore(t)
	save(t, s, trusted, "old", []byte("trusted old"))
	save(t, s, trusted, "new", []byte("trusted new"))
	save(t, s, untrusted, "old", []byte("untrusted old"))
	for _, c := range []struct {
		by   scope.Scope
		keys []string
		want string
	}{
		{trusted, []string{"new", "old"}, "trusted new"},
		{trusted, []string{"none", "old"}, "trusted old"},
		{untrusted, []string{"old", "new"}, "untrusted old"},
		{untrusted, []string{"new", "old"}, "trusted new"}, // the key counts more than the scope
		{untrusted, []string{"none", "ol"}, ""},            // no prefixes
		{other, []string{"new", "old"}, ""},
		{scope.Scope{}, nil, ""},
	} {
		if got, _ := find(t, s, c.by, c.keys...); string(got) != c.want {
			t.Errorf("%s, %q: %q, not %q", c.by, c.keys, got, c.want)
		}
	}
}

// TestCutOff holds that an upload that is cut off leaves no entry, nor harms the one that there is, and that its
// chunks are collected.
func TestCutOff(t *testing.T) {
	stores(t, func(t *testing.T, s *Store) {
		save(t, s, trusted, "k", []byte("good"))
		cut := errors.New("cut off")
		content := data(2, 20<<20)
		for name, try := range map[string]func() error{
			"the stream": func() error {
				_, err := s.Save(t.Context(), trusted, trusted, "k", "j", io.MultiReader(bytes.NewReader(content), failing{cut}))
				return err
			},
			"the context": func() error {
				ctx, cancel := context.WithCancelCause(t.Context())
				_, err := s.Save(ctx, trusted, trusted, "k", "j", io.MultiReader(bytes.NewReader(content), doing(func() { cancel(cut) }), bytes.NewReader(content)))
				return err
			},
		} {
			if err := try(); !errors.Is(err, cut) {
				t.Errorf("%s: %v", name, err)
			}
			if got, _ := find(t, s, trusted, "k"); string(got) != "good" {
				t.Errorf("%s: the entry is now %d bytes", name, len(got))
			}
		}
		if freed, err := s.Tidy(t.Context()); err != nil || freed < 5<<20 {
			t.Errorf("%d bytes were collected: %v", freed, err)
		}
		if got, _ := find(t, s, trusted, "k"); string(got) != "good" {
			t.Error("a good entry was collected")
		}
	})
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// doing is an empty reader that does something on the way.
type doing func()

func (d doing) Read([]byte) (int, error) { d(); return 0, io.EOF }

func TestTooLarge(t *testing.T) {
	s := fileStore(t)
	s.maxEntry = 1 << 20
	if _, err := s.Save(t.Context(), trusted, trusted, "k", "j", zeros{}); !errors.Is(err, ErrTooLarge) {
		t.Error(err)
	}
	if _, e := find(t, s, trusted, "k"); e != nil {
		t.Error("it is there")
	}
}

// TestNoRoom holds that a save ends when the disk is full, and leaves no entry.
func TestNoRoom(t *testing.T) {
	s := fileStore(t)
	full, asked := errors.New("full"), 0
	s.room = func() error {
		if asked++; asked > 2 {
			return full
		}
		return nil
	}
	if _, err := s.Save(t.Context(), trusted, trusted, "k", "j", bytes.NewReader(data(13, 200*minChunk*4))); !errors.Is(err, full) {
		t.Error(err)
	}
	if _, e := find(t, s, trusted, "k"); e != nil {
		t.Error("it is there")
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestDamage damages each chunk, and the index, in turn, in every way.
func TestDamage(t *testing.T) {
	damages := map[string]func(path string) error{
		"one bit":   func(path string) error { return edit(path, func(p []byte) []byte { p[len(p)/2] ^= 1; return p }) },
		"cut short": func(path string) error { return edit(path, func(p []byte) []byte { return p[:len(p)/2] }) },
		"empty":     func(path string) error { return edit(path, func([]byte) []byte { return nil }) },
		"missing":   os.Remove,
		"another's": func(path string) error {
			return edit(path, func(p []byte) []byte { return bytes.ReplaceAll(p, []byte(`"k"`), []byte(`"x"`)) })
		},
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			s := fileStore(t)
			content := data(3, 8<<20)
			save(t, s, trusted, "k", content)
			var files []string
			_ = filepath.WalkDir(s.dir, func(path string, d fs.DirEntry, _ error) error {
				if d.Type().IsRegular() && (name != "another's" || strings.Contains(path, "/entries/")) {
					files = append(files, path)
				}
				return nil
			})
			if len(files) == 0 {
				t.Fatal("nothing to damage")
			}
			for _, path := range files {
				save(t, s, trusted, "k", content)
				if err := damage(path); err != nil {
					t.Fatal(err)
				}
				e, err := s.Find(t.Context(), trusted, "k")
				if err != nil {
					t.Fatal(err)
				}
				if e != nil {
					got, err := restore(t.Context(), s, e)
					if !errors.Is(err, ErrDamaged) || !bytes.HasPrefix(content, got) {
						t.Fatalf("%s: %d bytes, %v", path, len(got), err)
					}
				}
				if _, e := find(t, s, trusted, "k"); e != nil {
					t.Fatalf("%s: the entry was not dropped", path)
				}
				_ = os.Remove(path) // a chunk that is there is not written again
			}
		})
	}
}

func edit(path string, change func([]byte) []byte) error {
	p, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, change(p), 0o600)
}

// TestBypassedDigest shows that it is the digest that finds a damaged chunk: whoever can write the bucket can
// otherwise have it restored.
func TestBypassedDigest(t *testing.T) {
	s := fileStore(t)
	save(t, s, trusted, "k", []byte("good"))
	e, err := s.Find(t.Context(), trusted, "k")
	if err != nil {
		t.Fatal(err)
	}
	c := e.chunks()[0]
	if err := s.bucket.WriteAll(t.Context(), c.path(), s.enc.EncodeAll([]byte("evil"), nil), nil); err != nil {
		t.Fatal(err)
	}
	if plain, err := s.dec.DecodeAll(must(s.bucket.ReadAll(t.Context(), c.path())), make([]byte, 0, 4)); err != nil || string(plain) != "evil" {
		t.Fatalf("%q, %v", plain, err)
	}
	if _, err := restore(t.Context(), s, e); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestBomb holds that a chunk that decompresses to more than it should is not.
func TestBomb(t *testing.T) {
	s := fileStore(t)
	save(t, s, trusted, "k", []byte("good"))
	e := must(s.Find(t.Context(), trusted, "k"))
	bomb := s.enc.EncodeAll(make([]byte, 64<<20), nil)
	if err := s.bucket.WriteAll(t.Context(), e.chunks()[0].path(), bomb, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := restore(t.Context(), s, e); !errors.Is(err, ErrDamaged) {
		t.Error(err)
	}
}

// TestConcurrency has saves, restores and collections of two stores on one bucket meet: what is restored is what
// was saved, or a miss.
func TestConcurrency(t *testing.T) {
	first := fileStore(t)
	second, err := Open(t.Context(), Config{Dir: first.dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { finish(t, second) })
	var all sync.WaitGroup
	for i := range 8 {
		s := []*Store{first, second}[i%2]
		all.Go(func() {
			for n := range 6 {
				key, seed := fmt.Sprint("k", i%3), uint64(i*10+n)
				if _, err := s.Save(t.Context(), trusted, trusted, key, fmt.Sprint(seed), bytes.NewReader(data(seed%4, 3<<20))); err != nil {
					t.Error(err)
				}
				e, err := s.Find(t.Context(), trusted, key)
				if err != nil {
					t.Error(err)
				}
				if e == nil {
					continue // dropped by one that found it damaged
				}
				got, err := restore(t.Context(), s, e)
				var job uint64
				_, _ = fmt.Sscan(e.Job, &job)
				if err == nil && !bytes.Equal(got, data(job%4, 3<<20)) || err != nil && !errors.Is(err, ErrDamaged) {
					t.Error("restored something else: ", err)
				}
			}
		})
	}
	stop := make(chan struct{})
	var collector sync.WaitGroup
	collector.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := first.Tidy(t.Context()); err != nil {
					t.Error(err)
				}
			}
		}
	})
	all.Wait()
	close(stop)
	collector.Wait()
}

// TestCollectionMeetsSave holds that within one daemon a save never loses a chunk to a collection.
func TestCollectionMeetsSave(t *testing.T) {
	s := fileStore(t)
	content := data(5, 6<<20)
	var saves sync.WaitGroup
	for i := range 4 {
		saves.Go(func() {
			for range 5 {
				key := fmt.Sprint(i)
				if _, err := s.Save(t.Context(), trusted, trusted, key, "j", bytes.NewReader(content)); err != nil {
					t.Error(err)
				}
				e, err := s.Find(t.Context(), trusted, key)
				if err != nil || e == nil {
					t.Error("miss: ", err)
					return
				}
				if _, err := restore(t.Context(), s, e); err != nil {
					t.Error(err)
				}
				if _, err := s.Remove(t.Context(), []string{e.path}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	saves.Wait()
	if n := must(s.Usage(t.Context())); n > 1<<20 {
		t.Errorf("after the last was removed %d bytes are left", n)
	}
}

func TestExpiry(t *testing.T) {
	s := fileStore(t)
	now := time.Now()
	s.now = func() time.Time { return now }
	save(t, s, trusted, "read", data(6, 1<<20))
	save(t, s, trusted, "unread", data(7, 1<<20))
	if _, err := s.SaveArtifact(t.Context(), trusted, "job-1", "out.tar", now.Add(time.Hour), bytes.NewReader(data(8, 1<<20))); err != nil {
		t.Fatal(err)
	}
	at := func(d time.Duration) (keys []string, artifacts int) {
		now = now.Add(d)
		if _, err := s.Tidy(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"read", "unread"} {
			if _, e := find(t, s, trusted, key); e != nil {
				keys = append(keys, key)
			}
		}
		return keys, len(must(s.Artifacts(t.Context(), trusted, "job-1")))
	}
	if keys, n := at(59 * time.Minute); len(keys) != 2 || n != 1 {
		t.Error(keys, n)
	}
	if keys, n := at(29 * 24 * time.Hour); len(keys) != 2 || n != 0 {
		t.Error(keys, n)
	}
	if err := s.Used(t.Context(), must(s.Find(t.Context(), trusted, "read"))); err != nil {
		t.Fatal(err)
	}
	if keys, _ := at(24 * time.Hour); fmt.Sprint(keys) != "[read]" {
		t.Error(keys)
	}
	if keys, _ := at(30 * 24 * time.Hour); len(keys) != 0 {
		t.Error(keys)
	}
	if n := must(s.Usage(t.Context())); n > 1<<20 {
		t.Errorf("%d bytes are left", n)
	}
}

func TestBudget(t *testing.T) {
	s := fileStore(t)
	shared := data(9, 8<<20)
	save(t, s, trusted, "a", append(data(10, 4<<20), shared...))
	save(t, s, untrusted, "b", append(data(11, 2<<20), shared...))
	if _, err := s.SaveArtifact(t.Context(), trusted, "job-2", "out.tar", time.Now().Add(time.Hour), bytes.NewReader(data(12, 1<<20))); err != nil {
		t.Fatal(err)
	}
	entry := must(s.Find(t.Context(), trusted, "a"))
	for range 3 {
		if err := s.Used(t.Context(), entry); err != nil {
			t.Fatal(err)
		}
	}
	before := must(s.Usage(t.Context()))
	entries, err := s.Entries(t.Context())
	if err != nil || len(entries) != 3 {
		t.Fatal(entries, err)
	}
	for _, e := range entries {
		t.Logf("%+v", e)
		if e.ID == entry.path && (e.Uses != 3 || e.Scope != "forge.test/group/app" || e.InUse || e.Bytes < 1<<20 || e.Bytes > 6<<20) {
			t.Errorf("%+v", e)
		}
	}
	reading := s.Open(t.Context(), entry)
	if freed, err := s.Remove(t.Context(), []string{entry.path}); freed != 0 || err != nil {
		t.Error("an entry in use was removed: ", freed, err)
	}
	if err := reading.Close(); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.ID != entry.path {
			continue
		}
		freed, err := s.Remove(t.Context(), []string{e.ID, e.ID, "nonsense", e.ID[:16] + "/chunks/x"})
		if err == nil || freed < e.Bytes*9/10 || freed > e.Bytes*11/10+blockSize {
			t.Errorf("freed %d of %d: %v", freed, e.Bytes, err)
		}
		if gone := before - must(s.Usage(t.Context())); gone < freed*9/10 {
			t.Errorf("the disk says %d, not %d", gone, freed)
		}
	}
	if _, e := find(t, s, untrusted, "b"); e == nil {
		t.Error("what was shared went too")
	}
}

func TestArtifacts(t *testing.T) {
	stores(t, func(t *testing.T, s *Store) {
		until := time.Now().Add(time.Hour)
		for _, name := range []string{"b.tar", "a.tar"} {
			if _, err := s.SaveArtifact(t.Context(), untrusted, "job-1", name, until, strings.NewReader(name)); err != nil {
				t.Fatal(err)
			}
		}
		all := must(s.Artifacts(t.Context(), untrusted, "job-1"))
		if len(all) != 2 || all[0].Key != "a.tar" || string(must(restore(t.Context(), s, all[0]))) != "a.tar" {
			t.Errorf("%+v", all)
		}
		for _, c := range []struct {
			owner scope.Scope
			job   string
		}{{trusted, "job-1"}, {other, "job-1"}, {untrusted, "job-"}, {untrusted, "job-2"}} {
			if n := len(must(s.Artifacts(t.Context(), c.owner, c.job))); n != 0 {
				t.Errorf("%s of %s has %d artifacts", c.job, c.owner, n)
			}
		}
		for _, job := range []string{"", ".", "..", "a/b", "../x", "a\x00"} {
			if _, err := s.Artifacts(t.Context(), untrusted, job); err == nil {
				t.Errorf("%q is a job", job)
			}
		}
		if _, e := find(t, s, untrusted, "a.tar"); e != nil {
			t.Error("an artifact is a cache")
		}
	})
}
