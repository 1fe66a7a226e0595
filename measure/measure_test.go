package measure

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// fakePlace answers with a base time, times factors, times noise.
func fakePlace(name string, depth int, factors map[string]float64, noise float64) Place {
	random := rand.New(rand.NewPCG(uint64(depth), 5))
	return Place{Name: name, Depth: depth, Run: func(_ context.Context, probe string) (float64, error) {
		factor, ok := factors[probe]
		if !ok {
			return 0, fmt.Errorf("%w: %s", ErrNotHere, probe)
		}
		return 1000 * factor * math.Exp(noise*random.NormFloat64()), nil
	}}
}

func fakePlan(blocks int) Plan {
	return Plan{Blocks: blocks, Seed: 1, MaxPressure: 0.05, Pressure: func() (time.Duration, error) { return 0, nil }}
}

func depthSeries(noise float64) Series {
	s := Series{Name: CauseDepth, Title: "levels", Probes: []Probe{{Name: "integer", Unit: "op"}, {Name: "rename", Unit: "op"}, {Name: "copy-up", Unit: "op"}}}
	for depth := range 3 {
		factors := map[string]float64{"integer": 1, "rename": 1 + 0.2*float64(depth)}
		if depth > 0 {
			factors["copy-up"] = 2
		}
		s.Places = append(s.Places, fakePlace([]string{"machine", "depth 1", "depth 2"}[depth], depth, factors, noise))
	}
	return s
}

// TestRunFindsWhatIsThere holds that what grows with depth is found, and what does not is not.
func TestRunFindsWhatIsThere(t *testing.T) {
	visited := 0
	plan := fakePlan(30)
	plan.Progress = func(_ string, done, all int) {
		if visited++; all != 180 || done != visited {
			t.Errorf("visit %d of %d, told as %d", visited, all, done)
		}
	}
	o, err := Run(t.Context(), depthSeries(0.03), plan)
	if err != nil {
		t.Fatal(err)
	}
	if visited != 180 {
		t.Errorf("%d visits", visited)
	}
	rename, _ := o.At("rename", 2)
	if !rename.Detected || rename.Interval.Low > 1.4 || rename.Interval.High < 1.4 || rename.Pairs != 30 || math.Abs(rename.Extra-400) > 30 {
		t.Errorf("1.4 times as long: %+v", rename)
	}
	integer, _ := o.At("integer", 2)
	if integer.Detected || integer.Interval.Low > 1 || integer.Interval.High < 1 || integer.Minimum < 1.005 || integer.Minimum > 1.1 {
		t.Errorf("as long: %+v", integer)
	}
	if grows, flat := o.Probes[1].Trend, o.Probes[0].Trend; grows > 0.001 || flat < 0.05 {
		t.Errorf("trends: %g and %g", grows, flat)
	}
	if _, ok := o.At("copy-up", 0); ok {
		t.Error("what is not there was measured")
	}
	if c, ok := o.At("copy-up", 1); !ok || c.Ratio != 1 {
		t.Errorf("the first place that has something is what others are compared with: %+v", c)
	}
}

// TestRunDropsPressure holds that what was measured while others had the processors does not count, and is counted.
func TestRunDropsPressure(t *testing.T) {
	now, calls := time.Duration(0), 0
	plan := fakePlan(10)
	plan.Pressure = func() (time.Duration, error) {
		if calls++; calls%41 == 0 { // now and then processes wait for as long as it takes, and more
			now += time.Second
		}
		return now, nil
	}
	o, err := Run(t.Context(), depthSeries(0.01), plan)
	if err != nil {
		t.Fatal(err)
	}
	dropped := 0
	for _, p := range o.Probes {
		for _, c := range p.Comparisons {
			if dropped += c.Dropped; p.Name != "copy-up" && c.Pairs+c.Dropped != 10 {
				t.Errorf("%s at %s: %d pairs and %d dropped", p.Name, c.Place, c.Pairs, c.Dropped)
			}
		}
	}
	if dropped == 0 {
		t.Error("nothing was dropped")
	}
	if _, err := json.Marshal(o); err != nil { // infinite and undefined numbers have no JSON
		t.Error(err)
	}
}

