package measure

import (
	"fmt"
	"math"
)

// Verdict is a claim or a goal beside what was found.
type Verdict struct {
	What    string `json:"what"`
	Claimed string `json:"claimed"` // or the goal
	Found   string `json:"found"`
	Verdict string `json:"verdict"`
}

// The verdicts on claims.
const (
	less        = "less than claimed"
	more        = "more than claimed"
	consistent  = "not refuted: the interval has it"
	unmeasured  = "not measured"
	tooFew      = "too few pairs"
	notDetected = "not detected"
)

// claim is a line of the founding document: what nesting of a depth costs.
type claim struct {
	depth   int
	cpu     float64 // as a share of 1
	memory  float64
	network float64 // milliseconds
}

// claims are the founding document's overheads by depth.
var claims = [...]claim{{1, 0.01, 0.05, 0}, {2, 0.03, 0.10, 2}, {3, 0.08, 0.20, 5}, {4, 0.15, 0.35, 10}}

// Claimed is the ratio that the founding document claims for processor time at a depth; 1 for the machine.
func Claimed(depth int) float64 {
	if depth < 1 || depth > len(claims) {
		return 1
	}
	return 1 + claims[depth-1].cpu
}

// claimedDinD and claimedWASM are its overheads of a Docker Engine and of a WebAssembly module in a container.
const (
	claimedDinD = 0.02
	claimedWASM = 0.005
)

// Judge puts what was found beside the claims and the goals. payload is what memory is compared with, in bytes: the
// document does not say of what its percentages are.
func (r *Report) Judge(payload int64) {
	r.Claims, r.Goals = nil, nil
	depth, _ := r.series(CauseDepth)
	for _, c := range claims {
		if c.depth > r.Plan.Depth {
			break
		}
		r.Claims = append(r.Claims, share(fmt.Sprintf("processor, depth %d", c.depth), c.cpu, depth, "integer", c.depth))
	}
	for _, c := range claims {
		if c.depth > r.Plan.Depth {
			break
		}
		r.Claims = append(r.Claims, r.memoryClaim(c, payload))
	}
	for _, c := range claims {
		if c.depth > r.Plan.Depth {
			break
		}
		r.Claims = append(r.Claims, networkClaim(c, depth))
	}
	r.Claims = append(r.Claims, share("Docker in Docker, a build at depth 2", claimedDinD, depth, "go-build", 2), r.wasmClaim())
	r.judgeGoals(depth)
}

func (r *Report) series(name string) (Outcome, bool) {
	for _, o := range r.Series {
		if o.Name == name {
			return o, true
		}
	}
	return Outcome{}, false
}

func (r *Report) kind(name string) (KindResult, bool) {
	for _, k := range r.Kinds {
		if k.Name == name && k.Missing == "" && len(k.Starts) > 0 {
			return k, true
		}
	}
	return KindResult{}, false
}

// share judges a claim about a ratio.
func share(what string, claimed float64, o Outcome, probe string, depth int) Verdict {
	v := Verdict{What: what, Claimed: percent(claimed), Verdict: unmeasured}
	c, ok := o.At(probe, depth)
	if !ok {
		return v
	}
	v.Found = fmt.Sprintf("%s [%s, %s], %s", percent(c.Ratio-1), percent(c.Interval.Low-1), percent(c.Interval.High-1), probe)
	v.Verdict = judge(c.Interval.Low-1, c.Interval.High-1, claimed)
	switch {
	case c.Minimum == 0:
		v.Verdict = tooFew
	case !c.Detected:
		v.Verdict = fmt.Sprintf("%s (least: %s); %s", notDetected, percent(c.Minimum-1), v.Verdict)
	}
	return v
}

func judge(low, high, claimed float64) string {
	switch {
	case high < claimed:
		return less
	case low > claimed:
		return more
	}
	return consistent
}

// memoryClaim judges by the slope of the kind whose depth it is. Engines in containers of engines take what the first
// does, each.
func (r *Report) memoryClaim(c claim, payload int64) Verdict {
	v := Verdict{What: fmt.Sprintf("memory, depth %d", c.depth), Claimed: percent(c.memory), Verdict: unmeasured}
	container, hasContainer := r.kind("container")
	dind, hasDinD := r.kind("dind")
	if !hasContainer || c.depth > 1 && !hasDinD {
		return v
	}
	took := Interval{container.MiB.Interval.Low, container.MiB.Interval.High}
	found := container.MiB.Slope
	if engines := float64(c.depth - 1); engines > 0 {
		found += engines * (dind.MiB.Slope - container.MiB.Slope)
		took.Low += engines * (dind.MiB.Interval.Low - container.MiB.Interval.High)
		took.High += engines * (dind.MiB.Interval.High - container.MiB.Interval.Low)
	}
	of := float64(payload) / mib
	v.Found = fmt.Sprintf("%.0f MiB, %s of %.0f MiB; as claimed for a payload of %.0f MiB", found, percent(found/of), of, found/c.memory)
	if c.depth > 2 {
		v.Found += ", from depth 2"
	}
	v.Verdict = judge(took.Low/of, took.High/of, c.memory)
	return v
}

func networkClaim(c claim, o Outcome) Verdict {
	v := Verdict{What: fmt.Sprintf("network, depth %d", c.depth), Claimed: fmt.Sprintf("+%g ms", c.network), Verdict: unmeasured}
	found, ok := o.At("tcp-rtt", c.depth)
	if !ok {
		return v
	}
	const ms = 1e6
	v.Found = fmt.Sprintf("%+.4f ms [%+.4f, %+.4f], TCP round trip", found.Extra/ms, found.ExtraInterval.Low/ms, found.ExtraInterval.High/ms)
	v.Verdict = judge(found.ExtraInterval.Low/ms, found.ExtraInterval.High/ms, c.network)
	switch {
	case found.Minimum == 0:
		v.Verdict = tooFew
	case !found.Detected:
		v.Verdict = notDetected + "; " + v.Verdict
	}
	return v
}

func (r *Report) wasmClaim() Verdict {
	v := Verdict{What: "WebAssembly in a container", Claimed: percent(claimedWASM), Verdict: unmeasured}
	for _, k := range r.Kinds {
		if k.Name == "wasm" {
			v.Found = k.Missing
		}
	}
	return v
}

func percent(share float64) string {
	if math.IsInf(share, 0) || math.IsNaN(share) {
		return "?"
	}
	return fmt.Sprintf("%+.1f %%", 100*share)
}
