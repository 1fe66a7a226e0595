// Package measure finds what nesting costs: it runs probes at places of different depth in random order, block by
// block, and says of each how much longer than at the first place it takes, how sure that is, and whether it can be told
// from noise at all. Nothing here knows how a place comes to be (measure/rig does) or what a probe does (measure/probe).
package measure

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Series are places to be compared, and the probes to do it by.
type Series struct {
	// Name tells the cause that it is about: see the Cause constants.
	Name   string
	Title  string
	Places []Place // the first is what the others are compared with
	Probes []Probe
}

// Place is where probes run.
type Place struct {
	Name  string
	Depth int // levels of nesting
	// Enter, if there is one, makes the place what it is before a visit; leave undoes it.
	Enter func(ctx context.Context) (leave func() error, err error)
	// Run runs a probe. It returns the time of one operation in nanoseconds. Its error wraps ErrNotHere if the place
	// has nothing that the probe could measure.
	Run func(ctx context.Context, probe string) (nanoseconds float64, err error)
}

// ErrNotHere is wrapped where a place has nothing that a probe could measure.
var ErrNotHere = errors.New("there is nothing to measure here")

// Probe is how a probe's results are to be read.
type Probe struct {
	Name  string `json:"name"`
	Class string `json:"class"`
	Unit  string `json:"unit"`
	// Crowds tells that pressure on the processors while it runs is its own.
	Crowds bool `json:"crowds,omitempty"`
}

// visits is how often each place is visited in a block: once more than needed, so that each can be compared with itself.
const visits = 2

// Plan says how much is measured.
type Plan struct {
	Blocks int
	Seed   uint64 // of the order
	// MaxPressure is the share of time that processes waited for a processor above which what was measured meanwhile
	// is dropped.
	MaxPressure float64
	// Pressure returns how long processes have waited for a processor so far.
	Pressure func() (time.Duration, error)
	// Quiet is how long a window is in which nothing of the measurement runs, to see what others do; 0: none.
	Quiet time.Duration
	// Progress is told what is done out of how much.
	Progress func(series string, done, all int)
}

// MinBlocks is from how many blocks on the intervals are what they say.
const MinBlocks = 30

// sample is one result.
type sample struct {
	ns       float64
	crowded  bool // others had the processors
	measured bool
}

// table has the samples of one probe: by block, place and visit.
type table [][][visits]sample

// Run measures a series. What it returns was measured in random order.
func Run(ctx context.Context, s Series, plan Plan) (Outcome, error) {
	tables := make([]table, len(s.Probes))
	for i := range tables {
		tables[i] = make(table, plan.Blocks)
		for b := range tables[i] {
			tables[i][b] = make([][visits]sample, len(s.Places))
		}
	}
	random := rand.New(rand.NewPCG(plan.Seed, uint64(len(s.Name))))
	missing := map[[2]int]bool{} // probe and place
	done := 0
	for b := range plan.Blocks {
		for _, turn := range random.Perm(len(s.Places) * visits) {
			place, visit := turn/visits, turn%visits
			if err := s.visit(ctx, plan, place, missing, func(probe int, got sample) { tables[probe][b][place][visit] = got }); err != nil {
				return Outcome{}, fmt.Errorf("measure %s at %s: %w", s.Name, s.Places[place].Name, err)
			}
			done++
			if plan.Progress != nil {
				plan.Progress(s.Name, done, plan.Blocks*len(s.Places)*visits)
			}
		}
	}
	return analyse(s, tables), nil
}

// visit runs all probes at one place.
func (s Series) visit(ctx context.Context, plan Plan, place int, missing map[[2]int]bool, take func(probe int, got sample)) (err error) {
	p := s.Places[place]
	outside, err := plan.quiet(ctx)
	if err != nil {
		return err
	}
	if p.Enter != nil {
		leave, err := p.Enter(ctx)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, leave()) }()
	}
	for i, probe := range s.Probes {
		if missing[[2]int{i, place}] {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		before, err := plan.Pressure()
		if err != nil {
			return err
		}
		began := time.Now()
		ns, err := p.Run(ctx, probe.Name)
		if errors.Is(err, ErrNotHere) {
			missing[[2]int{i, place}] = true
			continue
		}
		if err != nil {
			return err
		}
		after, err := plan.Pressure()
		if err != nil {
			return err
		}
		share := float64(after-before) / float64(time.Since(began))
		if probe.Crowds {
			share = outside
		}
		take(i, sample{ns: ns, crowded: share > plan.MaxPressure, measured: true})
	}
	return nil
}

// quiet looks at what others do while nothing of the measurement runs: the share of time that processes waited.
func (p Plan) quiet(ctx context.Context) (share float64, err error) {
	if p.Quiet == 0 {
		return 0, nil
	}
	before, err := p.Pressure()
	if err != nil {
		return 0, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(p.Quiet):
	}
	after, err := p.Pressure()
	return float64(after-before) / float64(time.Since(began)), err
}
