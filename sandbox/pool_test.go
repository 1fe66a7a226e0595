package sandbox

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
)

// fakeSandbox is adopted at most once, and closed at most once.
type fakeSandbox struct {
	id string
	mu sync.Mutex

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

func (f *fakeSandbox) Adopt(s Spec) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.adopted = append(f.adopted, s)
	return nil
}

func TestPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made []*fakeSandbox
		open := func(_ context.Context, _ Nesting, s Spec) (Sandbox, error) {
			sb := &fakeSandbox{id: s.ID}
			made = append(made, sb)
			return sb, nil
		}
		nesting := Nesting{Container}
		p := NewPool([]PoolKind{{Nesting: nesting, Spec: Spec{Image: "a", Limits: Limits{Disk: 10}}, Size: 2}}, open, slog.New(slog.DiscardHandler))
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
		if ready, _ := p.Ready(); ready != 2 || len(made) != 3 {
			t.Errorf("not refilled: %d ready, %d made", ready, len(made))
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
