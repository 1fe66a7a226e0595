package measure

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Table is what both the terminal and Markdown show: a heading, a line about it, and rows, the first of which are the
// columns' names.
type Table struct {
	Heading, About string
	Rows           [][]string
}

// Tables are the report for people.
func (r *Report) Tables() []Table {
	tables := []Table{
		{"Claims", "The founding document's figures beside what was found on this machine.", verdictRows("claim", "claimed", r.Claims)},
		{"Goals", "Met is what the whole 95 % interval is on the right side of.", verdictRows("what", "goal", r.Goals)},
	}
	for _, o := range r.Series {
		tables = append(tables, o.table())
	}
	return append(tables, r.kindTable(), r.limitTable(), r.placeTable())
}

func verdictRows(what, claimed string, verdicts []Verdict) [][]string {
	rows := [][]string{{what, claimed, "found", "verdict"}}
	for _, v := range verdicts {
		rows = append(rows, []string{v.What, v.Claimed, dash(v.Found), v.Verdict})
	}
	return rows
}

// table has a row a probe and place.
func (o Outcome) table() Table {
	t := Table{
		Heading: "Series " + o.Name,
		About: fmt.Sprintf("%s. Ratios to the first place, medians of at most %d blocks with 95 %% intervals; noise is a place beside itself; "+
			"p is adjusted for all tests of the series (Holm), and so is least, the smallest ratio that would have been told from noise.", upperFirst(o.Title), o.Blocks),
		Rows: [][]string{{"probe", "place", "an operation", "ratio", "95 % interval", "noise", "least", "p", "verdict", "pairs"}},
	}
	for _, r := range o.Probes {
		first := true
		for _, c := range r.Comparisons {
			if c.Pairs == 0 && c.Dropped == 0 {
				continue
			}
			row := []string{r.Name, c.Place}
			pairs := fmt.Sprint(c.Pairs)
			if c.Dropped > 0 {
				pairs += fmt.Sprintf(" (%d dropped)", c.Dropped)
			}
			noise := fmt.Sprintf("%.3f to %.3f", c.Noise.Low, c.Noise.High)
			switch {
			case c.Pairs == 0:
				row = append(row, "-", "-", "-", "-", "-", "-", "all pairs dropped", pairs)
			case first:
				row = append(row, Amount(r.Unit, c.Nanoseconds), "1", "", noise, "", "", r.trendText(), pairs)
			default:
				row = append(row, Amount(r.Unit, c.Nanoseconds), fmt.Sprintf("%.3f", c.Ratio), fmt.Sprintf("%.3f to %.3f", c.Interval.Low, c.Interval.High), noise,
					c.minimumText(), fmt.Sprintf("%.3f", c.P), c.verdict(), pairs)
			}
			first = false
			t.Rows = append(t.Rows, row)
		}
	}
	return t
}

func (r Result) trendText() string {
	if r.Trend < Alpha {
		return fmt.Sprintf("grows (p %.3f)", r.Trend)
	}
	return ""
}

func (c Comparison) verdict() string {
	switch {
	case c.Minimum == 0:
		return tooFew
	case !c.Detected:
		return notDetected
	case c.Ratio > 1:
		return "slower"
	}
	return "faster"
}

func (c Comparison) minimumText() string {
	if c.Minimum == 0 {
		return "-"
	}
	return fmt.Sprintf("%.3f", c.Minimum)
}

func (r *Report) kindTable() Table {
	t := Table{
		Heading: "Kinds", About: "Start until ready, and memory of all of an instance's machinery: proportional set sizes and the kernel's own.",
		Rows: [][]string{{"kind", "start, median", "MiB each", "MiB of all", "first", "next", "instances"}},
	}
	for _, k := range r.Kinds {
		if k.Missing != "" {
			t.Rows = append(t.Rows, []string{k.Name, "-", "-", "-", "-", "-", k.Missing})
			continue
		}
		if len(k.Starts) == 0 {
			continue
		}
		var counts []string
		for _, p := range k.Points[1:] {
			counts = append(counts, fmt.Sprint(p.Instances))
		}
		for _, n := range k.Skipped {
			counts = append(counts, fmt.Sprintf("(%d: too little memory)", n))
		}
		t.Rows = append(t.Rows, []string{
			k.Name, fmt.Sprintf("%.0f ms", Median(k.Starts)), fmt.Sprintf("%.1f [%.1f, %.1f]", k.MiB.Slope, k.MiB.Interval.Low, k.MiB.Interval.High),
			fmt.Sprintf("%.1f", k.MiB.Intercept), fmt.Sprintf("%.1f", k.First), fmt.Sprintf("%.1f", k.Next), strings.Join(counts, ", "),
		})
	}
	return t
}

