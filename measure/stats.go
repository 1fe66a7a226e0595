package measure

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// Quantile is the q-th quantile by the nearest rank. values is not empty.
func Quantile[T cmp.Ordered](values []T, q float64) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// Median is the middle value, or the mean of the two. values is not empty.
func Median[T ~int64 | ~float64](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// Interval is a confidence interval.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// resamples is how many samples a bootstrap draws.
const resamples = 2000

// Bootstrap is the 95 % interval of the median: the percentiles of the medians of samples that are drawn with
// replacement (Efron 1979). Drawing is seeded, so that the same values give the same interval.
func Bootstrap(values []float64) Interval {
	random := rand.New(rand.NewPCG(2026, uint64(len(values))))
	medians := make([]float64, resamples)
	sample := make([]float64, len(values))
	for i := range medians {
		for j := range sample {
			sample[j] = values[random.IntN(len(values))]
		}
		medians[i] = Median(sample)
	}
	slices.Sort(medians)
	return Interval{medians[resamples*25/1000], medians[resamples*975/1000]}
}

// Spread is the standard deviation of what values would be without outliers: 1.4826 times the median distance from the
// median, which is the standard deviation of a normal distribution.
func Spread(values []float64) float64 {
	middle := Median(values)
	distances := make([]float64, len(values))
	for i, v := range values {
		distances[i] = math.Abs(v - middle)
	}
	return 1.4826 * Median(distances)
}

// normalTail is the probability that a standard normal variable is above z.
func normalTail(z float64) float64 { return math.Erfc(z/math.Sqrt2) / 2 }

// normalQuantile is what a standard normal variable is below with probability p.
func normalQuantile(p float64) float64 { return math.Sqrt2 * math.Erfinv(2*p-1) }

// Power is how likely an effect as large as the minimum detectable one is to be detected, Alpha how likely something is
// that is not there.
const (
	Power = 0.8
	Alpha = 0.05
)

// MinimumEffect is the least effect on a median of n pairs that a signed-rank test finds with Power, when it is one of so
// many tests that share Alpha. spread is the standard deviation of the pairs' differences. The test needs π/3 times as
// many pairs as one that knows that the differences are normal does (Hodges and Lehmann 1956).
func MinimumEffect(spread float64, n, tests int) float64 {
	if n == 0 {
		return math.Inf(1)
	}
	z := normalQuantile(1-Alpha/2/float64(max(tests, 1))) + normalQuantile(Power)
	return z * spread / math.Sqrt(float64(n)) * math.Sqrt(math.Pi/3)
}

// Holm adjusts p-values for there being several tests, so that comparing each with Alpha keeps the chance of one false
// alarm among all below Alpha (Holm 1979). The order is kept.
func Holm(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p[a], p[b]) })
	adjusted := make([]float64, len(p))
	worst := 0.0
	for rank, i := range order {
		worst = max(worst, min(1, p[i]*float64(len(p)-rank)))
		adjusted[i] = worst
	}
	return adjusted
}

// ranks are the places of values in their order from 1, those of equal ones averaged. ties is the sum of t³-t over
// the groups of t equal ones.
func ranks(values []float64) (of []float64, ties float64) {
	order := make([]int, len(values))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(values[a], values[b]) })
	of = make([]float64, len(values))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && values[order[j]] == values[order[i]] {
			j++
		}
		for _, k := range order[i:j] {
			of[k] = float64(i+1+j) / 2
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	return of, ties
}

// exactPairs is up to how many pairs SignedRank counts all possibilities.
const exactPairs = 50

// SignedRank is the two-sided p-value of Wilcoxon's signed-rank test: whether differences lie around 0 (Wilcoxon 1945).
// Zeros are left out. Up to 50 differences without equal ones it is exact, else that of the normal approximation.
func SignedRank(differences []float64) float64 {
	var sizes, signs []float64
	for _, d := range differences {
		if d != 0 {
			sizes, signs = append(sizes, math.Abs(d)), append(signs, d)
		}
	}
	n := len(sizes)
	if n == 0 {
		return 1
	}
	of, ties := ranks(sizes)
	positive := 0.0
	for i, s := range signs {
		if s > 0 {
			positive += of[i]
		}
	}
	total := float64(n*(n+1)) / 2
	least := min(positive, total-positive)
	if ties == 0 && n <= exactPairs {
		return min(1, 2*signedRankTail(n, int(least)))
	}
	return min(1, 2*signedRankNormal(n, least, ties))
}

// signedRankNormal approximates signedRankTail, with the corrections for ties and for continuity.
func signedRankNormal(n int, w, ties float64) float64 {
	mean, variance := float64(n*(n+1))/4, float64(n*(n+1)*(2*n+1))/24-ties/48
	if variance <= 0 {
		return 1
	}
	return normalTail((mean - w - 0.5) / math.Sqrt(variance))
}

// signedRankTail is the probability that the sum of a random half of the ranks 1..n is at most w.
func signedRankTail(n, w int) float64 {
	ways := make([]float64, n*(n+1)/2+1) // by sum
	ways[0] = 1
	for rank := 1; rank <= n; rank++ {
		for sum := len(ways) - 1; sum >= rank; sum-- {
			ways[sum] += ways[sum-rank]
		}
	}
	tail := 0.0
	for _, ways := range ways[:w+1] {
		tail += ways
	}
	return tail / math.Exp2(float64(n))
}

// Page is Page's test for ordered alternatives: whether values rise along each row of a table, in which rows are blocks
// (Page 1963). It returns L and the one-sided p-value of the normal approximation. It returns 1 for a table that says nothing.
func Page(rows [][]float64) (l, p float64) {
	if len(rows) == 0 || len(rows[0]) < 3 {
		return 0, 1
	}
	k, n := float64(len(rows[0])), float64(len(rows))
	varianceOfRanks := 0.0
	for _, row := range rows {
		of, ties := ranks(row)
		for i, r := range of {
			l += float64(i+1) * r
		}
		varianceOfRanks += (k*k*k - k - ties) / 12
	}
	mean := n * k * (k + 1) * (k + 1) / 4
	variance := varianceOfRanks * k * (k + 1) / 12
	if variance == 0 {
		return l, 1
	}
	return l, normalTail((l - mean) / math.Sqrt(variance))
}

// Line is the line of least squares through points: y = Intercept + Slope·x, with the 95 % interval of Slope.
type Line struct {
	Intercept float64  `json:"intercept"`
	Slope     float64  `json:"slope"`
	Interval  Interval `json:"slope_interval"`
}

// Fit fits a line. The interval is that of the slopes between all pairs of points, which says how far a single one is off
// when there are only a few (Theil 1950).
func Fit(x, y []float64) Line {
	n := float64(len(x))
	if n == 0 {
		return Line{}
	}
	var sx, sy, sxx, sxy float64
	for i := range x {
		sx, sy, sxx, sxy = sx+x[i], sy+y[i], sxx+x[i]*x[i], sxy+x[i]*y[i]
	}
	var line Line
	if d := n*sxx - sx*sx; d != 0 {
		line.Slope = (n*sxy - sx*sy) / d
	}
	line.Intercept = (sy - line.Slope*sx) / n
	var slopes []float64
	for i := range x {
		for j := range i {
			if x[i] != x[j] {
				slopes = append(slopes, (y[i]-y[j])/(x[i]-x[j]))
			}
		}
	}
	line.Interval = Interval{line.Slope, line.Slope}
	if len(slopes) > 1 {
		line.Interval = Interval{slices.Min(slopes), slices.Max(slopes)}
	}
	return line
}
