package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/rig"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

const (
	// maxInstances bounds how many sandboxes are started at once; there are host ids for some more.
	maxInstances = 200
	measureUIDs  = 256
	// quietWindow is how long is waited before each visit, to see what others do.
	quietWindow = 100 * time.Millisecond
)

// measurement is one run of "nesting measure": an assembly without jobs, in a directory of its own.
type measurement struct {
	flags    measureFlags
	config   *config.Config
	log      *slog.Logger
	progress *measureProgress
}

// measureDir keeps reports; what a measurement needs while it runs is beside them.
func measureDir(c *config.Config) string { return filepath.Join(c.StateDir, "measure") }

// run measures. When it returns, nothing is left of what it started, whether it was cancelled or not.
func (m *measurement) run(ctx context.Context) (_ *measure.Report, err error) {
	defer m.progress.end()
	own := m.ownConfig()
	for _, dir := range []string{own.StateDir, own.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil { // searchable by the sandboxes' ids
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
	}
	lock, err := lockState(measureDir(m.config))
	if err != nil {
		return nil, err
	}
	defer lock.release()
	engines, err := checkEngines(ctx, own, m.log)
	if err != nil {
		return nil, err
	}
	report := &measure.Report{Machine: m.machine(), Began: time.Now(), Plan: m.planFacts(), Kinds: []measure.KindResult{}, Limits: []measure.Limit{}}
	report.Machine.Versions = map[string]string{"runnerd": versionInfo().Version}
	for _, e := range engines.Engines() {
		report.Machine.Versions[e.Name] = e.Version
	}
	a := &assembly{config: own, engines: engines, log: m.log}
	defer func() {
		cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*stopTimeout)
		defer cancel()
		err = errors.Join(err, a.close(cleanup), os.RemoveAll(own.StateDir), os.RemoveAll(own.RunDir))
		_ = os.Remove(m.config.RunDir) // unless a daemon's is in it
	}()
	m.progress.say("reading the images")
	for _, start := range []func(context.Context) error{a.startRegistry, a.startDrivers, a.startBuilders} {
		if err := start(ctx); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	if err := m.measureKinds(ctx, a, report); err != nil {
		return nil, err
	}
	if err := m.measureSeries(ctx, a, report); err != nil {
		return nil, err
	}
	report.Took = time.Since(report.Began)
	report.Judge(int64(m.config.Limits.Default.Memory))
	return report, nil
}

// ownConfig is the configuration with directories, addresses and host ids that no daemon has.
func (m *measurement) ownConfig() *config.Config {
	c := *m.config
	c.StateDir = filepath.Join(measureDir(m.config), "running")
	c.RunDir = filepath.Join(m.config.RunDir, "measure")
	c.Registry.Root, c.Registry.Address = filepath.Join(c.StateDir, "registry"), ":0"
	c.Network.Subnet = netip.MustParsePrefix(rig.Subnet)
	c.Network.DNS = []netip.Addr{netip.MustParseAddr(rig.ServerAddress)}
	c.Containerd.Address = "" // one of its own
	if need := uint32(measureUIDs * config.IDsEach); c.UIDRange.First > 2*need {
		c.UIDRange.First -= need
	} else {
		c.UIDRange.First += uint32(c.UIDRange.Count) * config.IDsEach
	}
	c.UIDRange.Count = measureUIDs
	return &c
}

func (m *measurement) planFacts() measure.PlanFacts {
	f := m.flags
	return measure.PlanFacts{Depth: f.depth, Blocks: f.blocks, Seed: f.seed, Loop: f.loop, Reps: f.reps, Pressure: f.pressure / 100, Instances: f.instances}
}

// measureKinds measures start and memory of each kind, one after the other.
func (m *measurement) measureKinds(ctx context.Context, a *assembly, report *measure.Report) error {
	for _, k := range a.measuredKinds() {
		if !slices.Contains(m.flags.kinds, k.Name) {
			continue
		}
		result, err := rig.Memory(ctx, a.driver, k, m.flags.instances, m.progress.say)
		if err != nil {
			return fmt.Errorf("measure the memory of %s: %w", k.Name, err)
		}
		report.Kinds = append(report.Kinds, result)
	}
	a.workers.Close() // those of kind buildkit outlive their leases
	report.Kinds = append(report.Kinds, measure.KindResult{Name: "wasm", Missing: "its memory is not measured here: make bench ROWS=wasm has what a run costs"})
	return nil
}

// measuredKinds are the kinds that this build can start. A further one is a line here, and its name in the flag's.
func (a *assembly) measuredKinds() []rig.Kind {
	open := func(n sandbox.Nesting) func(context.Context, string) (func(context.Context) error, error) {
		return func(ctx context.Context, id string) (func(context.Context) error, error) {
			sb, err := sandbox.Open(ctx, nil, n, sandbox.Spec{ID: id, Image: a.config.JobImage}, a.drivers, sandbox.DefaultPolicy())
			if err != nil {
				return nil, err
			}
			if docker, ok := sandbox.As[sandbox.DockerHost](sb); ok {
				if err := docker.EngineReady(ctx); err != nil {
					return nil, errors.Join(err, sb.Close(context.WithoutCancel(ctx)))
				}
			}
			return sb.Close, nil
		}
	}
	return []rig.Kind{
		{Name: "container", Open: open(sandbox.Nesting{sandbox.Container})},
		{Name: "dind", Open: open(sandbox.Nesting{sandbox.Container, sandbox.DinD})},
		{Name: "buildkit", Open: func(ctx context.Context, id string) (func(context.Context) error, error) {
			lease, err := a.workers.Lease(ctx, measuredScope(id))
			if err != nil {
				return nil, err
			}
			return lease.Close, nil
		}},
	}
}

// measuredScope is that of sandboxes that are measured.
func measuredScope(project string) scope.Scope {
	return scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Trusted}
}

