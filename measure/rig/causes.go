package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
)

type (
	probes []probe.Class
	// adder adds a place to a series, and what is to be closed with it, if anything.
	adder func(place, *local)
)

// Make makes a series, by name. closing ends what was made for it alone.
func (r *Rig) Make(ctx context.Context, name string) (_ measure.Series, closing func(context.Context) error, err error) {
	switch name {
	case measure.CauseDepth:
		return r.depth(), func(context.Context) error { return nil }, nil
	case measure.CauseNamespaces:
		return r.namespaces(ctx)
	case measure.CauseQuota:
		return r.quota(ctx)
	case measure.CauseContended:
		return r.contended(ctx)
	case measure.CauseStorage:
		return r.storage(ctx)
	case measure.CauseNetwork:
		return r.network(ctx)
	case measure.CauseDaemons:
		return r.daemons(ctx)
	case measure.CauseSeccomp:
		return r.seccomp(ctx)
	}
	return measure.Series{}, nil, fmt.Errorf("unknown series %q", name)
}

// build makes a series of what make adds. On failure nothing of it is left.
func (r *Rig) build(ctx context.Context, name, title string, classes probes, make func(adder) error) (_ measure.Series, closing func(context.Context) error, err error) {
	var undo []func(context.Context) error
	closing = func(ctx context.Context) error { return undoAll(ctx, &undo) }
	var places []place
	err = make(func(p place, l *local) {
		places = append(places, p)
		if l != nil {
			undo = append(undo, func(context.Context) error { return l.Close() })
		}
	})
	if err != nil {
		return measure.Series{}, nil, errors.Join(fmt.Errorf("make the places of %s: %w", name, err), closing(context.WithoutCancel(ctx)))
	}
	return measure.Series{Name: name, Title: title, Places: r.measuredAll(places), Probes: r.probes(classes...)}, closing, nil
}

// onDisk are the arguments of a process of the machine's own with a directory of its own on the disk of all.
func (r *Rig) onDisk(name string) probe.Args {
	args := r.host.args
	args.Dir = filepath.Join(r.disk, name)
	return args
}

// namespaces is the series about namespaces alone.
func (r *Rig) namespaces(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	return r.build(ctx, measure.CauseNamespaces, "user, mount, pid, UTS, IPC and cgroup namespaces, and nothing else", probes{probe.CPU, probe.Kernel, probe.Files}, func(add adder) error {
		add(r.hostAs("machine"), nil)
		for level := 1; level <= r.cfg.Depth; level++ {
			name := fmt.Sprintf("namespaces-%d", level)
			l, err := r.startLocal(ctx, name, 0, "nest", fmt.Sprint(level), "serve")
			if err != nil {
				return err
			}
			add(place{name: fmt.Sprintf("%d sets", level), depth: level, agent: l.Agent, args: r.onDisk(name)}, l)
			pid, err := l.PID()
			if err != nil {
				return err
			}
			if ids, err := pidsOf(pid); err != nil || len(ids) != level+1 {
				return fmt.Errorf("%s is in %d pid namespaces, not in %d: %w", name, len(ids), level+1, err)
			}
		}
		return nil
	})
}

// seccomp is the series about filters: each system call runs through all of them.
func (r *Rig) seccomp(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	return r.build(ctx, measure.CauseSeccomp, "seccomp filters, each Docker's profile, and nothing else", probes{probe.Kernel, probe.Files}, func(add adder) error {
		for level := 0; level <= r.cfg.Depth; level++ {
			name := fmt.Sprintf("seccomp-%d", level)
			l, err := r.startLocal(ctx, name, 0, "serve", "-seccomp", fmt.Sprint(level))
			if err != nil {
				return err
			}
			add(place{name: fmt.Sprintf("%d filters", level), depth: level, agent: l.Agent, args: r.onDisk(name)}, l)
		}
		return nil
	})
}

// quota is the series about cgroups with a quota that nothing comes near.
func (r *Rig) quota(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	return r.groups(ctx, measure.CauseQuota, "cgroups with a quota each, one in the other, on an idle machine", probes{probe.CPU, probe.Kernel}, false)
}

// hogs is how many processes per processor want it, where processors are contended.
const hogs = 2

// contended is the same while others want all processors.
func (r *Rig) contended(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	return r.groups(ctx, measure.CauseContended, "the same beside a cgroup of the same weight that keeps all processors busy", probes{probe.Contended}, true)
}

