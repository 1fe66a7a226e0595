// Package daemon is the only place that knows every package: it puts runnerd together, starts the parts in
// order, and stops them in the reverse.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/dind"
	"github.com/runnerd/runnerd/sandbox/engine"
)

// RegistryHost is the name under which sandboxes know the daemon's registry. The top-level domain is
// reserved for private use.
const RegistryHost = "registry.runnerd.internal"

// stopTimeout bounds the stopping of everything but the jobs.
const stopTimeout = time.Minute

// Run runs the daemon until ctx ends and everything it started is gone. ready is called when it serves.
func Run(ctx context.Context, cfg *config.Config, version string, log *slog.Logger, ready func()) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("runnerd serve needs root, to make user namespaces, mounts and cgroups for others: run it with sudo or as a service")
	}
	var undo []func() error // run in reverse
	defer func() {
		for i := len(undo) - 1; i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()

	unlock, err := lockStateDir(cfg.StateDir)
	if err != nil {
		return err
	}
	undo = append(undo, unlock)
	engines, err := loadEngines(cfg)
	if err != nil {
		return err
	}
	socket, err := listenSocket(cfg)
	if err != nil {
		return err
	}
	undo = append(undo, func() error { return ignoreGone(os.Remove(cfg.Socket.Path)) })

	gateway := cfg.Network.Subnet.Masked().Addr().Next().String()
	port, stopRegistry, err := startRegistry(ctx, cfg, gateway, log)
	if err != nil {
		return err
	}
	undo = append(undo, stopRegistry)
	mirror := fmt.Sprintf("%s:%d", gateway, port)
	registryName := fmt.Sprintf("%s:%d", RegistryHost, port)

	drv, err := container.New(ctx, container.Config{
		Name: instanceName(cfg), StateDir: filepath.Join(cfg.StateDir, "sandboxes"), RunDir: cfg.RunDir, EngineDir: cfg.EnginesDir,
		Containerd: cfg.Containerd.Address, Mirror: fmt.Sprintf("127.0.0.1:%d", port),
		Subnet: cfg.Network.Subnet, MTU: cfg.Network.MTU, Ports: []int{port}, DNS: texts(cfg.Network.DNS),
		FirstUID: cfg.UIDRange.First, UIDRanges: cfg.UIDRange.Count,
		Defaults: cfg.Limits.Default.Limits(), Log: log,
	})
	if err != nil {
		return err
	}
	undo = append(undo, func() error { return within(stopTimeout, drv.Close) })
	drivers := map[sandbox.Kind]sandbox.Driver{
		sandbox.Container: drv,
		sandbox.DinD: dind.New(dind.Config{
			Image: cfg.SandboxImage, MTU: drv.MTU(), Mirror: mirror, Registries: []string{registryName}, Log: log,
		}),
	}
	workers := buildkit.NewWorkers(buildkit.WorkersConfig{
		Open:  func(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) { return drv.StartEngine(ctx, s) },
		Image: cfg.Builder.Image, Limits: sandbox.Limits{
			CPU: sandbox.MilliCPU(cfg.Builder.CPU), Memory: int64(cfg.Builder.Memory), PIDs: 32768,
			Disk: int64(cfg.Builder.Disk), Inodes: int64(cfg.Builder.Disk) >> 14,
		},
		Mirror: mirror, Registry: registryName, RegistryAddress: gateway,
		KeepBytes: int64(cfg.Builder.Disk) / 10 * 8, IdleTimeout: time.Duration(cfg.Builder.Idle), Log: log,
	})
	undo = append(undo, func() error { workers.Close(); return nil })

	logs, err := runner.NewLogStore(filepath.Join(cfg.StateDir, "logs"), int64(cfg.Logs.MaxBytes))
	if err != nil {
		return err
	}
	attachments := api.NewAttachments()
	steps := &resolver{attachments: attachments, insecure: registryName}
	jobs, err := queue.Open(ctx, queue.Config{
		Path: filepath.Join(cfg.StateDir, "queue.db"), Logs: logs, Resolve: steps.resolve, Log: log,
		KeepJobs: cfg.Logs.KeepJobs, KeepFor: time.Duration(cfg.Logs.Keep),
	})
	if err != nil {
		return err
	}
	undo = append(undo, jobs.Close)
	steps.cancel = jobs.Cancel
	for _, info := range jobs.Interrupted() {
		log.Warn("a job was interrupted when runnerd last ended; its sandbox was removed", "job", info.ID, "name", info.Name)
	}

	admission := runner.NewAdmission(runner.Capacity{
		CPU: sandbox.MilliCPU(cfg.Capacity.CPU), Memory: int64(cfg.Capacity.Memory), Jobs: cfg.Capacity.Jobs,
	})
	policy := cfg.Policy.Sandbox()
	open := func(ctx context.Context, n sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
		s.Volumes = map[string]string{"workspace": "/workspace"}
		s.Hosts = map[string]string{RegistryHost: gateway}
		return sandbox.Open(ctx, nil, n, s, drivers, policy)
	}
	pool := sandbox.NewPool(poolKinds(cfg), open, log)
	undo = append(undo, func() error { return within(stopTimeout, pool.Close) })
	run, err := runner.New(runner.Config{
		Open: func(ctx context.Context, j runner.Job) (sandbox.Sandbox, error) {
			if j.Kind == api.KindBuild {
				return workers.Lease(ctx, j.Project)
			}
			spec := sandbox.Spec{ID: j.ID, Image: j.Image, Env: j.Env, Limits: j.Limits}
			if sb, ok := pool.Take(j.Nesting, spec); ok {
				return sb, nil
			}
			return open(ctx, j.Nesting, spec)
		},
		Policy: policy, Admission: admission, Drain: time.Duration(cfg.Drain),
		DefaultTimeout: time.Duration(cfg.Timeout.Default), MaxTimeout: time.Duration(cfg.Timeout.Max), Log: log,
	})
	if err != nil {
		return err
	}
	workspaces, err := api.NewWorkspaces(filepath.Join(cfg.StateDir, "workspaces"), 0, 0)
	if err != nil {
		return err
	}
	server, err := api.New(api.Config{
		Backend: jobs, Builder: planner{cfg.Builder.Frontends, registryName}, Workspaces: workspaces, Attachments: attachments,
		Prepare: preparer{cfg, policy}.prepare,
		Version: api.VersionInfo{Version: version, Go: runtime.Version(), Engines: engines.Engines()}, Log: log,
	})
	if err != nil {
		return err
	}
	undo = append(undo, func() error { server.Close(); return nil })
	if err := server.Recover(ctx); err != nil {
		return err
	}
	return serve(ctx, server, socket, run, jobs, ready)
}

