package sandbox

import (
	"errors"
	"fmt"
	"slices"
)

// ErrDenied is wrapped by every refusal of a Policy, so that a job it refuses is rejected, not failed.
var ErrDenied = errors.New("denied by policy")

// Policy says which nestings may run. The zero value allows nothing.
type Policy struct {
	// MaxDepth is the largest number of layers.
	MaxDepth int
	// May maps a layer to what it may hold; the key "" is the machine itself.
	May map[Kind][]Kind
}

// DefaultPolicy is the one for production: two layers, containers outermost.
func DefaultPolicy() Policy {
	return Policy{MaxDepth: 2, May: map[Kind][]Kind{"": {Container}, Container: {DinD, BuildKit}}}
}

// Allow returns nil if n may run, else an error that wraps ErrDenied and says which rule refused what.
func (p Policy) Allow(n Nesting) error {
	if n.Depth() == 0 {
		return fmt.Errorf("%w: a nesting without layers would run on the machine itself", ErrDenied)
	}
	if n.Depth() > p.MaxDepth {
		return fmt.Errorf("%w: %s is %d layers deep, the limit is %d (policy.max_depth)", ErrDenied, n, n.Depth(), p.MaxDepth)
	}
	var outer Kind
	for _, inner := range n {
		if !slices.Contains(p.May[outer], inner) {
			where := string(outer)
			if where == "" {
				where = "the machine"
			}
			return fmt.Errorf("%w: %s: %s may not hold %s (policy.may)", ErrDenied, n, where, inner)
		}
		outer = inner
	}
	return nil
}