func (r *Report) limitTable() Table {
	t := Table{Heading: "Limits", About: "Found by trying, and what runnerd says before anything is started.", Rows: [][]string{{"limit", "found", "the kernel to one more", "runnerd"}}}
	for _, l := range r.Limits {
		t.Rows = append(t.Rows, []string{l.Name, fmt.Sprint(l.Found), dash(l.Kernel), l.Says})
	}
	return t
}

func (r *Report) placeTable() Table {
	t := Table{Heading: "Places", About: "What the kernel said of each level.", Rows: [][]string{{"place", "process ids", "user ids", "files on", "MTU", "seccomp filters"}}}
	for _, p := range r.Places {
		var mtu []string
		for _, name := range []string{"eth0", "lo"} {
			if n, ok := p.Interfaces[name]; ok {
				mtu = append(mtu, fmt.Sprintf("%s %d", name, n))
			}
		}
		t.Rows = append(t.Rows, []string{p.Name, strings.Join(p.PIDs, " "), p.UIDMap, p.Dir.FS, strings.Join(mtu, ", "), fmt.Sprint(p.Filters)})
	}
	return t
}

// Header says what was measured and how, a line each.
func (r *Report) Header() []string {
	m := r.Machine
	lines := []string{
		fmt.Sprintf("%s, kernel %s, %d processors, %d MiB, cgroups %s, files on %s, rcu_expedited %s", m.Host, m.Kernel, m.Processors, m.MemoryBytes/mib, m.Cgroups, m.FileSystem, m.RCUExpedited),
		fmt.Sprintf("begun %s, took %s; load before: %s; pressure before: %s", r.Began.Format(time.RFC3339), r.Took.Round(time.Second), m.Load, m.Pressure),
		fmt.Sprintf("%d blocks in random order (seed %d), %d repetitions of at least %s a visit, two visits a place and block", r.Plan.Blocks, r.Plan.Seed, r.Plan.Reps, r.Plan.Loop),
	}
	if r.Plan.Blocks < MinBlocks {
		lines = append(lines, fmt.Sprintf("ONLY %d BLOCKS: the intervals are what they say from %d on", r.Plan.Blocks, MinBlocks))
	}
	return append(lines, r.Notes...)
}

// WriteMarkdown writes the report as Markdown.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# What nesting costs\n\n")
	for _, line := range r.Header() {
		b.WriteString("- " + line + "\n")
	}
	for _, t := range r.Tables() {
		if len(t.Rows) < 2 {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n%s\n\n", t.Heading, t.About)
		for i, row := range t.Rows {
			b.WriteString("|")
			for _, cell := range row {
				b.WriteString(" " + strings.ReplaceAll(strings.ReplaceAll(cell, "|", "\\|"), "\n", " ") + " |")
			}
			b.WriteString("\n")
			if i == 0 {
				b.WriteString("|" + strings.Repeat("---|", len(row)) + "\n")
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Amount is what an operation took, for people: throughput as a rate.
func Amount(unit string, ns float64) string {
	switch {
	case unit == "MiB" && ns > 0:
		return fmt.Sprintf("%.2f Gbit/s", gigabits(ns))
	case ns < 1000:
		return fmt.Sprintf("%.1f ns", ns)
	case ns < 1e6:
		return fmt.Sprintf("%.2f µs", ns/1000)
	case ns < 1e9:
		return fmt.Sprintf("%.2f ms", ns/1e6)
	}
	return fmt.Sprintf("%.2f s", ns/1e9)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func upperFirst(s string) string {
	if s == "" {
		return s
	}
	return strings.ToUpper(s[:1]) + s[1:]
}
