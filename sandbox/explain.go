package sandbox

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Explanation is what becomes of a nesting under a policy, in a build with some drivers.
type Explanation struct {
	Nesting Nesting `json:"nesting"`
	Type    string  `json:"type"`
	Depth   int     `json:"depth"`
	Levels  []Level `json:"levels"`
	// Runs is the normal form: what is started if it is neither refused nor missing a driver.
	Runs      Nesting `json:"runs"`
	RunsDepth int     `json:"runs_depth"`
	Refused   string  `json:"refused,omitempty"` // by the policy, and how to mend it; empty: it is allowed
	// Missing says which layers of Runs this build cannot start, from the outermost.
	Missing []string `json:"missing,omitempty"`
	Err     error    `json:"-"` // wraps ErrDenied if it is refused and ErrNoDriver if layers are missing
}

// ErrNoDriver is wrapped where this build cannot start a layer.
var ErrNoDriver = errors.New("not in this build")

// Starts returns nil if there is a driver that starts inner in outer ("" is the machine), else an error that wraps
// ErrNoDriver. Drivers are asked for what they can do; none is started.
func Starts(drivers map[Kind]Driver, outer, inner Kind) error {
	d, ok := drivers[inner]
	if !ok {
		return fmt.Errorf("%w: no driver for %s", ErrNoDriver, inner)
	}
	if on := d.On(); !slices.Contains(on, outer) {
		return fmt.Errorf("%w: the driver of %s starts it on %s only, not in %s", ErrNoDriver, inner, places(on), place(outer))
	}
	return nil
}

// Explain says what would be run for n and what stands against it. starts is asked for each layer that would be run.
func (p Policy) Explain(n Nesting, starts func(outer, inner Kind) error) Explanation {
	e := Explanation{Nesting: n, Type: n.Type(), Depth: n.Depth()}
	e.Runs, e.Levels = n.Normal()
	e.RunsDepth = e.Runs.Depth()
	if err := p.Allow(n); err != nil {
		if e.RunsDepth < e.Depth && p.Allow(e.Runs) == nil {
			err = fmt.Errorf("%w: ask for %s, which is allowed and runs the same", err, e.Runs)
		}
		e.Refused, e.Err = err.Error(), err
	}
	var outer Kind
	for i, inner := range e.Runs {
		if err := starts(outer, inner); err != nil {
			if i > 0 && len(e.Missing) == 0 {
				err = fmt.Errorf("%w: ask for %s, and start the rest from within the job", err, e.Runs[:i])
			}
			e.Missing = append(e.Missing, err.Error())
			e.Err = errors.Join(e.Err, err)
		}
		outer = inner
	}
	return e
}

func place(k Kind) string {
	if k == "" {
		return "the machine"
	}
	return string(k)
}

func places(kinds []Kind) string {
	var names []string
	for _, k := range kinds {
		names = append(names, place(k))
	}
	return strings.Join(names, " or ")
}
