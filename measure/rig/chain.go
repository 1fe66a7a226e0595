package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

const (
	volume = "measure"
	shared = "/measure" // where all levels see the volume
	own    = "/probe"   // the directory of a level's own root file system that is measured
	// inSandbox is the probe as the sandbox and all levels in it see it: one file, and so one inode.
	inSandbox = shared + "/runnerd-probe"
)

// openChain makes the places of the series "depth": the machine, a sandbox, a container of the engine in it, one of an
// engine in a container of that engine, and so on.
func (r *Rig) openChain(ctx context.Context) error {
	r.cfg.Say("starting the sandbox")
	nesting := sandbox.Nesting{sandbox.Container, sandbox.DinD}
	policy, err := sandbox.PolicyFor(sandbox.Measurement)
	if err != nil {
		return err
	}
	r.cfg.Owner(sandboxID)
	sb, err := sandbox.Open(ctx, nil, nesting, sandbox.Spec{ID: sandboxID, Image: r.cfg.Image, Volumes: map[string]string{volume: shared}, Limits: roomy}, r.cfg.Drivers, policy)
	if err != nil {
		return err
	}
	r.later(sb.Close)
	r.full = sb
	var ok bool
	if r.sb, ok = sandbox.As[*container.Sandbox](sb); !ok {
		return fmt.Errorf("measure in %T: it is no container sandbox", sb)
	}
	r.disk = r.sb.VolumeDir(volume)
	r.probe = filepath.Join(r.disk, "runnerd-probe")
	if err := copyFile(r.cfg.Probe, r.probe); err != nil {
		return fmt.Errorf("give the sandbox the probe: %w", err)
	}
	if err := r.openMachine(ctx); err != nil {
		return err
	}
	if err := r.openFirst(ctx); err != nil {
		return fmt.Errorf("depth 1: %w", err)
	}
	return r.openEngines(ctx)
}

// roomy are limits that no probe comes near: the quota is a series of its own.
var roomy = sandbox.Limits{CPU: 64_000, Memory: 8 << 30, PIDs: 16384, Disk: 40 << 30, Inodes: 4_000_000}

// openMachine makes the place of depth 0: a process of the machine's own, with its files on the sandbox's disk.
func (r *Rig) openMachine(ctx context.Context) error {
	l, err := r.startLocal(ctx, "depth-0", 0, "serve")
	if err != nil {
		return err
	}
	r.later(func(context.Context) error { return l.Close() })
	neighbour, err := l.Ask(ctx, probe.Request{Do: probe.DoServe, Args: probe.Args{Server: "127.0.0.1"}})
	if err != nil {
		return err
	}
	r.host = place{name: "machine", agent: l.Agent, args: probe.Args{
		Dir: filepath.Join(r.disk, "depth-0"), Tools: filepath.Join(r.disk, "tools"),
		Server: r.serve, Resolver: net.JoinHostPort(ServerAddress, "53"), Neighbour: neighbour.Text,
	}}
	r.chain = []place{r.host}
	return nil
}

// openFirst makes the place of depth 1 and what all places use.
func (r *Rig) openFirst(ctx context.Context) error {
	if err := errors.Join(os.Mkdir(filepath.Join(r.disk, "tools"), 0o755), os.MkdirAll(filepath.Join(r.disk, "depth-0"), 0o755)); err != nil {
		return err
	}
	if _, err := r.host.agent.Ask(ctx, probe.Request{Do: probe.DoPrepare, Args: probe.Args{Tools: r.host.args.Tools}}); err != nil {
		return err
	}
	if r.cfg.GoImage != "" {
		if err := r.copyToolchain(ctx); err != nil {
			return fmt.Errorf("copy the Go toolchain of %s: %w", r.cfg.GoImage, err)
		}
	}
	agent, err := r.startInside(ctx, r.sb, "depth-1")
	if err != nil {
		return err
	}
	neighbour, err := agent.Ask(ctx, probe.Request{Do: probe.DoServe, Args: probe.Args{Server: "127.0.0.1"}})
	if err != nil {
		return err
	}
	args := inside(r.serve)
	args.Neighbour = neighbour.Text
	r.chain = append(r.chain, place{name: "depth 1", depth: 1, agent: agent, args: args, start: r.startSandbox})
	return nil
}

