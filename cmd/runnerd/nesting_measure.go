package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/measure/rig"
)

// measureFlags are what "nesting measure" was asked for.
type measureFlags struct {
	depth, blocks, reps int
	loop                time.Duration
	seed                uint64
	pressure            float64
	series, probes      []string
	kinds               []string
	instances           []int
	goImage             string
	compare, asJSON     bool
	markdown, quiet     bool
}

// measuredKinds are the kinds of sandboxes whose start and memory are measured.
func measuredKinds() []string { return []string{"container", "dind", "buildkit"} }

const measureHelp = `Measure what each level of nesting costs on this machine: processor, memory, files, network, engines. As root.

The machine itself is depth 0, a sandbox depth 1, a container of the Docker Engine in it depth 2, one of an engine in such
a container depth 3, and so on: real ones, all at once. A probe at each of them takes the times itself. The places are
visited in random order, block by block, and compared within blocks. Causes are told apart by series of their own:
namespaces, quotas (idle and contended), storage, networks, idle daemons, seccomp filters.

The measurement has sandboxes, addresses (198.18.0.0/15) and a disk of its own, and leaves nothing but its report, which is
kept in the state directory for each host and kernel. Leave the machine alone meanwhile: what was measured while others
had the processors is dropped. 30 blocks of everything take some hours; --blocks 3 shows within minutes that it works.`