// measureSeries measures all series, each with places that are there for it alone, but for those of different depth.
func (m *measurement) measureSeries(ctx context.Context, a *assembly, report *measure.Report) (err error) {
	fuse := hasFuse()
	if !fuse {
		report.Notes = append(report.Notes, "fuse-overlayfs is not compared with: apt-get install fuse-overlayfs")
	}
	r, err := rig.Open(ctx, rig.Config{
		Name: instanceName(a.config), Driver: a.driver, Drivers: a.drivers, Owner: func(id string) { a.scopes.set(id, measuredScope("measure")) }, Engine: a.engineConfig(),
		Probe: filepath.Join(a.engines.Dir(), "runnerd-probe"), Image: a.config.JobImage, GoImage: m.flags.goImage,
		Depth: m.flags.depth, Loop: m.flags.loop, Reps: m.flags.reps, Fuse: fuse, Only: m.flags.probes, Say: m.progress.say,
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close(ctx)) }()
	report.Places = r.Facts()
	limits, err := r.Limits(ctx)
	if err != nil {
		return fmt.Errorf("find the kernel's limits: %w", err)
	}
	report.Limits = kernelLimits(limits)
	plan := measure.Plan{
		Blocks: m.flags.blocks, Seed: m.flags.seed, MaxPressure: m.flags.pressure / 100,
		Pressure: measure.Pressure, Quiet: quietWindow, Progress: m.progress.visits,
	}
	for _, name := range measure.Causes() {
		if !slices.Contains(m.flags.series, name) {
			continue
		}
		if name == measure.CauseDaemons && m.flags.depth < 2 {
			report.Notes = append(report.Notes, "idle daemons are not measured: at depth 1 there is none")
			continue
		}
		outcome, err := m.measureOne(ctx, r, name, plan)
		if err != nil {
			return err
		}
		report.Series = append(report.Series, outcome)
	}
	return nil
}

func (m *measurement) measureOne(ctx context.Context, r *rig.Rig, name string, plan measure.Plan) (_ measure.Outcome, err error) {
	series, closing, err := r.Make(ctx, name)
	if err != nil {
		return measure.Outcome{}, err
	}
	defer func() { err = errors.Join(err, closing(context.WithoutCancel(ctx))) }()
	return measure.Run(ctx, series, plan)
}

// machine says what is measured.
func (m *measurement) machine() measure.Machine {
	host, _ := os.Hostname()
	machine := measure.Machine{Host: host, Processors: runtime.NumCPU(), Cgroups: "v1"}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		machine.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		machine.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	}
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		machine.Cgroups = "v2"
	}
	if unix.Statfs(existing(m.config.StateDir), &st) == nil {
		machine.FileSystem = fileSystem(st.Type)
	}
	machine.RCUExpedited = firstLine("/sys/kernel/rcu_expedited")
	machine.Load, machine.Pressure = firstLine("/proc/loadavg"), firstLine("/proc/pressure/cpu")
	return machine
}

// fileSystem names the file systems that state directories usually are on (statfs(2)).
func fileSystem(magic int64) string {
	names := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
		unix.TMPFS_MAGIC: "tmpfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	}
	if name, ok := names[magic]; ok {
		return name
	}
	return fmt.Sprintf("%#x", magic)
}

// firstLine is that of a small file of the kernel's; "?" if it cannot be read.
func firstLine(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return "?"
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return line
}

// measureProgress shows how far a measurement is: on a terminal in one line, else now and then.
type measureProgress struct {
	w     io.Writer
	tty   bool
	quiet bool

	mu    sync.Mutex
	began time.Time
	name  string    // of the series
	shown time.Time // last
	open  bool      // a line that is not ended
}

func newMeasureProgress(w io.Writer, quiet bool) *measureProgress {
	_, tty := terminal(w)
	return &measureProgress{w: w, tty: tty, quiet: quiet}
}

// say shows what is being made.
func (p *measureProgress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.line(fmt.Sprintf(format, args...), true)
}

// Progress that is no terminal's comes every so often.
const progressEvery = 30 * time.Second

// visits shows how many visits are done, and when the series will be.
func (p *measureProgress) visits(series string, done, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.name != series {
		p.name, p.began = series, time.Now()
	}
	if !p.tty && done < all && time.Since(p.shown) < progressEvery {
		return
	}
	p.shown = time.Now()
	took := time.Since(p.began)
	left := took / time.Duration(done) * time.Duration(all-done)
	p.line(fmt.Sprintf("%s: visit %d of %d, %s left", series, done, all, left.Round(time.Second)), done == all)
}

func (p *measureProgress) line(text string, ends bool) {
	if p.quiet {
		return
	}
	if !p.tty {
		_, _ = fmt.Fprintln(p.w, text)
		return
	}
	_, _ = fmt.Fprintf(p.w, "\r\x1b[K%s", text)
	if p.open = !ends; ends {
		_, _ = fmt.Fprintln(p.w)
	}
}

func (p *measureProgress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open {
		_, _ = fmt.Fprintln(p.w)
	}
}
