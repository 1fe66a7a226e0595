package budget

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fake is a store on a fake disk.
type fake struct {
	name string
	disk *fakeDisk

	mu      sync.Mutex
	entries []Entry
	fixed   int64 // bytes that no entry has
	stuck   bool  // Remove frees nothing
	err     error
	slow    time.Duration // what Usage takes
	calls   int           // of Usage
	removes [][]string
}

func (f *fake) Name() string { return f.name }

func (f *fake) Usage(ctx context.Context) (int64, error) {
	f.mu.Lock()
	f.calls++
	slow := f.slow
	f.mu.Unlock()
	select {
	case <-time.After(slow):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.size(), f.err
}

func (f *fake) size() int64 {
	n := f.fixed
	for _, e := range f.entries {
		n += e.Bytes
	}
	return n
}

func (f *fake) Entries(context.Context) ([]Entry, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.entries), f.err
}

func (f *fake) Remove(_ context.Context, ids []string) (freed int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.removes = append(f.removes, ids)
	if f.stuck {
		return 0, errors.New("stuck")
	}
	f.entries = slices.DeleteFunc(f.entries, func(e Entry) bool {
		gone := slices.Contains(ids, e.ID) && !e.InUse
		if gone {
			freed += e.Bytes
		}
		return gone
	})
	return freed, nil
}

// fakeDisk is a file system with stores on it.
type fakeDisk struct {
	size   int64
	mu     sync.Mutex
	others int64
	stores []*fake
}

func (d *fakeDisk) look() (FileSystem, error) {
	d.mu.Lock()
	used := d.others
	d.mu.Unlock()
	for _, s := range d.stores {
		s.mu.Lock()
		used += s.size()
		s.mu.Unlock()
	}
	return FileSystem{Dir: "/state", Size: d.size, Used: used, Free: d.size - used, FreeInodes: 1 << 20}, nil
}

func (d *fakeDisk) write(n int64) { d.mu.Lock(); d.others += n; d.mu.Unlock() }

const gib = 1 << 30

// newFake is a budget of 100 GiB, with marks at 80 and 50.
func newFake(t *testing.T, stores ...*fake) (*Budget, *fakeDisk) {
	disk := &fakeDisk{size: 200 * gib, stores: stores}
	c := Config{Dir: "/state", Limits: Limits{
		Budget: Share{Bytes: 100 * gib}, High: Share{Percent: 80}, Low: Share{Percent: 50}, Floor: Share{Bytes: 10 * gib},
		MinAge: time.Hour, Wait: 5 * time.Minute,
	}}
	for _, s := range stores {
		s.disk = disk
		c.Stores = append(c.Stores, s)
	}
	b := newBudget(c, disk.look)
	t.Cleanup(b.Close)
	return b, disk
}

func old(id string, size int64, age time.Duration) Entry {
	return Entry{ID: id, Bytes: size, Created: time.Now().Add(-age)}
}

func never(t *testing.T) func(string) {
	return func(reason string) { t.Errorf("waited: %s", reason) }
}

func TestMakeRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fake{name: "s"}
		for i := range 9 {
			s.entries = append(s.entries, old(fmt.Sprint(i), 10*gib, time.Duration(i+2)*time.Hour))
		}
		s.entries[8].InUse = true // the oldest
		s.entries = append(s.entries, old("young", 1, time.Minute))
		b, _ := newFake(t, s)
		synctest.Wait()
		if _, err := b.measure(t.Context()); err != nil {
			t.Fatal(err)
		}
		var said []string
		var all sync.WaitGroup
		for range 5 { // one prunes, the others wait for it
			all.Go(func() {
				if err := b.MakeRoom(t.Context(), func(reason string) { b.mu.Lock(); said = append(said, reason); b.mu.Unlock() }); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		var left []string
		for _, e := range s.entries {
			left = append(left, e.ID)
		}
		if want := []string{"0", "1", "2", "8", "young"}; !slices.Equal(left, want) || len(s.removes) != 1 {
			t.Errorf("%v are left, %v removed", left, s.removes)
		}
		if len(said) == 0 || !strings.Contains(said[0], "90 GiB of 100 GiB") {
			t.Error(said)
		}
		calls := s.calls
		if err := b.MakeRoom(t.Context(), never(t)); err != nil || s.calls != calls {
			t.Errorf("%v, and the store was asked %d times", err, s.calls-calls)
		}
		b.Close()
	})
}

