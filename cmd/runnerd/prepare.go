package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/distribution/reference"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
)

// What a build takes of the machine's capacity by itself; its worker, which does the work, has limits of its own.
const (
	buildCPU    = 100
	buildMemory = 32 << 20
)

// prepare returns the function that fills in what a request does not say, and refuses what may not be.
func prepare(c *config.Config) func(*runner.Request) error {
	policy := c.Policy.Sandbox()
	return func(r *runner.Request) error {
		if err := policy.Allow(r.Nesting); err != nil {
			return err
		}
		if err := checkRoom(c.StateDir); err != nil {
			return err
		}
		if r.Kind == api.KindBuild {
			if r.Limits.CPU == 0 {
				r.Limits.CPU = buildCPU
			}
			if r.Limits.Memory == 0 {
				r.Limits.Memory = buildMemory
			}
		} else if r.Image == "" {
			r.Image = c.JobImage
			if slices.Contains(r.Nesting, sandbox.DinD) {
				r.Image = c.SandboxImage // it has the docker command
			}
		} else if _, err := reference.ParseNormalizedNamed(r.Image); err != nil {
			return fmt.Errorf("%w: image %q: %w", api.ErrInvalid, r.Image, err)
		}
		if r.Kind == api.KindScript && len(r.Payload) > 0 {
			if err := checkKept(r.Payload); err != nil {
				return err
			}
		}
		if err := checkModule(r); err != nil {
			return fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
		if r.Pull == "" {
			r.Pull = sandbox.PullPolicy(c.PullPolicy)
		}
		if r.Timeout == 0 {
			r.Timeout = runner.Duration(c.Timeout.Default)
		}
		if most := c.Timeout.Max; r.Timeout > runner.Duration(most) {
			return fmt.Errorf("%w: a timeout of %s is longer than timeout.max (%s)", sandbox.ErrDenied, time.Duration(r.Timeout), most)
		}
		return limit(&r.Limits, c)
	}
}

// checkModule refuses what is declared for modules where none is run, so that nobody takes it for a limit that holds.
func checkModule(r *runner.Request) error {
	m := r.Module
	declared := len(m.Dirs) > 0 || m.Clock || m.Memory != 0 || m.Fuel != 0 || m.Time != 0
	if declared && r.Nesting[len(r.Nesting)-1] != sandbox.WASM {
		return fmt.Errorf("module: %s runs no modules: use container/wasm", r.Nesting)
	}
	return m.Check()
}

func limit(l *sandbox.Limits, c *config.Config) error {
	d, most := c.Limits.Default.Limits(), c.Limits.Max.Limits()
	for _, x := range []struct {
		name, where       string
		value             *int64
		deflt, most, room int64
		text              func(int64) string
	}{
		{"cpu", "capacity.cpu", (*int64)(&l.CPU), int64(d.CPU), int64(most.CPU), int64(c.Capacity.CPU), func(n int64) string { return config.CPU(n).String() }},
		{"memory", "capacity.memory", &l.Memory, d.Memory, most.Memory, int64(c.Capacity.Memory), size},
		{"pids", "", &l.PIDs, d.PIDs, most.PIDs, 0, number},
		{"disk", "", &l.Disk, d.Disk, most.Disk, 0, size},
		{"inodes", "", &l.Inodes, d.Inodes, most.Inodes, 0, number},
	} {
		if *x.value == 0 {
			*x.value = x.deflt
		}
		bound, where := x.most, "limits.max."+x.name
		if bound == 0 || x.room > 0 && x.room < bound {
			bound, where = x.room, x.where
		}
		if bound > 0 && *x.value > bound {
			return fmt.Errorf("%w: %s of %s is more than %s (%s)", sandbox.ErrDenied, x.name, x.text(*x.value), where, x.text(bound))
		}
	}
	if l.Memory < minJobMemory {
		return fmt.Errorf("%w: memory of %s is too little: at least %s", api.ErrInvalid, size(l.Memory), size(minJobMemory))
	}
	return nil
}

// minJobMemory is the least that a process can be started in.
const minJobMemory = 4 << 20

func size(n int64) string   { return config.Size(n).String() }
func number(n int64) string { return fmt.Sprint(n) }