// inside are the arguments of places in the sandbox.
func inside(server string) probe.Args {
	return probe.Args{Dir: own, Tools: shared + "/tools", Lower: "/usr", Server: server}
}

// startInside starts an agent in the sandbox's own container. It ends with the sandbox.
func (r *Rig) startInside(ctx context.Context, sb *container.Sandbox, name string) (*probe.Agent, error) {
	socket := filepath.Join(shared, name)
	log := sandbox.NewTail(4096)
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_, _ = sb.Exec(running, sandbox.Process{Args: []string{inSandbox, "serve", socket}, Stdout: log, Stderr: log})
	}()
	r.later(func(context.Context) error { stop(); <-ended; return nil })
	agent, err := r.dial(ctx, socket, func() error {
		select {
		case <-ended:
			return fmt.Errorf("%w: %s", errEnded, log)
		default:
			return nil
		}
	})
	return agent, err
}

// dial connects to an agent by its socket in the volume. check tells whether it is still there.
func (r *Rig) dial(ctx context.Context, socket string, check func() error) (*probe.Agent, error) {
	agent, err := connect(ctx, func(ctx context.Context) (net.Conn, error) {
		if err := check(); err != nil {
			return nil, err
		}
		return r.sb.Dial(ctx, "unix", socket)
	})
	if err != nil {
		return nil, fmt.Errorf("probe %s: %w", filepath.Base(socket), err)
	}
	r.later(func(context.Context) error { return agent.Close() })
	return agent, nil
}

// copyToolchain brings a Go toolchain from its image onto the volume, for all places, the machine's included.
func (r *Rig) copyToolchain(ctx context.Context) (err error) {
	r.cfg.Say("copying the Go toolchain from %s", r.cfg.GoImage)
	from, err := r.cfg.Driver.Start(ctx, nil, sandbox.Spec{ID: sandboxID + "-go", Image: r.cfg.GoImage})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close(context.WithoutCancel(ctx))) }()
	reader, writer := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := run(ctx, from, sandbox.Process{
			Args:   []string{"tar", "-C", "/usr/local", "--exclude=go/test", "--exclude=go/src/cmd", "--exclude=go/doc", "--exclude=go/api", "-c", "go"},
			Stdout: writer, User: "0",
		})
		_ = writer.CloseWithError(err)
		packed <- err
	}()
	err = run(ctx, r.sb, sandbox.Process{Args: []string{"tar", "-C", shared, "--no-same-owner", "-x"}, Stdin: reader, User: "0"})
	_ = reader.Close()
	if err = errors.Join(err, <-packed); err != nil {
		return err
	}
	return os.Rename(filepath.Join(r.disk, "go"), filepath.Join(r.disk, "tools", "go"))
}

// run runs a process that is to succeed.
func run(ctx context.Context, on sandbox.Host, p sandbox.Process) error {
	log := sandbox.NewTail(2048)
	p.Stderr = log
	exit, err := on.Exec(ctx, p)
	if err == nil && !exit.Success() {
		err = fmt.Errorf("%s ended with %s: %s", p.Args[0], exit, log)
	}
	return err
}

// startSandbox starts a further sandbox, runs a program in it that ends at once, and removes it. The removal is not
// counted.
func (r *Rig) startSandbox(ctx context.Context) (_ time.Duration, err error) {
	began := time.Now()
	sb, err := r.cfg.Driver.Start(ctx, nil, sandbox.Spec{ID: sandboxID + "-start", Image: r.cfg.Image})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, sb.Close(context.WithoutCancel(ctx))) }()
	err = run(ctx, sb, sandbox.Process{Args: []string{"/bin/true"}})
	return time.Since(began), err
}

// depth is the series about whole levels: sandbox, engine, engine in a container, and so on.
func (r *Rig) depth() measure.Series {
	probes := r.probes(probe.CPU, probe.Kernel, probe.Files, probe.Disk, probe.Network, probe.Work)
	return measure.Series{
		Name: measure.CauseDepth, Title: "whole levels: a sandbox, and in it engines in containers of engines",
		Places: r.measuredAll(r.chain), Probes: append(probes, r.asked([]measure.Probe{startProbe})...),
	}
}