// serve answers clients and runs jobs. When ctx ends it takes no more jobs, lets those that run end within
// the time they have, and only then stops answering, so that clients see how their jobs ended.
func serve(ctx context.Context, server *api.Server, socket net.Listener, run *runner.Runner, jobs runner.Source, ready func()) error {
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	served := make(chan error, 1)
	go func() { served <- server.Serve(life, socket) }()
	draining := context.AfterFunc(ctx, server.Drain)
	defer draining()
	ready()
	err := run.Run(ctx, jobs)
	stop()
	return errors.Join(err, <-served)
}

// loadEngines finds the engines, and refuses those that are known to let jobs out.
func loadEngines(cfg *config.Config) (engine.Set, error) {
	set, err := engine.Load(cfg.EnginesDir)
	if err != nil {
		return set, err
	}
	findings := set.Advisories()
	if len(findings) == 0 || cfg.AllowVulnerableEngines {
		return set, nil
	}
	var errs []error
	for _, f := range findings {
		errs = append(errs, f)
	}
	return set, fmt.Errorf("refusing to start with engines that have known ways out of a sandbox (allow_vulnerable_engines overrides):\n%w", errors.Join(errs...))
}

// startRegistry starts the registry, filled with the images that are to be there from the start. It listens
// on the loopback for the machine's containerd, and on the gateway for sandboxes.
func startRegistry(ctx context.Context, cfg *config.Config, gateway string, log *slog.Logger) (port int, stop func() error, err error) {
	reg, err := registry.New(ctx, registry.Config{Root: cfg.Registry.Root, Log: log})
	if err != nil {
		return 0, nil, err
	}
	for _, dir := range cfg.Images.Preload {
		if err := reg.Preload(ctx, dir); err != nil {
			return 0, nil, errors.Join(err, reg.Close())
		}
	}
	host, portText, err := net.SplitHostPort(cfg.Registry.Address)
	if err != nil {
		return 0, nil, errors.Join(fmt.Errorf("registry.address: %w", err), reg.Close())
	}
	addresses := []string{"127.0.0.1", gateway}
	if host != "" {
		addresses = append(addresses, host)
	}
	server := &http.Server{Handler: reg.Handler(), ReadHeaderTimeout: time.Minute}
	for _, address := range addresses {
		l, err := listenFree(ctx, net.JoinHostPort(address, portText))
		if err != nil {
			return 0, nil, errors.Join(fmt.Errorf("registry: %w: give another port with registry.address", err), server.Close(), reg.Close())
		}
		port = l.Addr().(*net.TCPAddr).Port
		portText = fmt.Sprint(port) // with port 0, the same on all
		go func() { _ = server.Serve(l) }()
	}
	return port, func() error { return errors.Join(server.Close(), reg.Close()) }, nil
}

