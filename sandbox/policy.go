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
	return Policy{MaxDepth: 2, May: map[Kind][]Kind{"": {Container}, Container: {DinD, BuildKit, WASM}}}
}

// Environment is a kind of place that sandboxes run in, with a policy of its own.
type Environment string

// The environments.
const (
	Production  Environment = "production"
	Development Environment = "development"
	Edge        Environment = "edge"
	Measurement Environment = "measurement"
)

// Environments are all the environments there are.
func Environments() []Environment { return []Environment{Production, Development, Edge, Measurement} }

// PolicyFor is the policy of an environment. Production has that of DefaultPolicy. At the edge there are no engines:
// a container is one layer, a module in it the second. Development and measurement have everything in everything that
// it could be in, to three and four layers. The error names the environments.
func PolicyFor(e Environment) (Policy, error) {
	all := map[Kind][]Kind{"": {Container}, Container: Kinds(), DinD: {Container, WASM}}
	switch e {
	case Production:
		return DefaultPolicy(), nil
	case Development:
		return Policy{MaxDepth: 3, May: all}, nil
	case Edge:
		return Policy{MaxDepth: 2, May: map[Kind][]Kind{"": {Container}, Container: {WASM}}}, nil
	case Measurement:
		return Policy{MaxDepth: 4, May: all}, nil
	}
	return Policy{}, fmt.Errorf("unknown environment %q: use one of %v", e, Environments())
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
			return fmt.Errorf("%w: %s: %s may not hold %s (policy.may)", ErrDenied, n, place(outer), inner)
		}
		outer = inner
	}
	return nil
}
