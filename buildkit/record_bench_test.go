package buildkit

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// BenchmarkRecord compares builds that are all cached with and without a record, in pairs, by context.
func BenchmarkRecord(b *testing.B) {
	d := startDaemon(b)
	for _, c := range []struct{ files, size int }{{10, 1 << 10}, {500, 10 << 10}, {2000, 25 << 10}} {
		b.Run(fmt.Sprintf("%dx%dKiB", c.files, c.size>>10), func(b *testing.B) {
			dockerfile := "FROM debian:bookworm-slim\nCOPY src /src\n"
			for i := range 20 {
				dockerfile += fmt.Sprintf("RUN echo %d >/%d\n", i, i)
			}
			context := []string{"Dockerfile", dockerfile}
			for i := range c.files {
				context = append(context, fmt.Sprintf("src/%d/%d", i%50, i), strings.Repeat(fmt.Sprintf("%09d\n", i), c.size/10))
			}
			without := workspace(b, context...)
			with := without
			var record Record
			with.Record = func(r Record) { record = r }
			d.run(b, without)
			var took [2][]time.Duration
			completed := time.Duration(0)
			for n := 0; b.Loop(); n++ {
				for j := range 2 { // each is the first one as often
					i, build := (n+j)%2, []Build{without, with}[(n+j)%2]
					began := time.Now()
					if r := d.run(b, build); r.Cached != 21 {
						b.Fatalf("%d steps cached", r.Cached)
					}
					took[i] = append(took[i], time.Since(began))
				}
				began := time.Now()
				record.Complete(b.Context())
				completed += time.Since(began)
			}
			var ratios []float64
			for i := range took[0] {
				ratios = append(ratios, float64(took[1][i])/float64(took[0][i]))
			}
			slices.Sort(ratios)
			slices.Sort(took[0])
			slices.Sort(took[1])
			n := len(ratios) / 2
			b.ReportMetric(ratios[n], "with/without")
			b.ReportMetric(float64(took[0][n].Microseconds())/1000, "ms-without")
			b.ReportMetric(float64(took[1][n].Microseconds())/1000, "ms-with")
			b.ReportMetric(float64(completed.Microseconds())/1000/float64(len(ratios)), "ms-afterwards")
			if len(record.Manifests["."].Files) < c.files {
				b.Fatal("the files are not in the record")
			}
		})
	}
}
