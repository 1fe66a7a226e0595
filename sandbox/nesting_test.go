package sandbox

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestParseNesting(t *testing.T) {
	for text, depth := range map[string]int{"container": 1, "container/dind": 2, "container/dind/container": 3} {
		n, err := ParseNesting(text)
		if err != nil || n.Depth() != depth || n.String() != text {
			t.Errorf("%s: got %v, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "/", "container/", "/container", "Container", "vm", strings.Repeat("container/", 100)} {
		if n, err := ParseNesting(text); err == nil {
			t.Errorf("%q: got %v", text, n)
		}
	}
}

func TestParseType(t *testing.T) {
	for text, want := range map[string]string{
		"Container[T]": "container", "Container[DinD]": "container/dind", "Container[DinD[Container]]": "container/dind/container",
		"Container[WASM[T]]": "container/wasm", "Container[BuildKit[T]]": "container/buildkit",
	} {
		n, err := ParseNesting(text)
		if err != nil || n.String() != want {
			t.Errorf("%s: got %v, %v", text, n, err)
		}
	}
	for _, text := range []string{
		"[", "[]", "[T]", "T[T]", "Container[", "Container[]", "Container[T", "Container[T]]", "Container]T[", "Container[T[T]]",
		"container[T]", "Container[dind]", "Container[T] ", "Container/DinD[T]", strings.Repeat("WASM[", 17) + "T" + strings.Repeat("]", 17),
	} {
		if n, err := ParseNesting(text); err == nil {
			t.Errorf("%q: got %v", text, n)
		}
	}
}

func FuzzParseNesting(f *testing.F) {
	for _, text := range []string{
		"container/dind", "container/dind/container", "Container[DinD[Container]]", "Container[WASM[T]]",
		"Container[[T]]", "T", "/", "container//dind", "Container[T]]", "\x00", strings.Repeat("wasm/", 60),
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		n, err := ParseNesting(text)
		if err != nil {
			return
		}
		if n.Depth() < 1 || n.Depth() > maxNestingDepth {
			t.Errorf("%q has %d layers", text, n.Depth())
		}
		if !strings.Contains(text, "[") && n.String() != text {
			t.Errorf("%q reads as %q", text, n)
		}
		for _, printed := range []string{n.String(), n.Type()} {
			if again, err := ParseNesting(printed); err != nil || !slices.Equal(again, n) {
				t.Errorf("%q is printed as %q, which reads as %v, %v", text, printed, again, err)
			}
		}
	})
}

// TestZeroPolicyDenies holds that a policy that was never set allows nothing.
func TestZeroPolicyDenies(t *testing.T) {
	for _, n := range []Nesting{nil, {Container}, {Container, DinD}} {
		if err := (Policy{}).Allow(n); !errors.Is(err, ErrDenied) {
			t.Errorf("%v: got %v", n, err)
		}
	}
}

func TestDefaultPolicy(t *testing.T) {
	p := DefaultPolicy()
	for text, allowed := range map[string]bool{
		"container": true, "container/dind": true, "container/buildkit": true, "container/wasm": true,
		"dind": false, "buildkit": false, "container/container": false, "container/dind/container": false,
	} {
		n, err := ParseNesting(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Allow(n); (err == nil) != allowed || err != nil && !errors.Is(err, ErrDenied) {
			t.Errorf("%s: got %v, want allowed %v", text, err, allowed)
		}
	}
}

// recorder is a driver that records the order of starts and closes.
type recorder struct {
	kind Kind
	fail bool
	log  *[]string
}

func (r recorder) On() []Kind {
	return map[Kind][]Kind{Container: {""}, DinD: {Container}}[r.kind]
}
func (r recorder) Check(context.Context, Host) error { return nil }
func (r recorder) Start(_ context.Context, _ Host, s Spec) (Sandbox, error) {
	if r.fail {
		return nil, errors.New("no")
	}
	*r.log = append(*r.log, "start "+string(r.kind))
	return recorded{&fakeSandbox{id: s.ID}, r}, nil
}

type recorded struct {
	*fakeSandbox
	r recorder
}

func (r recorded) Close(ctx context.Context) error {
	*r.r.log = append(*r.r.log, "close "+string(r.r.kind))
	return r.fakeSandbox.Close(ctx)
}

func TestOpen(t *testing.T) {
	var log []string
	drivers := map[Kind]Driver{Container: recorder{Container, false, &log}, DinD: recorder{DinD, false, &log}}
	sb, err := Open(t.Context(), nil, Nesting{Container, DinD}, Spec{ID: "a"}, drivers, DefaultPolicy())
	if err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Error(err)
	}
	want := "start container,start dind,close dind,close container"
	if got := strings.Join(log, ","); got != want {
		t.Errorf("got %s, want %s", got, want)
	}

	log = nil
	drivers[DinD] = recorder{DinD, true, &log}
	if _, err := Open(t.Context(), nil, Nesting{Container, DinD}, Spec{ID: "a"}, drivers, DefaultPolicy()); err == nil {
		t.Error("a layer that fails went unnoticed")
	}
	if got := strings.Join(log, ","); got != "start container,close container" {
		t.Errorf("after a failure: %s", got)
	}
	log = nil
	drivers[DinD] = recorder{DinD, false, &log}
	everything, err := PolicyFor(Measurement)
	if err != nil {
		t.Fatal(err)
	}
	// A container in an engine would be started on the machine: its driver is not asked to.
	if _, err := Open(t.Context(), nil, Nesting{Container, DinD, Container}, Spec{ID: "a"}, drivers, everything); !errors.Is(err, ErrNoDriver) || log != nil {
		t.Errorf("a layer that its driver cannot start there: %v, after %v", err, log)
	}
	if _, err := Open(t.Context(), nil, Nesting{Container, Container, DinD}, Spec{ID: "a"}, drivers, everything); err != nil {
		t.Error(err)
	}
	if got := strings.Join(log, ","); got != "start container,start dind" {
		t.Errorf("the normal form is not what was started: %s", got)
	}
	if _, err := Open(t.Context(), nil, Nesting{Container, Container}, Spec{ID: "a"}, drivers, DefaultPolicy()); !errors.Is(err, ErrDenied) {
		t.Errorf("denied nesting: %v", err)
	}
}