// TestNothingToRemove holds that a job starts above the high mark when nothing can go, and that nobody asks again
// and again.
func TestNothingToRemove(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fake{name: "s", stuck: true, entries: []Entry{old("a", 90*gib, 2*time.Hour)}}
		b, _ := newFake(t, s)
		synctest.Wait()
		_, _ = b.measure(t.Context())
		for range 3 {
			if err := b.MakeRoom(t.Context(), func(string) {}); err != nil {
				t.Error(err)
			}
		}
		if len(s.removes) != 1 {
			t.Errorf("removed %v", s.removes)
		}
		b.Close()
	})
}

func TestFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fake{name: "s", entries: []Entry{{ID: "young", Bytes: 3 * gib, Created: time.Now()}}}
		b, disk := newFake(t, s)
		synctest.Wait()
		_, _ = b.measure(t.Context())
		disk.write(195 * gib) // 2 GiB are free, 5 when all is pruned, 10 must be
		var said []string
		ended := make(chan error, 1)
		start := time.Now()
		go func() { ended <- b.MakeRoom(t.Context(), func(r string) { said = append(said, r) }) }()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(s.entries) != 0 {
			t.Error("what is young was spared at the floor")
		}
		if len(said) < 2 || !strings.Contains(said[1], "5 GiB free, 10 GiB are kept free") || strings.Contains(said[1], "no room") {
			t.Errorf("%q", said)
		}
		if err := b.CheckRoom(); !errors.Is(err, ErrFull) {
			t.Error(err)
		}
		disk.write(-20 * gib)
		if err := <-ended; err != nil || time.Since(start) > time.Minute+2*lookEvery {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		disk.write(20 * gib)
		start = time.Now()
		if err := b.MakeRoom(t.Context(), func(string) {}); !errors.Is(err, ErrFull) || time.Since(start) < 5*time.Minute || !strings.Contains(err.Error(), "cache prune") {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		time.AfterFunc(10*time.Second, func() { cancel(gone) })
		if err := b.MakeRoom(ctx, func(string) {}); !errors.Is(err, gone) {
			t.Error(err)
		}
		b.Close()
	})
}

// TestSlowStore holds that a walk that takes minutes does not stall a job.
func TestSlowStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fake{name: "s", entries: []Entry{old("a", 60*gib, 3*time.Hour), old("b", 5*gib, 2*time.Hour)}}
		b, _ := newFake(t, s)
		synctest.Wait()
		_, _ = b.measure(t.Context())
		s.mu.Lock()
		s.slow = 10 * time.Minute
		s.entries = append(s.entries, old("c", 30*gib, 4*time.Hour))
		s.mu.Unlock()
		start := time.Now()
		if err := b.MakeRoom(t.Context(), func(string) {}); err != nil || time.Since(start) > 3*accountWait {
			t.Errorf("%v after %s", err, time.Since(start))
		}
		if len(s.entries) != 1 || s.entries[0].ID != "b" { // 95 - 30 - 60 GiB
			t.Error(s.entries)
		}
		f, _ := b.look()
		if got := b.estimate(f); got != 5*gib {
			t.Errorf("the estimate is %s", Text(got))
		}
		b.Close()
	})
}

// TestOthersGrow holds that what others write on the disk is not taken for ours.
func TestOthersGrow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &fake{name: "s", entries: []Entry{old("a", 60*gib, 2*time.Hour)}}
		b, disk := newFake(t, s)
		synctest.Wait()
		_, _ = b.measure(t.Context())
		disk.write(40 * gib)
		if err := b.MakeRoom(t.Context(), func(string) {}); err != nil || len(s.removes) > 0 {
			t.Error(err, s.removes)
		}
		a, err := b.Account(t.Context())
		if err != nil || a.Bytes != 60*gib || a.Gap.Bytes != 40*gib || !a.Gap.Large {
			t.Errorf("%v %+v", err, a)
		}
		b.Close()
	})
}

// TestFailingStore holds that a store that cannot be asked keeps nobody from accounting and pruning the others.
func TestFailingStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &fake{name: "x", entries: []Entry{old("a", 4*gib, 48*time.Hour)}, err: errors.New("on fire")}
		y := &fake{name: "y", entries: []Entry{old("b", 4*gib, 48*time.Hour)}}
		b, _ := newFake(t, x, y)
		synctest.Wait()
		a, err := b.Account(t.Context())
		if err != nil || a.Bytes != 4*gib || !strings.Contains(a.Stores[0].Error, "on fire") || a.Stores[1].Error != "" {
			t.Errorf("%v %+v", err, a)
		}
		r, err := b.Prune(t.Context(), Request{All: true})
		if err == nil || !strings.Contains(err.Error(), "on fire") || r.Freed != 4*gib || len(y.entries) > 0 {
			t.Errorf("%v %+v", err, r)
		}
		b.Close()
	})
}

