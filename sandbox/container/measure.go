package container

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/runnerd/runnerd/sandbox"
)

// VolumeDir is where a volume of the sandbox lies on the machine. All that is in it is the sandbox's doing, links to
// anywhere included: it is for sandboxes whose processes one knows.
func (sb *Sandbox) VolumeDir(name string) string {
	return filepath.Join(sb.disk.dir, "volumes", name)
}

// Pause stops the processes of one of the sandbox's containers, and those of an engine's containers in it, until
// resume.
func (sb *Sandbox) Pause(ctx context.Context, member string) (resume func(), err error) {
	c := sb.cgroupOf(member)
	if err := c.pause(ctx); err != nil {
		c.resume()
		return nil, err
	}
	return c.resume, nil
}

// Processes are those in the driver's sandboxes, and those of the machine that serve them: containerd, unless it is not
// ours, and the shims.
func (d *Driver) Processes() (inside, machinery []int) {
	run := filepath.Join(d.cfg.RunDir, "containerd")
	machinery = append(findProcesses("containerd", filepath.Join(run, "containerd.toml")), findProcesses("containerd-shim-runc-v2", d.namespace())...)
	return cgroup{h: d.cgroups, path: "/" + d.cfg.Name}.pids(), machinery
}

// Group is a cgroup beside those of the driver's sandboxes, for processes of the machine's own.
type Group struct{ c cgroup }

// Group makes a cgroup below the driver's: names of levels, outermost first, each of which gets the limits.
func (d *Driver) Group(l sandbox.Limits, levels ...string) (*Group, error) {
	c := cgroup{h: d.cgroups, path: "/" + d.cfg.Name}
	for _, name := range levels {
		c.path += "/" + name
		if err := errors.Join(c.mkdirs(), c.limit(d.withDefaults(l))); err != nil {
			return nil, err
		}
	}
	return &Group{c}, nil
}

// Add moves a process into the cgroup.
func (g *Group) Add(pid int) error { return g.c.adopt(pid) }

// Close kills what is in the innermost cgroup and removes it. Its outer ones go with the driver.
func (g *Group) Close(ctx context.Context) error {
	return errors.Join(g.c.kill(ctx), g.c.remove(ctx))
}