// TestRunEnds holds that an error and the end of the context end it, and that places are left.
func TestRunEnds(t *testing.T) {
	wrong := errors.New("broken")
	s := depthSeries(0)
	entered := 0
	s.Places[1].Enter = func(context.Context) (func() error, error) {
		entered++
		return func() error { entered--; return nil }, nil
	}
	s.Places[1].Run = func(context.Context, string) (float64, error) { return 0, wrong }
	if _, err := Run(t.Context(), s, fakePlan(1)); !errors.Is(err, wrong) || entered != 0 {
		t.Errorf("%v, %d entered", err, entered)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(wrong)
	if _, err := Run(ctx, depthSeries(0), fakePlan(1)); !errors.Is(err, wrong) {
		t.Error(err)
	}
}

func fakeReport(t *testing.T) *Report {
	t.Helper()
	o, err := Run(t.Context(), depthSeries(0.02), fakePlan(30))
	if err != nil {
		t.Fatal(err)
	}
	r := &Report{
		Machine: Machine{Host: "a/b", Kernel: "6.1 x"}, Began: time.Unix(1e9, 0), Plan: PlanFacts{Depth: 2, Blocks: 30}, Series: []Outcome{o},
		Kinds: []KindResult{
			{Name: "container", Starts: []float64{100}, Points: []MemoryPoint{{}, {1, 20 * mib, 0}, {10, 83 * mib, 0}}},
			{Name: "dind", Starts: []float64{700}, Points: []MemoryPoint{{}, {1, 140 * mib, 0}, {4, 260 * mib, 0}}},
			{Name: "wasm", Missing: "no driver"},
		},
	}
	for i := range r.Kinds {
		r.Kinds[i].Fit()
	}
	r.Judge(1 << 30)
	return r
}

func TestJudge(t *testing.T) {
	r := fakeReport(t)
	want := map[string]string{
		"processor, depth 2": "less than claimed", "memory, depth 1": "less than claimed", "network, depth 1": "not measured",
		"WebAssembly in a container": "not measured", "machinery of a container": "met", "machinery of a dind": "met",
		"rename, depth 2 / depth 1": "missed", "memory of the nth engine / the first": "met",
	}
	for _, v := range append(r.Claims, r.Goals...) {
		if verdict, ok := want[v.What]; ok {
			if !strings.Contains(v.Verdict, verdict) {
				t.Errorf("%s: %s (%s), not %s", v.What, v.Verdict, v.Found, verdict)
			}
			delete(want, v.What)
		}
	}
	if len(want) > 0 {
		t.Errorf("no verdict on %v", want)
	}
	for _, c := range []struct {
		low, high float64
		want      string
	}{{0, 0.01, less}, {0.03, 0.04, more}, {0.01, 0.03, consistent}} {
		if got := judge(c.low, c.high, 0.02); got != c.want {
			t.Errorf("%v: %s", c, got)
		}
	}
}

// TestFewPairs holds that nothing is said of fewer pairs than an interval takes.
func TestFewPairs(t *testing.T) {
	o, err := Run(t.Context(), depthSeries(0.02), fakePlan(minPairs-1))
	if err != nil {
		t.Fatal(err)
	}
	r := &Report{Plan: PlanFacts{Depth: 2}, Series: []Outcome{o}}
	r.Judge(1 << 30)
	for _, v := range append(r.Claims, r.Goals...) {
		if v.Verdict != tooFew && v.Verdict != unmeasured {
			t.Errorf("%s: %s", v.What, v.Verdict)
		}
	}
}

func TestReports(t *testing.T) {
	r := fakeReport(t)
	var md, svg bytes.Buffer
	if err := errors.Join(r.WriteMarkdown(&md), r.WriteSVG(&svg)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"## Claims", "| rename | depth 2 |", "not detected", "| wasm |"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("Markdown has no %q:\n%s", want, md.String())
		}
	}
	for d := xml.NewDecoder(&svg); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func TestStore(t *testing.T) {
	s := Store{Dir: t.TempDir()}
	r := fakeReport(t)
	if last, err := s.Last(r.Machine); last != nil || err != nil {
		t.Fatal(last, err)
	}
	files, err := s.Keep(r)
	if err != nil || len(files) != 3 {
		t.Fatal(files, err)
	}
	last, err := s.Last(r.Machine)
	if err != nil || len(last.Series) != 1 || last.Machine.Host != "a/b" {
		t.Fatal(last, err)
	}
	for _, c := range r.Compare(last) {
		if c.Beyond || c.Now != c.Before {
			t.Errorf("a report beside itself: %+v", c)
		}
	}
	changed := &r.Series[0].Probes[1].Comparisons[2]
	changed.Ratio, changed.Interval = 3, Interval{2.9, 3.1}
	if c := r.Compare(last); len(c) == 0 || !c[0].Beyond || c[0].Probe != "rename" {
		t.Errorf("%+v", c)
	}
	if err := os.WriteFile(files[2], []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Last(r.Machine); err == nil || !strings.Contains(err.Error(), "remove it") {
		t.Error(err)
	}
}

func TestParsePressure(t *testing.T) {
	d, err := parsePressure("some avg10=0.96 avg60=3.02 avg300=5.46 total=1500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n")
	if err != nil || d != 1500*time.Millisecond {
		t.Error(d, err)
	}
	if _, err := parsePressure("nonsense"); err == nil {
		t.Error("nonsense was understood")
	}
}
