package buildkit

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"github.com/opencontainers/go-digest"
)

// BenchmarkRecord compares builds that are all cached with and without a record, in pairs, by context: the time they
// take, and the processor time of this process, which is the daemon's part and does not depend on who else is at work.
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
			var took, worked [2][]time.Duration
			completed := time.Duration(0)
			for n := 0; b.Loop(); n++ {
				for j := range 2 { // each is the first one as often
					i, build := (n+j)%2, []Build{without, with}[(n+j)%2]
					began, before := time.Now(), processorTime(b)
					if r := d.run(b, build); r.Cached != 21 {
						b.Fatalf("%d steps cached", r.Cached)
					}
					took[i], worked[i] = append(took[i], time.Since(began)), append(worked[i], processorTime(b)-before)
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
			slices.Sort(worked[0])
			slices.Sort(worked[1])
			b.ReportMetric(float64(worked[0][n].Microseconds())/1000, "cpu-ms-without")
			b.ReportMetric(float64(worked[1][n].Microseconds())/1000, "cpu-ms-with")
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

// processorTime is what this process has taken.
func processorTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRecorder is all that a build of 22 vertices waits for because it is recorded.
func BenchmarkRecorder(b *testing.B) {
	state := llb.Image("debian:bookworm-slim").File(llb.Copy(llb.Local("."), "src", "/src"), llb.WithCustomName("[2/22] COPY src /src"))
	for i := range 20 {
		state = state.Run(llb.Shlexf("sh -c 'echo %d >/%d'", i, i), llb.WithCustomNamef("[%d/22] RUN echo %d >/%d", i+3, i, i)).Root()
	}
	def, err := state.Marshal(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	result, t := gateway.NewResult(), newTally()
	result.SetRef(definedReference{def: def.ToPB()})
	now := time.Now()
	for _, text := range def.ToPB().Def {
		d := digest.FromBytes(text)
		t.steps[d] = &client.Vertex{Digest: d, Name: "[3/22] RUN echo", Started: &now, Completed: &now, Cached: true}
	}
	build := Build{Plan: Plan{Targets: map[string]Target{"app": {Context: "."}}}, Target: "app"}
	b.ReportAllocs()
	for b.Loop() {
		r := &recorder{build: build, keep: true, known: map[digest.Digest]int{}, locals: map[string]localSource{}}
		if err := r.define(b.Context(), result); err != nil {
			b.Fatal(err)
		}
		if record := r.record(t); len(record.Steps) != 22 {
			b.Fatalf("%d steps", len(record.Steps))
		}
	}
}

// definedReference is a result of which the definition is known, as BuildKit's client has it.
type definedReference struct {
	gateway.Reference
	def *pb.Definition
}

func (r definedReference) ToState() (llb.State, error) {
	op, err := llb.NewDefinitionOp(r.def)
	if err != nil {
		return llb.State{}, err
	}
	return llb.NewState(op), nil
}