func BenchmarkMakeRoom(b *testing.B) {
	budget := New(Config{Dir: b.TempDir(), Limits: Limits{High: Share{Percent: 90}, Low: Share{Percent: 80}, Wait: time.Second}})
	defer budget.Close()
	for b.Loop() {
		if err := budget.MakeRoom(b.Context(), func(string) {}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPrune(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := &fake{name: "x", entries: []Entry{old("a", 4*gib, 48*time.Hour), old("b", 4*gib, 72*time.Hour), old("new", 4*gib, time.Minute)}}
		y := &fake{name: "y", entries: []Entry{old("c", 4*gib, 96*time.Hour), old("d", 4*gib, 97*time.Hour)}}
		y.entries[0].Scope, y.entries[1].Scope = "group/app", "group/app (untrusted)"
		b, _ := newFake(t, x, y)
		synctest.Wait()
		for _, c := range []struct {
			request Request
			want    []string
		}{
			{Request{}, nil}, // below the low mark
			{Request{To: 15 * gib}, []string{"c", "d"}},
			{Request{To: 15 * gib, Store: "x"}, []string{"a", "b"}},
			{Request{OlderThan: 50 * time.Hour}, []string{"b", "c", "d"}},
			{Request{Scope: "group/app", All: true}, []string{"c", "d"}},
			{Request{Scope: "group/app (untrusted)", All: true}, []string{"d"}},
			{Request{All: true}, []string{"a", "b", "c", "d", "new"}},
		} {
			c.request.DryRun = true
			r, err := b.Prune(t.Context(), c.request)
			var got []string
			for _, e := range r.Removed {
				got = append(got, e.ID)
			}
			slices.Sort(got)
			if err != nil || !slices.Equal(got, c.want) || r.Freed != int64(len(c.want))*4*gib {
				t.Errorf("%+v: %v, %v, freed %s", c.request, err, got, Text(r.Freed))
			}
		}
		if len(x.removes)+len(y.removes) > 0 {
			t.Error("a dry run has removed something")
		}
		if _, err := b.Prune(t.Context(), Request{Store: "z"}); !errors.Is(err, ErrNoStore) {
			t.Error(err)
		}
		x.stuck = true
		r, err := b.Prune(t.Context(), Request{All: true})
		if err == nil || len(r.Removed) != 2 || r.Freed != 8*gib || len(y.entries) > 0 || r.Before.Free+8*gib != r.After.Free {
			t.Errorf("%v %+v", err, r)
		}
		if r, err = b.Prune(t.Context(), Request{To: 4 * gib}); err == nil || r.Remaining != 8*gib {
			t.Errorf("%v %+v", err, r)
		}
		b.Close()
	})
}

func TestDiskUsage(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, size int) {
		if err := os.WriteFile(filepath.Join(dir, name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base, err := DiskUsage(t.Context(), dir, filepath.Join(dir, "missing"))
	if err != nil {
		t.Fatal(err)
	}
	write("a", 1<<20)
	if err := errors.Join(os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "b")), os.Truncate(filepath.Join(dir, "a"), 1<<30)); err != nil {
		t.Fatal(err)
	}
	got, err := DiskUsage(t.Context(), dir)
	if err != nil || got-base < 1<<20 || got-base > 1<<20+64<<10 {
		t.Errorf("%d bytes more, %v", got-base, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := DiskUsage(ctx, dir); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if !SameFileSystem(dir, filepath.Join(dir, "not", "there")) || SameFileSystem(dir, "/proc/self") {
		t.Error("file systems are not told apart")
	}
}

func TestMarks(t *testing.T) {
	f := FileSystem{Size: 1000 * gib, Used: 700 * gib, Free: 300 * gib}
	l := Limits{High: Share{Percent: 85}, Low: Share{Percent: 70}, Floor: Share{Percent: 5}}
	if m := l.marks(f, 150*gib); m.Budget != 400*gib || m.High != 340*gib || m.Low != 280*gib || m.Floor != 50*gib {
		t.Errorf("%+v", m)
	}
	l.Budget, l.High = Share{Bytes: 200 * gib}, Share{Bytes: 120 * gib}
	if m := l.marks(f, 150*gib); m.Budget != 200*gib || m.High != 120*gib || m.Low != 120*gib {
		t.Errorf("%+v", m)
	}
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 * gib: "5 GiB", -3 * gib / 2: "-1.5 GiB"} {
		if got := Text(n); got != want {
			t.Errorf("%d is %q", n, got)
		}
	}
}
