package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeSandbox is adopted at most once, and closed at most once.
type fakeSandbox struct {
	id, digest string
	mu         sync.Mutex

	adopted []Spec
	closed  bool
}

func (f *fakeSandbox) ID() string { return f.id }
func (f *fakeSandbox) Exec(context.Context, Process) (Exit, error) {
	return Exit{}, errors.New("not needed")
}
func (f *fakeSandbox) Usage(context.Context) (Usage, error) { return Usage{}, nil }
func (f *fakeSandbox) Close(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return errors.New("closed twice")
	}
	f.closed = true
	return nil
}

func (f *fakeSandbox) ImageDigest() string { return f.digest }

func (f *fakeSandbox) Adopt(s Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.adopted = append(f.adopted, s)
	return nil
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var made []*fakeSandbox
		open := func(_ context.Context, _ Nesting, s Spec) (Sandbox, error) {
			sb := &fakeSandbox{id: s.ID}
			mu.Lock()
			defer mu.Unlock()
			made = append(made, sb)
			return sb, nil
		}
		nesting := Nesting{Container}
		p := NewPool([]PoolKind{{Nesting: nesting, Spec: Spec{Image: "a", Limits: Limits{Disk: 10}}, Size: 2}}, Spare{}, open, slog.New(slog.DiscardHandler))
		state := func() (ready, started int) {
			ready, _ = p.Ready()
			mu.Lock()
			defer mu.Unlock()
			return ready, len(made)
		}
		synctest.Wait()
		if ready, size := p.Ready(); ready != 2 || size != 2 {
			t.Fatalf("%d of %d ready", ready, size)
		}
		for name, c := range map[string]struct {
			n Nesting
			s Spec
		}{
			"another image":   {nesting, Spec{Image: "b"}},
			"another nesting": {Nesting{Container, DinD}, Spec{Image: "a"}},
			"another disk":    {nesting, Spec{Image: "a", Limits: Limits{Disk: 11}}},
			"a state disk":    {nesting, Spec{Image: "a", State: "s"}},
		} {
			if _, ok := p.Take(c.n, c.s); ok {
				t.Errorf("%s: got a sandbox of the pool", name)
			}
		}
		want := Spec{ID: "job", Image: "a", Env: []string{"A=1"}}
		sb, ok := p.Take(nesting, want)
		if !ok || len(sb.(*fakeSandbox).adopted) != 1 || sb.(*fakeSandbox).adopted[0].Env[0] != "A=1" {
			t.Fatalf("got %v, %v", sb, ok)
		}
		synctest.Wait()
		if ready, started := state(); ready != 1 || started != 2 {
			t.Errorf("refilled beside the job's first steps: %d ready, %d made", ready, started)
		}
		time.Sleep(lull)
		synctest.Wait()
		if ready, started := state(); ready != 2 || started != 3 {
			t.Errorf("not refilled: %d ready, %d made", ready, started)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		for _, m := range made {
			if taken := m == sb.(*fakeSandbox); m.closed == taken {
				t.Errorf("%s: taken %v, closed %v", m.id, taken, m.closed)
			}
		}
	})
}

// TestPoolLearns has jobs ask for what no pool is configured for.
func TestPoolLearns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made []*fakeSandbox
		digest, broken := "one", false
		open := func(_ context.Context, _ Nesting, s Spec) (Sandbox, error) {
			if broken {
				return nil, ErrUnknownImage
			}
			sb := &fakeSandbox{id: s.ID, digest: digest}
			made = append(made, sb)
			return sb, nil
		}
		nesting := Nesting{Container}
		p := NewPool(nil, Spare{Size: 3, Keep: time.Minute}, open, slog.New(slog.DiscardHandler))
		take := func(image, digest string) bool {
			spec := Spec{Image: image, Digest: digest}
			served := p.Serves(nesting, spec)
			sb, ok := p.Take(nesting, spec)
			if ok {
				if err := sb.Close(t.Context()); err != nil {
					t.Error(err)
				}
			} else if !served {
				p.Learn(nesting, spec)
			}
			return ok
		}
		ready := func(want int, why string) {
			t.Helper()
			time.Sleep(lull)
			synctest.Wait()
			if n, _ := p.Ready(); n != want {
				t.Errorf("%s: %d ready, want %d", why, n, want)
			}
		}
		ready(0, "nobody has asked")
		if _, ok := p.Take(nesting, Spec{Image: "a"}); ok {
			t.Error("got a sandbox of nothing")
		}
		ready(0, "the job that asked got none")
		if take("a", "one") {
			t.Error("the first job got a sandbox of the pool")
		}
		ready(1, "one was asked for")
		if !take("a", "one") {
			t.Error("the second job got none")
		}
		ready(2, "two within a burst")
		time.Sleep(2 * burst)
		ready(1, "the burst is over")
		for range 5 {
			take("b", "")
		}
		ready(3, "another kind, and no more than the size in all")
		if !take("b", "") || take("a", "one") {
			t.Error("who was asked for last does not come first")
		}
		time.Sleep(2 * time.Minute)
		ready(0, "long after the last job")

		take("a", "one")
		ready(1, "one was asked for")
		digest = "two"
		if take("a", "two") {
			t.Error("got a sandbox of an image that its name no longer means")
		}
		synctest.Wait()
		if !take("a", "two") {
			t.Error("the pool was not filled with what the name means now")
		}
		synctest.Wait()
		p.Forget()
		ready(0, "forgotten")
		broken = true
		take("missing", "")
		ready(0, "there is no such image")
		if _, size := p.Ready(); size != 0 {
			t.Errorf("a kind that cannot be started is still wanted: %d", size)
		}
		if err := p.Close(t.Context()); err != nil {
			t.Error(err)
		}
		for _, sb := range made {
			if !sb.closed {
				t.Errorf("%s was left", sb.id)
			}
		}
	})
}
