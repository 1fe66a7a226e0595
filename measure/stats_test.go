package measure

import (
	"math"
	"math/rand/v2"
	"testing"
)

func near(t *testing.T, what string, got, want, within float64) {
	t.Helper()
	if math.IsNaN(got) || math.Abs(got-want) > within {
		t.Errorf("%s: got %g, want %g", what, got, want)
	}
}

func TestMedianAndQuantile(t *testing.T) {
	near(t, "odd", Median([]float64{3, 1, 2}), 2, 0)
	near(t, "even", Median([]float64{4, 1, 3, 2}), 2.5, 0)
	near(t, "p99", Quantile([]float64{5, 1, 2, 3, 4}, 0.99), 5, 0)
	near(t, "spread", Spread([]float64{1, 2, 3, 4, 1000}), 1.4826, 1e-9)
}

// TestSignedRank compares with R: wilcox.test(x, y, paired = TRUE), on the example of its manual (Hollander and Wolfe
// 1973), whose one-sided p-value is 0.01953, and with the least that five pairs can give.
func TestSignedRank(t *testing.T) {
	x := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	y := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29}
	d := make([]float64, len(x))
	for i := range x {
		d[i] = x[i] - y[i]
	}
	near(t, "depression data", SignedRank(d), 2*0.01953125, 1e-9)
	near(t, "five of a sign", SignedRank([]float64{1, 2, 3, 4, 5}), 2.0/32, 1e-12)
	near(t, "nothing", SignedRank([]float64{0, 0}), 1, 0)
	near(t, "symmetric", SignedRank([]float64{1, -1, 2, -2}), 1, 0)
	many := make([]float64, 200)
	for i := range many {
		many[i] = float64(i + 1)
	}
	if p := SignedRank(many); p > 1e-30 {
		t.Errorf("200 of a sign: %g", p)
	}
}

// TestSignedRankApproximates holds that the exact and the normal tail meet where one gives way to the other.
func TestSignedRankApproximates(t *testing.T) {
	for w := 200; w <= 637; w++ { // up to the middle
		near(t, "tail", signedRankNormal(exactPairs, float64(w), 0), signedRankTail(exactPairs, w), 2e-3)
	}
}

// TestHolm compares with R: p.adjust(p, "holm").
func TestHolm(t *testing.T) {
	for _, c := range []struct{ p, want []float64 }{
		{[]float64{0.01, 0.02, 0.03, 0.04}, []float64{0.04, 0.06, 0.06, 0.06}},
		{[]float64{0.04, 0.01, 0.03}, []float64{0.06, 0.03, 0.06}},
		{[]float64{0.9, 0.8}, []float64{1, 1}},
		{nil, []float64{}},
	} {
		for i, got := range Holm(c.p) {
			near(t, "adjusted", got, c.want[i], 1e-12)
		}
	}
}

// TestPage compares with the example of SciPy's page_trend_test: L is 133.5 and the exact p-value 0.0018.
func TestPage(t *testing.T) {
	l, p := Page([][]float64{
		{3, 4, 3}, {2, 2, 4}, {3, 3, 5}, {1, 3, 2}, {2, 3, 2}, {2, 4, 5}, {1, 2, 4}, {3, 4, 4}, {2, 4, 5}, {1, 3, 4},
	})
	near(t, "L", l, 133.5, 1e-9)
	near(t, "p", p, 0.0018, 0.0015)
	// By hand: 6 rows in order of 3 have the greatest L, 6·14, at √12 of the mean 72.
	l, p = Page([][]float64{{1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}, {1, 2, 3}})
	near(t, "greatest L", l, 84, 0)
	near(t, "its p", p, normalTail(12/math.Sqrt(12)), 1e-12)
	if _, p := Page([][]float64{{3, 2, 1}, {3, 2, 1}}); p < 0.9 {
		t.Errorf("falling: %g", p)
	}
	if _, p := Page([][]float64{{1, 1, 1}}); p != 1 {
		t.Errorf("flat: %g", p)
	}
}

func TestNormal(t *testing.T) {
	near(t, "tail", normalTail(1.959964), 0.025, 1e-6)
	near(t, "quantile", normalQuantile(0.975), 1.959964, 1e-6)
}

// TestMinimumEffect holds that an effect of that size is found as often as promised, and nothing where nothing is.
func TestMinimumEffect(t *testing.T) {
	near(t, "by hand", MinimumEffect(1, 30, 1), (1.959964+0.841621)*1.023327/math.Sqrt(30), 1e-5)
	random := rand.New(rand.NewPCG(7, 7))
	const rounds, pairs = 1000, 30
	effect := MinimumEffect(1, pairs, 1)
	found, false0 := 0, 0
	for range rounds {
		with, without := make([]float64, pairs), make([]float64, pairs)
		for i := range with {
			without[i] = random.NormFloat64()
			with[i] = without[i] + effect
		}
		if SignedRank(with) < Alpha {
			found++
		}
		if SignedRank(without) < Alpha {
			false0++
		}
	}
	near(t, "power", float64(found)/rounds, Power, 0.05)
	near(t, "false alarms", float64(false0)/rounds, Alpha, 0.025)
}

// TestBootstrapCovers holds that the interval has the true median about 95 times of 100.
func TestBootstrapCovers(t *testing.T) {
	random := rand.New(rand.NewPCG(9, 9))
	covered := 0
	const rounds = 300
	for range rounds {
		values := make([]float64, 30)
		for i := range values {
			values[i] = random.NormFloat64()
		}
		if i := Bootstrap(values); i.Low <= 0 && i.High >= 0 {
			covered++
		}
	}
	if share := float64(covered) / rounds; share < 0.9 {
		t.Errorf("the interval has the median in %g of the cases", share)
	}
	if i := Bootstrap([]float64{5, 5, 5}); i.Low != 5 || i.High != 5 {
		t.Errorf("of equal values: %v", i)
	}
}

func TestFit(t *testing.T) {
	line := Fit([]float64{1, 10, 100}, []float64{107, 170, 800}) // 100 + 7x
	near(t, "slope", line.Slope, 7, 1e-9)
	near(t, "intercept", line.Intercept, 100, 1e-9)
	near(t, "low", line.Interval.Low, 7, 1e-9)
	if l := Fit([]float64{1}, []float64{3}); l.Slope != 0 || l.Intercept != 3 {
		t.Errorf("of one point: %v", l)
	}
	if l := Fit(nil, nil); l != (Line{}) {
		t.Errorf("of none: %v", l)
	}
}
