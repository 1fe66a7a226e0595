package sandbox

import (
	"fmt"
	"slices"
	"strings"
)

// Kind names a layer: one level of nesting.
type Kind string

// The kinds of layers. That a kind is named here does not mean that a build has a driver for it: see Explain.
const (
	Container Kind = "container" // a container in a user namespace of its own
	DinD      Kind = "dind"      // a Docker Engine in a container, and the containers it runs
	BuildKit  Kind = "buildkit"  // a BuildKit worker in a container, and the steps it runs
	WASM      Kind = "wasm"      // a WebAssembly module in a runtime of its own
)

// Kinds are all the kinds there are.
func Kinds() []Kind { return []Kind{Container, DinD, BuildKit, WASM} }

// constructors are the kinds as constructors of types.
var constructors = map[Kind]string{Container: "Container", DinD: "DinD", BuildKit: "BuildKit", WASM: "WASM"}

// Nesting is a path of layers, outermost first; in text "container/dind", as a type "Container[DinD[T]]".
type Nesting []Kind

// Depth is the number of layers.
func (n Nesting) Depth() int { return len(n) }

func (n Nesting) String() string {
	parts := make([]string, len(n))
	for i, k := range n {
		parts[i] = string(k)
	}
	return strings.Join(parts, "/")
}

// Type is n as a type constructor applied to T, the payload: "Container[DinD[T]]".
func (n Nesting) Type() string {
	var b strings.Builder
	for _, k := range n {
		b.WriteString(constructors[k] + "[")
	}
	return b.String() + "T" + strings.Repeat("]", len(n))
}

// Embed puts n into a further layer, outside of all others. It shares no memory with n.
func Embed(outer Kind, n Nesting) Nesting { return append(Nesting{outer}, n...) }

// Project takes the outermost layer off: it undoes Embed. A nesting without layers has none: ok is false.
func (n Nesting) Project() (outer Kind, inner Nesting, ok bool) {
	if len(n) == 0 {
		return "", nil, false
	}
	return n[0], slices.Clone(n[1:]), true
}

// Nested is a payload in its layers.
type Nested[T any] struct {
	Layers  Nesting
	Payload T
}

// Fmap changes the payload and leaves the layers as they are.
func Fmap[A, B any](f func(A) B, n Nested[A]) Nested[B] {
	return Nested[B]{Layers: slices.Clone(n.Layers), Payload: f(n.Payload)}
}

// Limits on what ParseNesting reads, in bytes and in layers. Configurations allow 8 layers at most.
const (
	maxNestingText  = 256
	maxNestingDepth = 16
)

// ParseNesting reads a nesting as String writes it, such as "container/dind", or as a type, such as
// "Container[DinD[T]]" or "Container[DinD]". Case matters, and nothing else may stand in the text.
func ParseNesting(text string) (Nesting, error) {
	if text == "" {
		return nil, fmt.Errorf("nesting is empty: name at least one layer, such as %q", Container)
	}
	if len(text) > maxNestingText {
		return nil, fmt.Errorf("nesting of %d characters: at most %d are read", len(text), maxNestingText)
	}
	layers, known := strings.Split(text, "/"), func(layer string) (Kind, bool) {
		return Kind(layer), slices.Contains(Kinds(), Kind(layer))
	}
	names := fmt.Sprint(Kinds())
	if strings.Contains(text, "[") {
		open := strings.TrimRight(text, "]")
		layers = strings.Split(open, "[")
		if opened, closed := len(layers)-1, len(text)-len(open); opened != closed {
			return nil, fmt.Errorf("nesting %q: %d brackets are opened and %d closed at its end: write it as Container[DinD[T]]", text, opened, closed)
		}
		if layers[len(layers)-1] == "T" {
			layers = layers[:len(layers)-1]
		}
		var all []string
		for _, kind := range Kinds() {
			all = append(all, constructors[kind])
		}
		known, names = kindOf, fmt.Sprintf("%v, and T innermost", all)
	}
	if len(layers) > maxNestingDepth {
		return nil, fmt.Errorf("nesting of %d layers: at most %d are read", len(layers), maxNestingDepth)
	}
	n := make(Nesting, 0, len(layers))
	for _, layer := range layers {
		kind, ok := known(layer)
		if !ok {
			return nil, fmt.Errorf("nesting %q: unknown layer %q: use one of %s", text, layer, names)
		}
		n = append(n, kind)
	}
	return n, nil
}

// kindOf is the kind that a constructor makes.
func kindOf(constructor string) (Kind, bool) {
	for kind, name := range constructors {
		if name == constructor {
			return kind, true
		}
	}
	return "", false
}

// MarshalText and UnmarshalText make a Nesting its text in JSON and YAML.
func (n Nesting) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what ParseNesting reads.
func (n *Nesting) UnmarshalText(text []byte) (err error) {
	*n, err = ParseNesting(string(text))
	return err
}