func (r *Rig) groups(ctx context.Context, name, title string, classes probes, contended bool) (series measure.Series, closing func(context.Context) error, err error) {
	var groups []func(context.Context) error
	whole := sandbox.Limits{CPU: sandbox.MilliCPU(1000 * runtime.NumCPU()), Memory: roomy.Memory, PIDs: roomy.PIDs}
	enter := func(l *local, levels ...string) error {
		g, err := r.cfg.Driver.Group(whole, append([]string{name}, levels...)...)
		if err != nil {
			return err
		}
		groups = append(groups, g.Close)
		return g.Add(l.cmd.Process.Pid)
	}
	series, agents, err := r.build(ctx, name, title, classes, func(add adder) error {
		if contended {
			stop, err := r.startHogs(whole, name)
			groups = append(groups, stop)
			if err != nil {
				return err
			}
		}
		for level := 0; level <= r.cfg.Depth; level++ {
			at := fmt.Sprintf("%s-%d", name, level)
			l, err := r.startLocal(ctx, at, 0, "serve")
			if err != nil {
				return err
			}
			add(place{name: fmt.Sprintf("%d cgroups", level), depth: level, agent: l.Agent, args: r.onDisk(at)}, l)
			if level == 0 && !contended {
				continue // in the machine's own
			}
			// The outermost one weighs what those of sandboxes do.
			levels := []string{at}
			for i := range level {
				levels = append(levels, fmt.Sprint(i+1))
			}
			if err := enter(l, levels...); err != nil {
				return err
			}
		}
		return nil
	})
	closing = func(ctx context.Context) error {
		err := undoAll(ctx, &groups)
		if agents != nil {
			err = errors.Join(err, agents(ctx))
		}
		return err
	}
	if err != nil {
		return series, nil, errors.Join(err, closing(context.WithoutCancel(ctx)))
	}
	return series, closing, nil
}

// startHogs keeps all processors busy, in a cgroup that is a neighbour of the places'.
func (r *Rig) startHogs(l sandbox.Limits, name string) (stop func(context.Context) error, err error) {
	g, err := r.cfg.Driver.Group(l, name, "hogs")
	if err != nil {
		return func(context.Context) error { return nil }, err
	}
	undo := []func(context.Context) error{g.Close}
	stop = func(ctx context.Context) error { return undoAll(ctx, &undo) }
	for range hogs * runtime.NumCPU() {
		cmd := exec.Command(r.probe, "hog")
		release, err := startBound(cmd, 0)
		if err != nil {
			return stop, err
		}
		undo = append(undo, func(context.Context) error {
			defer release()
			_ = cmd.Process.Kill()
			_ = cmd.Wait() // it says that it was killed
			return nil
		})
		if err := g.Add(cmd.Process.Pid); err != nil {
			return stop, err
		}
	}
	return stop, nil
}

// storage is the series about file systems: the same directory of the same disk, raw and under overlays.
func (r *Rig) storage(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	kinds := []string{probe.Raw, probe.Overlay, probe.OverlayTwo}
	if r.cfg.Fuse {
		kinds = append(kinds, probe.FuseOverlay)
	}
	return r.build(ctx, measure.CauseStorage, "a directory, and overlays on it", probes{probe.Files, probe.Disk, probe.Work}, func(add adder) error {
		dir := filepath.Join(r.disk, measure.CauseStorage)
		lower := filepath.Join(dir, "lower")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if _, err := r.host.agent.Ask(ctx, probe.Request{Do: probe.DoLower, Args: probe.Args{Lower: lower}}); err != nil {
			return err
		}
		for i, kind := range kinds {
			l, err := r.startLocal(ctx, "storage-"+kind, unix.CLONE_NEWNS, "serve", "-storage", kind, "-dir", dir)
			if err != nil {
				return err
			}
			args := r.host.args
			args.Dir = filepath.Join(dir, probe.Raw)
			if kind != probe.Raw {
				merged := filepath.Join(dir, kind, "merged")
				args.Dir, args.Lower = filepath.Join(merged, "own"), merged
			}
			add(place{name: kind, depth: i, agent: l.Agent, args: args}, l)
		}
		// What engines in containers have: an overlay on a volume of the engine around them.
		if deepest := r.chain[len(r.chain)-1]; deepest.depth >= 3 {
			deepest.name = "nested data root"
			add(deepest, nil)
		}
		return nil
	})
}

// daemons is the series about engines that do nothing: the sandbox's own container while they are frozen, and while they
// are not.
func (r *Rig) daemons(ctx context.Context) (measure.Series, func(context.Context) error, error) {
	s, closing, err := r.build(ctx, measure.CauseDaemons, "the sandbox's own container, its idle engines frozen and not", probes{probe.CPU, probe.Kernel}, func(add adder) error {
		if len(r.chain) < 3 {
			return errors.New("there is no engine: measure to depth 2 at the least")
		}
		frozen, idle := r.chain[1], r.chain[1]
		frozen.name, frozen.depth = "engines frozen", 0
		idle.name = fmt.Sprintf("%d engines idle", r.cfg.Depth-1)
		add(frozen, nil)
		add(idle, nil)
		return nil
	})
	if err != nil {
		return s, nil, err
	}
	s.Places[0].Enter = func(ctx context.Context) (func() error, error) {
		resume, err := r.sb.Pause(ctx, "engine")
		return func() error { resume(); return nil }, err
	}
	return s, closing, nil
}
