package measure

import "fmt"

// What is to be kept.
const (
	goalProcessor  = 1.01 // upper bound of the interval: integer, system calls and page faults, each depth
	goalFiles      = 1.15 // file metadata at depth 2 beside depth 1
	goalRoundTrip  = 8000 // ns a level
	goalThroughput = 0.8  // of a rootful veth
	goalContainer  = 8.0  // MiB of machinery
	goalDinD       = 90.0 // MiB
	goalNth        = 0.6  // of the first engine
)

// judgeGoals says which goals were met. A goal is met when the whole interval is on its side.
func (r *Report) judgeGoals(o Outcome) {
	for _, probe := range []string{"integer", "getppid", "page-touch"} {
		for depth := 1; depth <= r.Plan.Depth; depth++ {
			v := Verdict{What: fmt.Sprintf("%s, depth %d", probe, depth), Claimed: "≤ " + percent(goalProcessor-1)}
			if c, ok := o.At(probe, depth); ok {
				v.Found = fmt.Sprintf("%s [%s, %s]", percent(c.Ratio-1), percent(c.Interval.Low-1), percent(c.Interval.High-1))
				v.Verdict = c.met(c.Interval.High <= goalProcessor)
			}
			r.goal(v)
		}
	}
	for _, probe := range []string{"stat", "open-read", "create-unlink", "rename", "readdir"} {
		v := Verdict{What: probe + ", depth 2 / depth 1", Claimed: fmt.Sprintf("≤ %g", goalFiles)}
		one, ok1 := o.At(probe, 1)
		two, ok2 := o.At(probe, 2)
		if ok1 && ok2 {
			// Both are ratios to the machine; the interval of their ratio is at most as wide as both together.
			v.Found = fmt.Sprintf("%.2f [%.2f, %.2f]", two.Ratio/one.Ratio, two.Interval.Low/one.Interval.High, two.Interval.High/one.Interval.Low)
			v.Verdict = two.met(two.Interval.High/one.Interval.Low <= goalFiles)
		}
		r.goal(v)
	}
	for depth := 1; depth <= r.Plan.Depth; depth++ {
		v := Verdict{What: fmt.Sprintf("TCP round trip, depth %d", depth), Claimed: fmt.Sprintf("≤ +%d µs", depth*goalRoundTrip/1000)}
		if c, ok := o.At("tcp-rtt", depth); ok {
			v.Found = fmt.Sprintf("%+.1f µs [%+.1f, %+.1f]", c.Extra/1000, c.ExtraInterval.Low/1000, c.ExtraInterval.High/1000)
			v.Verdict = c.met(c.ExtraInterval.High <= float64(depth*goalRoundTrip))
		}
		r.goal(v)
	}
	for depth := 1; depth <= r.Plan.Depth; depth++ {
		v := Verdict{What: fmt.Sprintf("throughput, depth %d / rootful veth", depth), Claimed: fmt.Sprintf("≥ %g", goalThroughput)}
		if c, ok := o.At("stream", depth); ok {
			v.Found = fmt.Sprintf("%.2f [%.2f, %.2f], %.1f Gbit/s", 1/c.Ratio, 1/c.Interval.High, 1/c.Interval.Low, gigabits(c.Nanoseconds))
			v.Verdict = c.met(1/c.Interval.High >= goalThroughput)
		}
		r.goal(v)
	}
	r.memoryGoal("container", goalContainer)
	r.memoryGoal("dind", goalDinD)
	v := Verdict{What: "memory of the nth engine / the first", Claimed: fmt.Sprintf("≤ %g", goalNth)}
	if k, ok := r.kind("dind"); ok && k.First > 0 && len(k.Points) > 2 {
		v.Found = fmt.Sprintf("%.2f (%.0f / %.0f MiB)", k.Next/k.First, k.Next, k.First)
		v.Verdict = met(k.Next <= goalNth*k.First)
	}
	r.goal(v)
}

func (r *Report) memoryGoal(name string, goal float64) {
	v := Verdict{What: "machinery of a " + name, Claimed: fmt.Sprintf("≤ %g MiB", goal)}
	if k, ok := r.kind(name); ok {
		v.Found = fmt.Sprintf("%.1f MiB [%.1f, %.1f]", k.MiB.Slope, k.MiB.Interval.Low, k.MiB.Interval.High)
		v.Verdict = met(k.MiB.Interval.High <= goal)
	}
	r.goal(v)
}

func (r *Report) goal(v Verdict) {
	if v.Verdict == "" {
		v.Verdict = unmeasured
	}
	r.Goals = append(r.Goals, v)
}

// met is the verdict on a goal that is about a comparison.
func (c Comparison) met(is bool) string {
	if !c.Enough() {
		return tooFew
	}
	return met(is)
}

func met(is bool) string {
	if is {
		return "met"
	}
	return "missed"
}

// gigabits is the rate in Gbit/s of so many nanoseconds a MiB.
func gigabits(ns float64) float64 { return 8 * mib / ns }
