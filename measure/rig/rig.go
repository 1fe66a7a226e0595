// Package rig makes the places that package measure compares: containers in containers with a Docker Engine each, and
// places that differ from the machine in one thing only, for each of the causes of a cost. All of them are real.
package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/dind"
)

// Config is what a Rig needs. All fields are needed but GoImage, Fuse and Only.
type Config struct {
	// Name is that of the driver, of whose sandboxes there are no others.
	Name   string
	Driver *container.Driver
	// Drivers are those of sandboxes, Driver among them.
	Drivers map[sandbox.Kind]sandbox.Driver
	// Owner is told that a sandbox is about to be opened, by its id: its engines ask the machine's registry for images.
	Owner func(id string)
	// Engine is how nested engines are configured, as the first one is.
	Engine dind.Config
	// Probe is the program runnerd-probe on the machine.
	Probe string
	// Image is what probes run in, GoImage has a Go toolchain in /usr/local/go; empty: nothing is built.
	Image, GoImage string
	// Depth is that of the deepest place: 1 to MaxDepth.
	Depth int
	// Loop is how long a repetition of a probe takes at the least, Reps how many there are in a visit.
	Loop time.Duration
	Reps int
	// Fuse measures fuse-overlayfs beside overlay, for comparison.
	Fuse bool
	// Only are the names of the probes that run; none: all.
	Only []string
	// Say is told what is being made.
	Say func(format string, args ...any)
}

// MaxDepth is how deep places can be.
const MaxDepth = 4

// sandboxID is the sandbox that has all but the first place of the series "depth".
const sandboxID = "measure"

// Rig is what all series have in common: a sandbox, whose disk all files of all places lie on, and a server in a network
// of its own, which all places speak with.
type Rig struct {
	cfg   Config
	undo  []func(context.Context) error
	dir   string // of sockets
	probe string // the program that the machine's own places run
	sb    *container.Sandbox
	full  sandbox.Sandbox // with its engine
	disk  string          // the volume, as the machine sees it
	host  place           // depth 0
	serve string          // address and port of the server
	chain []place         // by depth, the machine first
	facts []measure.PlaceFacts
}

// place is an agent and what its probes are to know.
type place struct {
	name  string
	depth int
	agent *probe.Agent
	args  probe.Args
	// start starts a container that ends at once, one level deeper than the place's own engine; nil: it has none.
	start func(ctx context.Context) (time.Duration, error)
}

// Open makes the sandbox, the levels in it and the server. On failure nothing is left.
func Open(ctx context.Context, cfg Config) (_ *Rig, err error) {
	if cfg.Depth < 1 || cfg.Depth > MaxDepth {
		return nil, fmt.Errorf("depth %d: 1 to %d can be measured", cfg.Depth, MaxDepth)
	}
	r := &Rig{cfg: cfg, probe: cfg.Probe, dir: filepath.Join("/run", cfg.Name+".probes")}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close(context.WithoutCancel(ctx)))
		}
	}()
	if err := errors.Join(os.RemoveAll(r.dir), os.MkdirAll(r.dir, 0o711)); err != nil { // a killed run's
		return nil, err
	}
	r.later(func(context.Context) error { return os.RemoveAll(r.dir) })
	if err := r.openServer(ctx); err != nil {
		return nil, fmt.Errorf("start the network's other side: %w", err)
	}
	if err := r.openChain(ctx); err != nil {
		return nil, err
	}
	return r, r.look(ctx)
}

func (r *Rig) later(undo func(context.Context) error) { r.undo = append(r.undo, undo) }

// closeTimeout bounds the removal of everything.
const closeTimeout = 2 * time.Minute

// Close removes all that the rig made, whatever became of ctx.
func (r *Rig) Close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return undoAll(ctx, &r.undo)
}

func undoAll(ctx context.Context, undo *[]func(context.Context) error) error {
	var errs []error
	for i := len(*undo) - 1; i >= 0; i-- {
		errs = append(errs, (*undo)[i](ctx))
	}
	*undo = nil
	return errors.Join(errs...)
}

// Facts are what the places of the series "depth" are.
func (r *Rig) Facts() []measure.PlaceFacts { return r.facts }

// measured is a place as package measure knows it.
func (r *Rig) measured(p place) measure.Place {
	return measure.Place{Name: p.name, Depth: p.depth, Run: func(ctx context.Context, name string) (float64, error) {
		if name == ContainerStart {
			if p.start == nil {
				return 0, measure.ErrNotHere
			}
			took, err := p.start(ctx)
			return float64(took), err
		}
		answer, err := p.agent.Ask(ctx, probe.Request{Probe: name, Loop: r.cfg.Loop, Reps: r.cfg.Reps, Args: p.args})
		if errors.Is(err, probe.ErrNotHere) {
			err = fmt.Errorf("%w: %s", measure.ErrNotHere, name)
		}
		return answer.Nanoseconds, err
	}}
}

func (r *Rig) measuredAll(places []place) (all []measure.Place) {
	for _, p := range places {
		all = append(all, r.measured(p))
	}
	return all
}

// ContainerStart is the one probe that no agent runs: the engine is timed from outside, over a connection that is there.
const ContainerStart = "container-start"

// startProbe is how ContainerStart is read.
var startProbe = measure.Probe{Name: ContainerStart, Class: "start", Unit: "op", Crowds: true}

// probes are those of some classes that are asked for.
func (r *Rig) probes(classes ...probe.Class) (all []measure.Probe) {
	for _, p := range probe.All() {
		for _, c := range classes {
			if p.Class == c {
				all = append(all, measure.Probe{Name: p.Name, Class: string(p.Class), Unit: p.Unit, Crowds: p.Crowds})
			}
		}
	}
	return r.asked(all)
}

func (r *Rig) asked(all []measure.Probe) (asked []measure.Probe) {
	for _, p := range all {
		wanted := len(r.cfg.Only) == 0
		for _, name := range r.cfg.Only {
			wanted = wanted || name == p.Name
		}
		if wanted && (p.Name != "go-build" || r.cfg.GoImage != "") {
			asked = append(asked, p)
		}
	}
	return asked
}

// copyFile copies a program to where the sandboxes see it.
func copyFile(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	_, err = io.Copy(dst, src)
	return err
}