func (a *app) nestingMeasureCommand() *cobra.Command {
	f := measureFlags{}
	cmd := &cobra.Command{
		Use:   "measure",
		Short: "Measure what each level of nesting costs on this machine",
		Long:  measureHelp,
		Example: `  runnerd nesting measure
  runnerd nesting measure --depth 2 --blocks 3 --series depth,network --kinds container
  runnerd nesting measure --compare --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(); err != nil {
				return usage(err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			err := a.measure(ctx, f)
			if ctx.Err() != nil && cmd.Context().Err() == nil {
				return &exitError{exitCancelled, errors.Join(errors.New("the measurement was cancelled"), notCancelled(err))}
			}
			return err
		},
	}
	flags := cmd.Flags()
	flags.IntVar(&f.depth, "depth", rig.MaxDepth, "deepest `LEVEL`, 1 to 4")
	flags.IntVar(&f.blocks, "blocks", measure.MinBlocks, "`BLOCKS` of visits; below 30 intervals are too narrow")
	flags.IntVar(&f.reps, "reps", 9, "`REPETITIONS` of a probe in a visit, of which the median counts")
	flags.DurationVar(&f.loop, "loop", 20*time.Millisecond, "least `TIME` of a repetition")
	flags.Uint64Var(&f.seed, "seed", 0, "`SEED` of the order (default: another one each time)")
	flags.Float64Var(&f.pressure, "max-pressure", 5, "`PERCENT` of time that processes may wait for a processor; more drops a pair")
	flags.StringSliceVar(&f.series, "series", measure.Causes(), "`SERIES` to measure")
	flags.StringSliceVar(&f.probes, "probes", nil, "`PROBES` to run (default: all)")
	flags.StringSliceVar(&f.kinds, "kinds", measuredKinds(), "`KINDS` of sandboxes whose start and memory are measured; empty: none")
	flags.IntSliceVar(&f.instances, "instances", []int{1, 10, 100}, "`COUNTS` of sandboxes whose memory is measured, as far as there is room")
	flags.StringVar(&f.goImage, "go-image", "golang:1.26", "`IMAGE` with a Go toolchain for the probe go-build; empty: none")
	flags.BoolVar(&f.compare, "compare", false, "compare with the last run on this host and kernel")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.BoolVar(&f.markdown, "markdown", false, "print Markdown")
	flags.BoolVarP(&f.quiet, "quiet", "q", false, "show no progress")
	for name, values := range map[string][]string{"series": measure.Causes(), "probes": probeNames(), "kinds": measuredKinds()} {
		_ = cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
	}
	return cmd
}

// notCancelled is err without what says that it was cancelled, which has been said.
func notCancelled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func probeNames() []string { return append(probe.Names(), rig.ContainerStart) }

// check refuses what cannot be measured, before anything starts.
func (f *measureFlags) check() error {
	var errs []error
	if f.asJSON && f.markdown {
		errs = append(errs, errors.New("give one of --json and --markdown"))
	}
	if f.depth < 1 || f.depth > rig.MaxDepth {
		errs = append(errs, fmt.Errorf("--depth %d: 1 to %d can be measured", f.depth, rig.MaxDepth))
	}
	for flag, n := range map[string]int{"blocks": f.blocks, "reps": f.reps} {
		if n < 1 || n > 10_000 {
			errs = append(errs, fmt.Errorf("--%s %d: give a number from 1 to 10000", flag, n))
		}
	}
	if f.loop < time.Microsecond || f.loop > time.Minute {
		errs = append(errs, fmt.Errorf("--loop %s: give a time from 1us to 1m", f.loop))
	}
	for flag, given := range map[string]struct{ values, known []string }{
		"series": {f.series, measure.Causes()}, "probes": {f.probes, probeNames()}, "kinds": {f.kinds, measuredKinds()},
	} {
		for _, v := range given.values {
			if !slices.Contains(given.known, v) {
				errs = append(errs, fmt.Errorf("--%s: unknown %q: use some of %s", flag, v, strings.Join(given.known, ", ")))
			}
		}
	}
	for _, n := range f.instances {
		if n < 1 || n > maxInstances {
			errs = append(errs, fmt.Errorf("--instances %d: give numbers from 1 to %d", n, maxInstances))
		}
	}
	slices.Sort(f.instances)
	if f.seed == 0 {
		f.seed = rand.Uint64N(1 << 32)
	}
	return errors.Join(errs...)
}

// measure measures, keeps the report and prints it.
func (a *app) measure(ctx context.Context, f measureFlags) error {
	if os.Geteuid() != 0 {
		return usage(errors.New("measuring must be started as root: use sudo"))
	}
	c, err := a.config()
	if err != nil {
		return err
	}
	store := measure.Store{Dir: measureDir(c)}
	m := &measurement{flags: f, config: c, log: newLog(a.stderr, c.Log), progress: newMeasureProgress(a.stderr, f.quiet)}
	last, err := store.Last(m.machine())
	if err != nil && f.compare {
		return err
	}
	report, err := m.run(ctx)
	if err != nil {
		return err
	}
	files, err := store.Keep(report)
	if err != nil {
		return err
	}
	var changes []measure.Change
	if f.compare && last != nil {
		changes = report.Compare(last)
	}
	switch {
	case f.asJSON:
		return writeJSON(a.stdout, struct {
			*measure.Report
			Changes []measure.Change `json:"changes,omitempty"`
			Files   []string         `json:"files"`
		}{report, changes, files})
	case f.markdown:
		return report.WriteMarkdown(a.stdout)
	}
	return writeMeasured(a.stdout, report, last, changes, files, f.compare)
}

// shownChanges is how many changes a table of them has.
const shownChanges = 20

func writeMeasured(w io.Writer, r *measure.Report, last *measure.Report, changes []measure.Change, files []string, compare bool) error {
	for _, line := range r.Header() {
		_, _ = fmt.Fprintln(w, line)
	}
	tables := r.Tables()
	switch {
	case compare && last != nil:
		tables = append(tables, measure.ChangeTable(last, changes, shownChanges))
	case compare:
		_, _ = fmt.Fprintln(w, "there is no earlier run on this host and kernel to compare with")
	}
	for _, t := range tables {
		if len(t.Rows) < 2 {
			continue
		}
		_, _ = fmt.Fprintf(w, "\n%s: %s\n\n", strings.ToUpper(t.Heading), t.About)
		t.Rows[0] = upper(t.Rows[0])
		if err := writeTable(w, t.Rows); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\nkept as %s\n", strings.Join(files, ", "))
	return err
}

func upper(row []string) []string {
	for i := range row {
		row[i] = strings.ToUpper(row[i])
	}
	return row
}

// hasFuse tells whether this machine can compare with fuse-overlayfs.
func hasFuse() bool {
	_, err := exec.LookPath(probe.FuseProgram)
	return err == nil
}
