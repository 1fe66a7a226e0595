package sandbox

import (
	"errors"
	"math/rand"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/quick"
)

// Generate makes nestings of 1 to 8 layers, in any order, for testing/quick. Half of their layers are containers, so that
// what can be flattened is common.
func (Nesting) Generate(r *rand.Rand, _ int) reflect.Value {
	n := make(Nesting, 1+r.Intn(8))
	for i := range n {
		n[i] = Container
		if r.Intn(2) == 0 {
			n[i] = Kinds()[r.Intn(len(Kinds()))]
		}
	}
	return reflect.ValueOf(n)
}

// Generate makes policies that allow some nestings: most edges are there.
func (Policy) Generate(r *rand.Rand, _ int) reflect.Value {
	p := Policy{MaxDepth: r.Intn(9), May: map[Kind][]Kind{}}
	for _, outer := range append(Kinds(), "") {
		for _, inner := range Kinds() {
			if r.Intn(5) > 0 {
				p.May[outer] = append(p.May[outer], inner)
			}
		}
	}
	return reflect.ValueOf(p)
}

// law checks that f, a function of random arguments, is always true.
func law(t *testing.T, name string, f any) {
	t.Helper()
	if err := quick.Check(f, &quick.Config{MaxCount: 5000}); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func TestLaws(t *testing.T) {
	law(t, "parse∘print = id", func(n Nesting) bool {
		a, errA := ParseNesting(n.String())
		b, errB := ParseNesting(n.Type())
		return errA == nil && errB == nil && slices.Equal(a, n) && slices.Equal(b, n)
	})
	law(t, "project∘embed = id", func(n Nesting, i uint8) bool {
		kind, before := Kinds()[int(i)%len(Kinds())], slices.Clone(n)
		embedded := Embed(kind, n)
		outer, inner, ok := embedded.Project()
		inner[0] = "changed" // which neither of the others may see
		return ok && outer == kind && slices.Equal(n, before) && slices.Equal(embedded[1:], before) && embedded.Depth() == n.Depth()+1
	})
	law(t, "fmap id = id", func(n Nesting, x int) bool {
		nested := Nested[int]{n, x}
		return reflect.DeepEqual(Fmap(func(x int) int { return x }, nested), nested)
	})
	law(t, "fmap (g∘f) = fmap g ∘ fmap f", func(n Nesting, x, a, b int32) bool {
		f := func(x int32) int64 { return int64(x) * int64(a) }
		g := func(x int64) string { return strings.Repeat("x", int(uint64(x)%50)) + string(b%128) }
		nested := Nested[int32]{n, x}
		return reflect.DeepEqual(Fmap(func(x int32) string { return g(f(x)) }, nested), Fmap(g, Fmap(f, nested)))
	})
	law(t, "normalise is idempotent", func(n Nesting) bool {
		once, _ := n.Normal()
		twice, levels := once.Normal()
		return slices.Equal(once, twice) && !slices.ContainsFunc(levels, func(l Level) bool { return l.Flattened })
	})
	law(t, "normalise never raises depth, and says of each level why", func(n Nesting) bool {
		normal, levels := n.Normal()
		var kept Nesting
		for _, l := range levels {
			if l.Why == "" {
				return false
			}
			if !l.Flattened {
				kept = append(kept, l.Kind)
			}
		}
		return len(levels) == n.Depth() && slices.Equal(kept, normal) && normal.Depth() <= n.Depth()
	})
	anything := func(Kind, Kind) error { return nil }
	law(t, "normalise never loosens policy", func(p Policy, n Nesting) bool {
		e := p.Explain(n, anything)
		written, run := p.Allow(n), p.Allow(e.Runs)
		// What was refused stays refused, and nothing is run that the policy would not have.
		return (e.Err == nil) == (written == nil) && (written != nil || run == nil)
	})
}

// TestLawsAreTried holds that the generators make what the laws are about.
func TestLawsAreTried(t *testing.T) {
	r := rand.New(rand.NewSource(1))
	var flattened, allowed int
	for range 5000 {
		n := Nesting{}.Generate(r, 0).Interface().(Nesting)
		p := Policy{}.Generate(r, 0).Interface().(Policy)
		if normal, _ := n.Normal(); normal.Depth() < n.Depth() {
			flattened++
			if p.Allow(n) == nil {
				allowed++
			}
		}
	}
	if flattened < 500 || allowed < 20 {
		t.Errorf("%d of 5000 can be flattened, %d of these are allowed", flattened, allowed)
	}
}

func TestNormal(t *testing.T) {
	for text, want := range map[string]string{
		"container":                               "container",
		"container/dind":                          "container/dind",
		"container/container":                     "container/container",
		"container/container/dind":                "container/dind",
		"container/container/container/buildkit":  "container/buildkit",
		"container/dind/container":                "container/dind/container",
		"container/dind/container/dind":           "container/dind/container/dind",
		"container/dind/container/container/dind": "container/dind/container/container/dind",
		"container/container/wasm":                "container/wasm",
		"container/dind/container/wasm":           "container/dind/container/wasm",
		"container/dind/wasm":                     "container/dind/wasm",
		"dind/container/dind":                     "dind/container/dind",
	} {
		n, err := ParseNesting(text)
		if err != nil {
			t.Fatal(err)
		}
		if normal, levels := n.Normal(); normal.String() != want {
			t.Errorf("%s: got %s, %+v", text, normal, levels)
		}
	}
}

func TestPolicyFor(t *testing.T) {
	for e, allowed := range map[Environment][]string{
		Production:  {"container", "container/dind", "container/buildkit", "container/wasm"},
		Development: {"container", "container/dind", "container/buildkit", "container/wasm", "container/dind/container", "container/container/wasm"},
		Edge:        {"container", "container/wasm"},
		Measurement: {"container/dind/container/dind", "container/dind/container/wasm", "container/dind/container"},
	} {
		p, err := PolicyFor(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{
			"container", "container/dind", "container/buildkit", "container/wasm", "container/dind/container", "container/container/wasm",
			"container/dind/container/dind", "container/dind/container/wasm", "dind", "wasm", "container/wasm/container", "container/dind/dind",
			"container/dind/container/dind/container",
		} {
			n, _ := ParseNesting(text)
			err := p.Allow(n)
			want := slices.Contains(allowed, text) || e == Measurement && slices.Contains([]string{"container", "container/dind", "container/buildkit", "container/wasm", "container/container/wasm"}, text)
			if (err == nil) != want || err != nil && !errors.Is(err, ErrDenied) {
				t.Errorf("%s: %s: got %v, want allowed %t", e, text, err, want)
			}
		}
	}
	if p, err := PolicyFor("Production"); err == nil || p.MaxDepth != 0 || !strings.Contains(err.Error(), "production") {
		t.Errorf("an unknown environment: %+v, %v", p, err)
	}
}
