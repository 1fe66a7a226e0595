package main

import (
	"bytes"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/measure/probe"
)

// TestNestingMeasureFlags holds that what cannot be measured is refused, all of it at once, before anything starts.
func TestNestingMeasureFlags(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"--depth", "5", "--blocks", "0"}, []string{"--depth 5: 1 to 4", "--blocks 0"}},
		{[]string{"--series", "depth,moon"}, []string{`unknown "moon"`, "namespaces"}},
		{[]string{"--probes", "moon"}, []string{`unknown "moon"`, "container-start"}},
		{[]string{"--kinds", "vm"}, []string{`unknown "vm"`, "buildkit"}},
		{[]string{"--instances", "1,100000"}, []string{"--instances 100000"}},
		{[]string{"--loop", "0s"}, []string{"--loop 0s"}},
		{[]string{"--json", "--markdown"}, []string{"one of --json and --markdown"}},
		{[]string{"too", "much"}, []string{"see 'runnerd nesting measure --help'"}},
	} {
		code, stdout, stderr := runnerd(t, none, "", append([]string{"nesting", "measure"}, c.args...)...)
		expect(t, strings.Join(c.args, " "), code, exitUsage, stdout+stderr, c.want...)
	}
	_, stdout, _ := runnerd(t, none, "", "__complete", "nesting", "measure", "--kinds", "")
	if lines := strings.Split(stdout, "\n"); !slices.Equal(lines[:3], measuredKinds()) {
		t.Errorf("completion: %q", stdout)
	}
}

// TestMeasurementIsApart holds that a measurement has nothing of what a daemon of the same configuration has.
func TestMeasurementIsApart(t *testing.T) {
	c := config.Default()
	c.Resolve()
	own := (&measurement{config: c}).ownConfig()
	if own.Network.Subnet.Overlaps(c.Network.Subnet) || !own.Network.Subnet.Overlaps(netip.MustParsePrefix("198.18.0.0/15")) {
		t.Error(own.Network.Subnet)
	}
	last := own.UIDRange.First + uint32(own.UIDRange.Count)*config.IDsEach - 1
	if last >= c.UIDRange.First || last < own.UIDRange.First {
		t.Errorf("host ids up to %d, the daemon's from %d", last, c.UIDRange.First)
	}
	if instanceName(own) == instanceName(c) || own.Registry.Root == c.Registry.Root || own.RunDir == c.RunDir || own.Registry.Address != ":0" {
		t.Errorf("%+v", own)
	}
}

// TestKernelLimits holds that each limit of the kernel has an answer of ours.
func TestKernelLimits(t *testing.T) {
	for _, l := range kernelLimits(probe.Limits{Overlays: 2, OverlayError: "no", UpperError: "no", Layers: 500, LayerError: "no", Namespaces: 32, NamespaceError: "no"}) {
		if l.Says == "" || l.Kernel == "" {
			t.Errorf("%+v", l)
		}
	}
}

func TestMeasureProgress(t *testing.T) {
	var w bytes.Buffer
	p := newMeasureProgress(&w, false)
	p.say("reading")
	p.visits("depth", 1, 3)
	p.visits("depth", 2, 3) // too soon after the last
	p.shown = p.shown.Add(-time.Hour)
	p.visits("depth", 3, 3)
	p.end()
	if got := w.String(); !strings.HasPrefix(got, "reading\ndepth: visit 1 of 3, ") || strings.Contains(got, "visit 2") || !strings.Contains(got, "visit 3 of 3, 0s left") {
		t.Errorf("%q", got)
	}
	quiet := newMeasureProgress(&w, true)
	w.Reset()
	quiet.say("reading")
	if w.Len() > 0 {
		t.Errorf("%q", w.String())
	}
}
