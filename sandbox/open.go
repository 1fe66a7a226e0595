package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// closeTimeout bounds how long a failed Open takes to clean up behind itself.
const closeTimeout = 30 * time.Second

// Open starts the layers of n's normal form on a host, outermost first, each by its driver, and returns the innermost
// as one Sandbox whose Close closes them all, innermost first. The policy is asked about n, and
// every driver whether it can start its layer there, before anything starts. On failure nothing is left behind.
func Open(ctx context.Context, on Host, n Nesting, s Spec, drivers map[Kind]Driver, policy Policy) (Sandbox, error) {
	if err := policy.Allow(n); err != nil {
		return nil, err
	}
	n, _ = n.Normal()
	var outer Kind
	for _, inner := range n {
		if err := Starts(drivers, outer, inner); err != nil {
			return nil, fmt.Errorf("open %s: %w: see 'runnerd nesting explain %[1]s'", n, err)
		}
		outer = inner
	}
	var stack []Sandbox
	for i, kind := range n {
		sb, err := drivers[kind].Start(ctx, on, s)
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			return nil, errors.Join(fmt.Errorf("open %s: %w", n[:i+1], err), closeAll(cleanup, stack))
		}
		stack = append(stack, sb)
		on = sb
	}
	return nested{Sandbox: stack[len(stack)-1], stack: stack}, nil
}

// nested is the innermost sandbox of a stack, closing the whole stack.
type nested struct {
	Sandbox
	stack []Sandbox // outermost first
}

func (n nested) Close(ctx context.Context) error { return closeAll(ctx, n.stack) }

// Unwrap returns the innermost sandbox, for its further abilities (DockerHost, Dialer, Pod).
func (n nested) Unwrap() Sandbox { return n.Sandbox }

func closeAll(ctx context.Context, stack []Sandbox) error {
	var errs []error
	for i := len(stack) - 1; i >= 0; i-- {
		errs = append(errs, stack[i].Close(ctx))
	}
	return errors.Join(errs...)
}

// As finds an ability, such as DockerHost, Dialer or Pod, in a sandbox or in what it wraps.
func As[T any](sb Sandbox) (T, bool) {
	for {
		if ability, ok := sb.(T); ok {
			return ability, true
		}
		wrapper, ok := sb.(interface{ Unwrap() Sandbox })
		if !ok {
			var none T
			return none, false
		}
		sb = wrapper.Unwrap()
	}
}
