package measure

import (
	"math"
)

// Outcome is what came of a series.
type Outcome struct {
	Name   string   `json:"name"`
	Title  string   `json:"title"`
	Places []string `json:"places"`
	Depths []int    `json:"depths"`
	Blocks int      `json:"blocks"`
	Probes []Result `json:"probes"`
}

// Result is what came of one probe.
type Result struct {
	Probe
	// Trend is the p-value of Page's test for its growing with each place, adjusted by Holm; 1 if there are less than
	// three places.
	Trend float64 `json:"trend_p"`
	// Comparisons are by place, the first with itself included. Those without pairs were not measured.
	Comparisons []Comparison `json:"places"`
}

// Comparison is one place's time of an operation beside that of a series' first place.
type Comparison struct {
	Place string `json:"place"`
	Depth int    `json:"depth"`
	// Nanoseconds is the median time of an operation.
	Nanoseconds float64 `json:"ns"`
	// Ratio is the median of the blocks' ratios to the first place, Interval its 95 % interval.
	Ratio    float64  `json:"ratio"`
	Interval Interval `json:"ratio_interval"`
	// Extra is the median of the blocks' differences to the first place, in nanoseconds.
	Extra         float64  `json:"extra_ns"`
	ExtraInterval Interval `json:"extra_interval_ns"`
	// Noise is the interval of the place's ratio to itself: what is within it is not told from nothing.
	Noise Interval `json:"noise"`
	// Minimum is the least ratio above 1 that this many pairs, spread as they are, would have told from noise; 0: there
	// are too few to say.
	Minimum float64 `json:"minimum_detectable"`
	P       float64 `json:"p"` // of the signed-rank test, adjusted by Holm over all probes and places of the series
	// Detected tells that the ratio is none that noise makes.
	Detected bool `json:"detected"`
	Pairs    int  `json:"pairs"`
	Dropped  int  `json:"dropped"` // pairs, for pressure on the processors
}

// minPairs is from how many pairs on there is a 95 % interval of a median at all: that all of so few lie on one side of it
// has a probability of 2/2^n.
const minPairs = 6

// leastP is the least p-value that a signed-rank test of so many pairs can give: all lie on one side.
func leastP(pairs int) float64 { return math.Exp2(1 - float64(pairs)) }

// Enough tells that there are as many pairs as it takes to say anything.
func (c Comparison) Enough() bool { return c.Pairs >= minPairs }

// analyse compares places with the first one.
func analyse(s Series, tables []table) Outcome {
	o := Outcome{Name: s.Name, Title: s.Title, Places: []string{}, Depths: []int{}, Probes: []Result{}}
	for _, p := range s.Places {
		o.Places, o.Depths = append(o.Places, p.Name), append(o.Depths, p.Depth)
	}
	if len(tables) > 0 {
		o.Blocks = len(tables[0])
	}
	for i, probe := range s.Probes {
		if places(tables[i]) > 1 {
			o.Probes = append(o.Probes, compare(s, probe, tables[i]))
		}
	}
	o.adjust()
	return o
}

// places is at how many places a probe had something to measure: at one there is nothing to compare.
func places(samples table) (n int) {
	for _, block := range samples {
		had := 0
		for _, both := range block {
			if both[0].measured {
				had++
			}
		}
		n = max(n, had)
	}
	return n
}

// compare makes one probe's comparisons. Their p-values, and what follows from them, are not adjusted yet.
func compare(s Series, probe Probe, samples table) Result {
	r := Result{Probe: probe, Trend: 1, Comparisons: []Comparison{}}
	first := firstPlace(samples)
	for place := range s.Places {
		r.Comparisons = append(r.Comparisons, comparePlace(s.Places[place], samples, place, first))
	}
	r.Trend = trend(samples)
	return r
}

// firstPlace is the first at which there is a sample, which others are compared with: a place may have nothing to measure.
func firstPlace(samples table) int {
	for _, block := range samples {
		for place := range block {
			if block[place][0].measured {
				return place
			}
		}
	}
	return 0
}

func comparePlace(p Place, samples table, place, first int) Comparison {
	c := Comparison{Place: p.Name, Depth: p.Depth, P: 1}
	var times, ratios, extras, self []float64
	for _, block := range samples {
		here, there := block[place], block[first]
		if !here[0].measured || !there[0].measured {
			continue
		}
		if crowded(here) || crowded(there) {
			c.Dropped++
			continue
		}
		times = append(times, here[0].ns, here[1].ns)
		ratios = append(ratios, (math.Log(here[0].ns)+math.Log(here[1].ns)-math.Log(there[0].ns)-math.Log(there[1].ns))/visits)
		extras = append(extras, (here[0].ns+here[1].ns-there[0].ns-there[1].ns)/visits)
		self = append(self, math.Log(here[1].ns)-math.Log(here[0].ns))
	}
	if c.Pairs = len(ratios); c.Pairs == 0 {
		return c
	}
	c.Nanoseconds = Median(times)
	c.Ratio, c.Interval = math.Exp(Median(ratios)), exp(Bootstrap(ratios))
	c.Extra, c.ExtraInterval = Median(extras), Bootstrap(extras)
	c.Noise = exp(Bootstrap(self))
	c.Minimum = Spread(ratios) // for adjust
	if place != first {
		c.P = SignedRank(ratios)
	}
	return c
}

func crowded(both [visits]sample) bool { return both[0].crowded || both[1].crowded }

func exp(i Interval) Interval { return Interval{math.Exp(i.Low), math.Exp(i.High)} }

// trend is the p-value of a probe's growing with each place.
func trend(samples table) float64 {
	var rows [][]float64
	for _, block := range samples {
		var row []float64
		use := true
		for _, both := range block {
			if both[0].measured {
				use = use && !crowded(both)
				row = append(row, math.Log(both[0].ns)+math.Log(both[1].ns))
			}
		}
		if use {
			rows = append(rows, row)
		}
	}
	_, p := Page(rows)
	return p
}

// adjust corrects for there being many tests, and decides what is told from noise.
func (o *Outcome) adjust() {
	var tests []*Comparison
	var p, trends []float64
	for i := range o.Probes {
		trends = append(trends, o.Probes[i].Trend)
		first := true
		for j := range o.Probes[i].Comparisons {
			c := &o.Probes[i].Comparisons[j]
			if c.Pairs == 0 {
				continue
			}
			if first {
				first, c.Minimum = false, 1
				continue
			}
			tests, p = append(tests, c), append(p, c.P)
		}
	}
	for i, adjusted := range Holm(trends) {
		o.Probes[i].Trend = adjusted
	}
	for i, adjusted := range Holm(p) {
		c := tests[i]
		c.P = adjusted
		if !c.Enough() || float64(len(tests))*leastP(c.Pairs) >= Alpha {
			c.Minimum = 0
			continue
		}
		c.Minimum = math.Exp(MinimumEffect(c.Minimum, c.Pairs, len(tests)))
		inside := c.Ratio >= c.Noise.Low && c.Ratio <= c.Noise.High
		c.Detected = adjusted < Alpha && !inside
	}
}

// At is the comparison of a probe at the place of a depth; ok is false if it was not measured.
func (o Outcome) At(probe string, depth int) (c Comparison, ok bool) {
	for _, r := range o.Probes {
		if r.Name != probe {
			continue
		}
		for _, c := range r.Comparisons {
			if c.Depth == depth && c.Pairs > 0 {
				return c, true
			}
		}
	}
	return Comparison{}, false
}
