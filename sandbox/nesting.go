package sandbox

import (
	"fmt"
	"slices"
	"strings"
)

// Kind names a layer: one level of nesting.
type Kind string

// The kinds of layers.
const (
	Container Kind = "container" // a container in a user namespace of its own
	DinD      Kind = "dind"      // a Docker Engine in a container, and the containers it runs
	BuildKit  Kind = "buildkit"  // a BuildKit worker in a container, and the steps it runs
)

// Kinds are all the kinds there are.
func Kinds() []Kind { return []Kind{Container, DinD, BuildKit} }

// Nesting is a path of layers, outermost first; in text "container/dind".
type Nesting []Kind

// maxNestingText bounds what ParseNesting reads.
const maxNestingText = 256

// ParseNesting reads a nesting such as "container/dind".
func ParseNesting(text string) (Nesting, error) {
	if text == "" {
		return nil, fmt.Errorf("nesting is empty: name at least one layer, such as %q", Container)
	}
	if len(text) > maxNestingText {
		return nil, fmt.Errorf("nesting of %d characters: at most %d are read", len(text), maxNestingText)
	}
	var n Nesting
	for layer := range strings.SplitSeq(text, "/") {
		kind := Kind(layer)
		if !slices.Contains(Kinds(), kind) {
			return nil, fmt.Errorf("nesting %q: unknown layer %q: use one of %v", text, layer, Kinds())
		}
		n = append(n, kind)
	}
	return n, nil
}

// Depth is the number of layers.
func (n Nesting) Depth() int { return len(n) }

func (n Nesting) String() string {
	parts := make([]string, len(n))
	for i, k := range n {
		parts[i] = string(k)
	}
	return strings.Join(parts, "/")
}

// MarshalText and UnmarshalText make a Nesting its text in JSON and YAML.
func (n Nesting) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what ParseNesting reads.
func (n *Nesting) UnmarshalText(text []byte) (err error) {
	*n, err = ParseNesting(string(text))
	return err
}
