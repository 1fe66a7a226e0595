//go:build integration && bench

package integration

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/runnerd/runnerd/measure"
)

// pairs is how often both sides of a comparison run.
const pairs = 30

// measurement is one run of something, and how long what counts of it took.
type measurement func() time.Duration

func printHeader() {
	fmt.Printf("%-52s %11s %11s %7s %16s %9s  %s\n", "what / peer", "ours p50", "peer p50", "ratio", "95 % interval", "goal", "verdict")
}

// compare measures ours and its peer in pairs, in random order within each pair, and prints the median of the
// pairs' ratios with its bootstrap 95 % interval. The goal, an upper bound, is met when the whole interval is
// below it; 0 is none. It returns our times.
func compare(t *testing.T, what string, n int, ours, peer measurement, goal float64) []time.Duration {
	t.Helper()
	var a, b []time.Duration
	for range n {
		var x, y time.Duration
		if rand.IntN(2) == 0 {
			x, y = ours(), peer()
		} else {
			y, x = peer(), ours()
		}
		a, b = append(a, x), append(b, y)
	}
	printPairs(what, a, b, goal)
	return a
}

// printPairs prints the row of a comparison whose i-th run took a[i] of ours and b[i] of its peer. Where there are
// not as many as usual, it says how many.
func printPairs(what string, a, b []time.Duration, goal float64) {
	if len(a) != pairs {
		what += fmt.Sprintf(" (n=%d)", len(a))
	}
	ratios := make([]float64, len(a))
	for i := range a {
		ratios[i] = a[i].Seconds() / b[i].Seconds()
	}
	interval := measure.Bootstrap(ratios)
	aim, verdict := "", ""
	if goal > 0 {
		aim, verdict = fmt.Sprintf("<= %.3g", goal), verdictOf(interval.High <= goal)
	}
	fmt.Printf("%-52s %11s %11s %7.3f %16s %9s  %s\n", what, millis(measure.Median(a)), millis(measure.Median(b)), measure.Median(ratios),
		fmt.Sprintf("[%.3f, %.3f]", interval.Low, interval.High), aim, verdict)
}

// absolute prints a row that has no peer: a value, and the bound that it is to keep.
func absolute(what, value, goal string, met bool) {
	verdict := ""
	if goal != "" {
		verdict = verdictOf(met)
	}
	fmt.Printf("%-52s %11s %11s %7s %16s %9s  %s\n", what, value, "", "", "", goal, verdict)
}

func verdictOf(met bool) string {
	if met {
		return "met"
	}
	return "missed"
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }
