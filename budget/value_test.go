package budget

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func TestValue(t *testing.T) {
	now := time.Now()
	entry := func(bytes int64, age, idle time.Duration, uses int64) Entry {
		return Entry{Bytes: bytes, Created: now.Add(-age), LastUsed: now.Add(-idle), Uses: uses}
	}
	const day = 24 * time.Hour
	for name, c := range map[string]struct{ less, more Entry }{
		"idle for longer":         {entry(1<<20, 9*day, 8*day, 3), entry(1<<20, 9*day, day, 3)},
		"used less often":         {entry(1<<20, 9*day, day, 3), entry(1<<20, 9*day, day, 30)},
		"larger":                  {entry(1<<30, 9*day, day, 3), entry(1<<20, 9*day, day, 3)},
		"used often but long ago": {entry(1<<20, 365*day, 335*day, 10000), entry(1<<20, day, day/2, 1)},
		"used once by a scan":     {entry(1<<20, 30*day, day/2, 1), entry(1<<20, 30*day, day, 200)},
		"never used":              {entry(1<<20, 2*day, 2*day, 0), entry(1<<20, 2*day, day, 1)},
	} {
		if value(c.less, now) >= value(c.more, now) {
			t.Errorf("%s: %g is not less than %g", name, value(c.less, now), value(c.more, now))
		}
	}
	for _, e := range []Entry{{}, {Bytes: -1, Created: now.Add(time.Hour), LastUsed: now.Add(2 * time.Hour)}} {
		if v := value(e, now); !(v > 0 && v < 1e12) {
			t.Errorf("%+v: %g", e, v)
		}
	}
}

// TestPick holds what the order promises, for 2,000 random stores.
func TestPick(t *testing.T) {
	for seed := range uint64(2000) {
		r := rand.New(rand.NewPCG(seed, 1))
		now := time.Now()
		stores, byKey := map[string][]Entry{}, map[key]Entry{}
		for s := range 1 + r.IntN(3) {
			name := fmt.Sprint("s", s)
			for i := range r.IntN(12) {
				e := Entry{
					ID: fmt.Sprint(i), Bytes: r.Int64N(1000), Uses: r.Int64N(5), InUse: r.IntN(5) == 0,
					Created: now.Add(-time.Duration(r.Int64N(int64(1000 * time.Hour)))),
				}
				for range r.IntN(3) {
					if i > 0 {
						e.Needs = append(e.Needs, fmt.Sprint(r.IntN(i)))
					}
				}
				stores[name] = append(stores[name], e)
				byKey[key{name, e.ID}] = e
			}
		}
		barred := key{"s0", "3"}
		need := r.Int64N(6000)
		picked := pick(stores, need, now, func(store string, e Entry) bool { return key{store, e.ID} != barred })
		var sum int64
		removed := map[key]bool{}
		for i, c := range picked {
			k := key{c.store, c.ID}
			if c.InUse || k == barred || removed[k] {
				t.Fatalf("seed %d: %v was picked", seed, k)
			}
			if sum >= need {
				t.Fatalf("seed %d: more than needed: %d of %d before the last", seed, sum, need)
			}
			for other, e := range byKey {
				for _, n := range e.Needs {
					if other.store == k.store && n == k.id && !removed[other] {
						t.Fatalf("seed %d: %v was picked under %v", seed, k, other)
					}
				}
			}
			free := func(k key) bool { // nothing stands on it
				for other, e := range byKey {
					for _, n := range e.Needs {
						if other.store == k.store && n == k.id && !removed[other] {
							return false
						}
					}
				}
				return true
			}
			for other, e := range byKey {
				if !removed[other] && !e.InUse && other != barred && free(other) && value(e, now) < c.value {
					t.Fatalf("seed %d: pick %d: %v is less valuable than %v", seed, i, other, k)
				}
			}
			removed[k] = true
			sum += c.Bytes
		}
		if sum < need { // then nothing else can go
			for k, e := range byKey {
				if removed[k] || e.InUse || k == barred {
					continue
				}
				stands := false
				for other, e := range byKey {
					for _, n := range e.Needs {
						stands = stands || other.store == k.store && n == k.id && !removed[other]
					}
				}
				if !stands {
					t.Fatalf("seed %d: %v was left", seed, k)
				}
			}
		}
	}
}

func TestPickCycle(t *testing.T) {
	stores := map[string][]Entry{"s": {{ID: "a", Bytes: 1, Needs: []string{"b"}}, {ID: "b", Bytes: 1, Needs: []string{"a"}}, {ID: "c", Bytes: 1, Needs: []string{"gone"}}}}
	picked := pick(stores, 10, time.Now(), func(string, Entry) bool { return true })
	if len(picked) != 1 || picked[0].ID != "c" {
		t.Error(picked)
	}
}