// poolKinds are the configured pools.
func poolKinds(cfg *config.Config) []sandbox.PoolKind {
	var kinds []sandbox.PoolKind
	for _, p := range cfg.Pool {
		kinds = append(kinds, sandbox.PoolKind{
			Nesting: p.Sandbox, Size: p.Size,
			Spec: sandbox.Spec{Image: p.Image, Limits: cfg.Limits.Default.Limits()},
		})
	}
	return kinds
}

// instanceName tells daemons on one machine apart: "runnerd" for the default state directory.
func instanceName(cfg *config.Config) string {
	if cfg.StateDir == config.Default().StateDir {
		return "runnerd"
	}
	return "runnerd-" + shortHash(cfg.StateDir)
}

func texts[T fmt.Stringer](values []T) []string {
	var all []string
	for _, v := range values {
		all = append(all, v.String())
	}
	return all
}

func within(timeout time.Duration, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	return do(ctx)
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// preparer fills in what a request leaves open, and refuses at once what can never run.
type preparer struct {
	cfg    *config.Config
	policy sandbox.Policy
}

func (p preparer) prepare(r *runner.Request) error {
	if r.Project == "" {
		r.Project = "default"
	}
	if r.Image == "" {
		r.Image = p.cfg.JobImage
		if len(r.Nesting) > 1 {
			r.Image = p.cfg.SandboxImage // it has the docker command
		}
	}
	defaults, most := p.cfg.Limits.Default.Limits(), p.cfg.Limits.Max.Limits()
	var errs []error
	settle := func(name string, value *int64, def, most int64) {
		if *value == 0 {
			*value = def
		}
		if most > 0 && *value > most {
			errs = append(errs, fmt.Errorf("%w: %s of %d is more than limits.max.%s, %d", sandbox.ErrDenied, name, *value, name, most))
		}
	}
	l := &r.Limits
	settle("cpu", (*int64)(&l.CPU), int64(defaults.CPU), int64(most.CPU))
	settle("memory", &l.Memory, defaults.Memory, most.Memory)
	settle("pids", &l.PIDs, defaults.PIDs, most.PIDs)
	settle("disk", &l.Disk, defaults.Disk, most.Disk)
	settle("inodes", &l.Inodes, defaults.Inodes, most.Inodes)
	return errors.Join(append(errs, p.policy.Allow(r.Nesting))...)
}
