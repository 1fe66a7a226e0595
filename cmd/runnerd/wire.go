package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/runner/metrics"
	"github.com/runnerd/runnerd/runner/plugin"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/dind"
	"github.com/runnerd/runnerd/sandbox/engine"
	"github.com/runnerd/runnerd/sandbox/wasm"
	"github.com/runnerd/runnerd/scope"
)

// registryName is how sandboxes and builds name runnerd's registry. Its top-level domain is reserved for
// private use.
const registryName = "registry.runnerd.internal"

// assembly is a daemon on its way: what was started, to be closed in the reverse order.
type assembly struct {
	config  *config.Config
	engines engine.Set
	log     *slog.Logger
	undo    []func(ctx context.Context) error

	port     int // of the registry
	registry *registry.Registry
	driver   *container.Driver
	scopes   scopes
	copies   copies
	drivers  map[sandbox.Kind]sandbox.Driver
	wasm     *wasm.Driver
	modules  *wasm.Store
	workers  *buildkit.Workers
	pool     *sandbox.Pool
	sessions *api.Attachments
	spaces   *api.Workspaces
	agents   *api.Agents
	outputs  *api.Outputs
	logs     *runner.LogStore
	admit    func(ctx context.Context, r runner.Request) error // nil: nobody is asked
	filter   *plugin.Filter                                    // of logs; nil: there is none
	disk     *budget.Budget
	cache    *cache.Store
	queue    *queue.Queue
	ledger   *ledger.Ledger
	share    *sharing
	gitlab   *gitlab.Manager
	runner   *runner.Runner
	server   *api.Server

	metrics   *metrics.Metrics
	contacts  *gitlab.Contacts
	enrolment *gitlab.Enrolment
}

// assemble starts everything behind the socket. On failure nothing is left running.
func assemble(ctx context.Context, c *config.Config, engines engine.Set, log *slog.Logger) (_ *daemon, err error) {
	a := &assembly{config: c, engines: engines, log: log, metrics: metrics.New(versionInfo().Version)}
	defer func() {
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
			defer cancel()
			err = errors.Join(err, a.close(cleanup))
		}
	}()
	for _, start := range []func(context.Context) error{a.startRegistry, a.startDrivers, a.startBuilders, a.startLedger, a.startCache, a.startQueue, a.startRunner, a.startDisk, a.startPool, a.startEnrolment, a.startGitLab, a.startMetrics, a.startAPI} {
		if err := start(ctx); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
	}
	return &daemon{
		Serve: a.server.Serve,
		Run:   a.run,
		Drain: a.server.Drain,
		Abort: a.abort,
		Close: a.close,
	}, nil
}

func (a *assembly) later(undo func(ctx context.Context) error) { a.undo = append(a.undo, undo) }

func (a *assembly) close(ctx context.Context) error {
	var errs []error
	for i := len(a.undo) - 1; i >= 0; i-- {
		errs = append(errs, a.undo[i](ctx))
	}
	a.undo = nil
	return errors.Join(errs...)
}

// startRegistry opens the registry, on the loopback for this machine and on the gateway for sandboxes.
func (a *assembly) startRegistry(ctx context.Context) error {
	c := a.config
	host, port, err := net.SplitHostPort(c.Registry.Address)
	if err != nil {
		return fmt.Errorf("registry.address: %w", err)
	}
	hosts := []string{host}
	if host == "" {
		hosts = []string{"127.0.0.1", a.gateway()}
	}
	// The gateway's address may come later than the socket.
	listen := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_FREEBIND, 1)
		}), err)
	}}
	var listeners []net.Listener
	for _, host := range hosts {
		l, err := listen.Listen(ctx, "tcp", net.JoinHostPort(host, port))
		if err != nil {
			return fmt.Errorf("open the registry: %w: stop who has the port or set registry.address", err)
		}
		a.port = l.Addr().(*net.TCPAddr).Port
		port = strconv.Itoa(a.port)
		a.later(func(context.Context) error { _ = l.Close(); return nil }) // if it is not served
		listeners = append(listeners, l)
	}
	upstreams, err := upstreams(c.Registry.Mirror)
	if err != nil {
		return err
	}
	if a.registry, err = registry.New(ctx, registry.Config{
		Root: c.Registry.Root, Log: a.log.With("component", "registry"), Who: a.scopes.who, Shared: c.Registry.Shared,
		Names: a.registryNames(), MirrorAt: []string{a.mirror()},
		Upstreams: upstreams, Refresh: time.Duration(c.Registry.Mirror.Refresh),
	}); err != nil {
		return err
	}
	a.later(func(context.Context) error { return a.registry.Close() })
	for _, dir := range c.Images.Preload {
		if err := a.registry.Preload(ctx, dir); err != nil {
			return err
		}
	}
	server := &http.Server{Handler: a.copies.counting(a.registry.Handler(), a.scopes.sandboxAt), ReadHeaderTimeout: 10 * time.Second}
	a.later(func(ctx context.Context) error {
		if err := server.Shutdown(ctx); err != nil {
			return server.Close()
		}
		return nil
	})
	for _, l := range listeners {
		go func() { _ = server.Serve(l) }()
	}
	return nil
}

// gateway is the machine as sandboxes see it.
func (a *assembly) gateway() string { return a.config.Network.Subnet.Masked().Addr().Next().String() }

// registryNames are the hosts in the names of images that mean our registry.
func (a *assembly) registryNames() []string {
	names := []string{registryName}
	for _, host := range []string{"127.0.0.1", "localhost", a.gateway()} {
		names = append(names, net.JoinHostPort(host, strconv.Itoa(a.port)))
	}
	return names
}

// upstreams are those that are configured, with their passwords.
func upstreams(m config.Mirror) ([]registry.Upstream, error) {
	var all []registry.Upstream
	for _, u := range m.Upstreams {
		password, err := readPassword(u.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("registry.mirror.upstreams: the password for %s: %w", u.Host, err)
		}
		all = append(all, registry.Upstream{Host: u.Host, URL: u.URL, Username: u.Username, Password: password})
	}
	return all, nil
}

// readPassword reads a file that holds a password; none holds none.
func readPassword(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	text, err := os.ReadFile(file)
	return strings.TrimSpace(string(text)), err
}

// upstreamURLs are where the configured registries answer, by host.
func upstreamURLs(m config.Mirror) map[string]string {
	urls := map[string]string{}
	for _, u := range m.Upstreams {
		urls[u.Host] = u.URL
	}
	return urls
}

// upstreamHosts are the registries whose images are asked for at our own.
func upstreamHosts(m config.Mirror) []string {
	hosts := []string{"docker.io"} // where preloaded images are, too
	for _, u := range m.Upstreams {
		if !slices.Contains(hosts, u.Host) {
			hosts = append(hosts, u.Host)
		}
	}
	return hosts
}

func (a *assembly) startDrivers(ctx context.Context) (err error) {
	c := a.config
	var dns []string
	for _, addr := range c.Network.DNS {
		dns = append(dns, addr.String())
	}
	a.driver, err = container.New(ctx, container.Config{
		Name: instanceName(c), StateDir: c.StateDir, RunDir: c.RunDir, EngineDir: a.engines.Dir(), Containerd: c.Containerd.Address,
		Mirror: net.JoinHostPort("127.0.0.1", strconv.Itoa(a.port)), MirrorNames: a.registryNames(),
		Public:    asking(scope.Scope{Forge: scope.Local, Trust: scope.Untrusted}), // of no project
		Upstreams: upstreamURLs(c.Registry.Mirror), Insecure: c.Builder.Insecure, Subnet: c.Network.Subnet, MTU: c.Network.MTU,
		Ports: []int{a.port}, DNS: dns, FirstUID: c.UIDRange.First, UIDRanges: c.UIDRange.Count,
		Defaults: c.Limits.Default.Limits(), Log: a.log.With("component", "container"),
	})
	if err != nil {
		return err
	}
	a.scopes.driver.Store(a.driver)
	a.later(a.driver.Close)
	a.startModules()
	a.drivers = driversOf(a.driver, dind.New(a.engineConfig()), a.wasm)
	return nil
}

// engineConfig is that of the engines in sandboxes.
func (a *assembly) engineConfig() dind.Config {
	return dind.Config{
		Image: a.config.SandboxImage, Lender: filepath.Join(a.engines.Dir(), "runnerd-lend"),
		MTU: a.driver.MTU(), Mirror: a.mirror(), MirrorOf: upstreamHosts(a.config.Registry.Mirror),
		Registries: []string{a.registryHost()},
		Log:        a.log.With("component", "dind"),
	}
}

// driversOf are the drivers of this build. With nil pointers they can be asked what they start where, and no more.
func driversOf(c *container.Driver, d *dind.Driver, w *wasm.Driver) map[sandbox.Kind]sandbox.Driver {
	return map[sandbox.Kind]sandbox.Driver{sandbox.Container: c, sandbox.DinD: d, sandbox.WASM: w}
}

// mirror is the registry as sandboxes reach it, registryHost as they name it.
func (a *assembly) mirror() string { return net.JoinHostPort(a.gateway(), strconv.Itoa(a.port)) }

func (a *assembly) registryHost() string { return net.JoinHostPort(registryName, strconv.Itoa(a.port)) }

func (a *assembly) startBuilders(context.Context) error {
	b := a.config.Builder
	a.workers = buildkit.NewWorkers(buildkit.WorkersConfig{
		Open:   a.driver.StartEngine,
		Owner:  a.scopes.set, // of what the registry gives to it
		Image:  b.Image,
		Cloner: filepath.Join(a.engines.Dir(), "runnerd-clone"),
		Limits: sandbox.Limits{CPU: sandbox.MilliCPU(b.CPU), Memory: int64(b.Memory), PIDs: a.config.Limits.Max.PIDs, Disk: int64(b.Disk), Inodes: a.config.Limits.Max.Inodes},
		Mirror: a.mirror(), MirrorOf: upstreamHosts(a.config.Registry.Mirror), Registry: a.registryHost(), RegistryAddress: a.gateway(),
		Insecure: b.Insecure, KeepBytes: int64(b.Disk) / 5 * 4, IdleTimeout: time.Duration(b.Idle), Log: a.log.With("component", "buildkit"),
		Disks: a.driver, Dir: filepath.Join(a.config.StateDir, "builders"),
	})
	a.later(func(context.Context) error { a.workers.Close(); return nil })
	return nil
}

// tidyEvery is how often what has expired in the CI cache is removed.
const tidyEvery = time.Hour

func (a *assembly) startCache(ctx context.Context) (err error) {
	c := a.config.Cache
	log := a.log.With("component", "cache")
	a.cache, err = cache.Open(ctx, cache.Config{
		URL: c.URL, Dir: filepath.Join(a.config.StateDir, "cache"), MaxEntry: int64(c.MaxEntry), Keep: time.Duration(c.Keep), Log: log,
		Room: func() error { return checkRoom(a.config.StateDir) },
	})
	if err != nil {
		return err
	}
	tidying, stop := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	a.later(func(context.Context) error {
		stop()
		<-done
		return a.cache.Close()
	})
	go func() {
		defer close(done)
		for tick := time.Tick(tidyEvery); ; {
			if _, err := a.cache.Tidy(tidying); err != nil && tidying.Err() == nil {
				log.Error("the cache was not tidied", "error", err)
			}
			select {
			case <-tick:
			case <-tidying.Done():
				return
			}
		}
	}()
	return nil
}

func (a *assembly) startLedger(ctx context.Context) (err error) {
	a.ledger, err = ledger.Open(ctx, ledger.Config{Dir: filepath.Join(a.config.StateDir, "ledger"), Takes: taken, Log: a.log.With("component", "ledger")})
	if err != nil {
		return err
	}
	a.later(func(context.Context) error { return a.ledger.Close() })
	return nil
}

func (a *assembly) startQueue(ctx context.Context) (err error) {
	c := a.config
	if a.logs, err = runner.NewLogStore(filepath.Join(c.StateDir, "logs"), int64(c.Logs.MaxBytes)); err != nil {
		return err
	}
	if a.spaces, err = api.NewWorkspaces(filepath.Join(c.StateDir, "workspaces"), 0, 0); err != nil {
		return err
	}
	if a.outputs, err = api.NewOutputs(filepath.Join(c.StateDir, "outputs"), int64(c.Outputs.MaxBytes), time.Duration(c.Outputs.Keep)); err != nil {
		return err
	}
	if a.share, err = newSharing(c.Builder.Share, a.ledger, a.workers, a.spaces, a.insecure, a.log.With("component", "share")); err != nil {
		return err
	}
	a.later(a.share.close)
	a.sessions, a.agents = api.NewAttachments(), api.NewAgents()
	a.queue, err = queue.Open(ctx, queue.Config{
		Path: filepath.Join(c.StateDir, "queue", "jobs.db"), Logs: a.logs, Resolve: a.resolve, Log: a.log.With("component", "queue"),
		KeepJobs: c.Logs.KeepJobs, KeepFor: time.Duration(c.Logs.Keep),
	})
	if err != nil {
		return err
	}
	a.later(func(context.Context) error { return a.queue.Close() })
	return nil
}

// resolve makes a request ready to run.
func (a *assembly) resolve(ctx context.Context, r runner.Request) (runner.Job, error) {
	job := runner.Job{Request: r}
	switch r.Kind {
	case api.KindScript:
		step, err := newScriptStep(ctx, r, a.sessions)
		if err != nil {
			return job, err
		}
		kept, err := newKeptStep(r, step, a.cache, a.config.Cache, usesAndCopies{a.ledger, &a.copies})
		if err != nil {
			return job, err
		}
		job.Steps = []runner.Step{kept}
		c, err := api.ImageCredentials(r, queue.SubmittedSecrets(ctx))
		if err != nil {
			return job, err
		}
		job.Pull = sandbox.Pull{
			Policy: r.Pull, Asking: asking(r.Scope),
			Username: c.Username, Password: c.Password,
		}
	case api.KindBuild:
		dir, err := a.spaces.Path(r.Group)
		if err != nil {
			return job, err
		}
		step, err := newBuildStep(ctx, r, a.agents, a.outputs)
		if err != nil {
			return job, err
		}
		step.build.Dir, step.build.Insecure, step.ledger, step.share, step.hold = dir, a.insecure, a.ledger, a.share, a.spaces.Hold
		job.Steps = []runner.Step{step}
	default:
		return job, fmt.Errorf("a job of the kind %q is not known to this runnerd", r.Kind)
	}
	return job, nil
}

// insecure tells which registries are spoken to over plain HTTP: our own, and those that are configured.
func (a *assembly) insecure(host string) bool {
	return host == a.registryHost() || host == a.mirror() || slices.Contains(a.config.Builder.Insecure, host)
}

func (a *assembly) startRunner(context.Context) (err error) {
	c := a.config
	if err := a.startPlugins(); err != nil {
		return err
	}
	a.runner, err = runner.New(runner.Config{
		Open:      a.open,
		Room:      a.metrics.Room(a.makeRoom),
		Observe:   a.metrics.Observe,
		Policy:    c.Policy.Sandbox(),
		Admit:     a.admit,
		Admission: runner.NewAdmission(runner.Capacity{CPU: sandbox.MilliCPU(c.Capacity.CPU), Memory: int64(c.Capacity.Memory), Jobs: c.Capacity.Jobs}),
		Drain:     time.Duration(c.Drain), DefaultTimeout: time.Duration(c.Timeout.Default), MaxTimeout: time.Duration(c.Timeout.Max),
		Log: a.log.With("component", "runner"),
	})
	return err
}

// makeRoom waits until the disk has room for a job. Sandboxes that are ready for jobs that nobody has asked for yet
// take none of it then.
func (a *assembly) makeRoom(ctx context.Context, waiting func(reason string)) error {
	if a.disk.CheckRoom() != nil {
		a.pool.Forget()
	}
	return a.disk.MakeRoom(ctx, waiting)
}

// startDisk begins to account what takes up the disk.
func (a *assembly) startDisk(context.Context) error {
	a.disk = budget.New(budget.Config{
		Dir: a.config.StateDir, Stores: a.stores(), Limits: a.config.Disk.Limits(),
		Idle: func() bool { return a.runner.Admission.Held().Jobs == 0 },
		Log:  a.log.With("component", "disk"),
	})
	a.later(func(context.Context) error { a.disk.Close(); return nil })
	return nil
}

// open makes a job's sandbox: for a build, that is a lease of its project's worker.
func (a *assembly) open(ctx context.Context, j runner.Job) (sandbox.Sandbox, error) {
	if j.Kind == api.KindBuild {
		lease, err := a.workers.Lease(ctx, j.Scope)
		if err != nil {
			return nil, err // not a nil *Lease in an interface
		}
		return lease, nil
	}
	spec := sandbox.Spec{ID: j.ID, Image: j.Image, Pull: j.Pull, Env: j.Env, Limits: j.Limits, Volumes: j.Volumes, EngineArgs: j.EngineArgs, Toolbox: j.Toolbox, Module: j.Module}
	sb, err := a.scriptSandbox(ctx, j, spec)
	for _, other := range j.Else {
		if !errors.Is(err, sandbox.ErrImage) {
			break
		}
		var again error
		spec.Image, spec.Pull = other.Ref, other.Pull
		if sb, again = a.scriptSandbox(ctx, j, spec); again == nil || !errors.Is(again, sandbox.ErrImage) {
			err = again
		}
	}
	if j.Kind == job.Kind && errors.Is(err, sandbox.ErrImage) {
		err = job.ImageFailure(err)
	}
	if err == nil && slices.Contains(j.Nesting, sandbox.DinD) {
		sb, err = a.offerBuilder(ctx, sb, j)
	}
	if err != nil {
		return nil, err
	}
	return a.copies.count(sb, j.ID), nil
}

// scriptSandbox is one of the pool, or a new one. From here on it is known whose it is.
func (a *assembly) scriptSandbox(ctx context.Context, j runner.Job, spec sandbox.Spec) (sandbox.Sandbox, error) {
	served := a.pool.Serves(j.Nesting, spec)
	if served {
		digest, err := a.driver.Authorise(ctx, spec.Image, spec.Pull)
		if err != nil {
			return nil, err
		}
		spec.Digest = digest
	}
	if sb, ok := a.pool.Take(j.Nesting, spec); ok {
		return a.scopes.owned(sb, j.Scope), nil
	}
	a.scopes.set(j.ID, j.Scope)
	sb, err := a.start(ctx, j.Nesting, spec)
	if err != nil {
		a.scopes.forget(j.ID)
		return nil, err
	}
	if !served {
		a.pool.Learn(j.Nesting, spec)
	}
	return a.scopes.owned(sb, j.Scope), nil
}

// start starts a sandbox with what all of them have: a workspace and a place for repositories, which an engine in it
// sees too, and the registry by its name.
func (a *assembly) start(ctx context.Context, n sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
	volumes := map[string]string{"workspace": workspace, job.BuildsVolume: job.DefaultBuilds}
	maps.Copy(volumes, s.Volumes)
	s.Volumes = volumes
	s.Hosts = map[string]string{registryName: a.gateway()}
	if slices.Contains(n, sandbox.WASM) {
		s.Programs = a.wasm.Programs()
	}
	return sandbox.Open(ctx, nil, n, s, a.drivers, a.config.Policy.Sandbox())
}

// startPool begins to fill the configured pools.
func (a *assembly) startPool(context.Context) error {
	var kinds []sandbox.PoolKind
	for _, p := range a.config.Pool {
		spec := sandbox.Spec{Image: p.Image, Limits: a.config.Limits.Default.Limits()}
		if p.Git && p.Image != a.config.SandboxImage {
			spec.Toolbox = &sandbox.Toolbox{Image: a.config.SandboxImage}
		}
		kinds = append(kinds, sandbox.PoolKind{Nesting: p.Sandbox, Size: p.Size, Spec: spec})
	}
	start := func(ctx context.Context, n sandbox.Nesting, s sandbox.Spec) (sandbox.Sandbox, error) {
		if err := a.disk.CheckRoom(); err != nil { // what room there is, is for jobs
			return nil, err
		}
		return a.start(ctx, n, s)
	}
	a.pool = sandbox.NewPool(kinds, sandbox.Spare{Size: a.config.Spare.Size, Keep: time.Duration(a.config.Spare.Keep)}, start, a.log.With("component", "pool"))
	a.later(a.pool.Close)
	return nil
}

// instanceName tells daemons of one machine apart: what they make bears it.
func instanceName(c *config.Config) string {
	if c.StateDir == config.Default().StateDir {
		return "runnerd"
	}
	sum := sha256.Sum256([]byte(c.StateDir))
	return "runnerd-" + hex.EncodeToString(sum[:4])
}

func (a *assembly) startAPI(ctx context.Context) (err error) {
	info := versionInfo()
	info.Engines = engineInfos(a.engines)
	plans, stop := context.WithCancel(context.WithoutCancel(ctx))
	a.later(func(context.Context) error { stop(); return nil })
	a.server, err = api.New(api.Config{
		Backend: a.queue, Builder: builder{read: newWarmPlanner(plans, a.engines.Dir()).read, frontends: a.config.Builder.Frontends, registry: a.registryHost(), share: a.share.ref},
		Workspaces: a.spaces, Attachments: a.sessions, Agents: a.agents, Outputs: a.outputs, Disk: a.disk, Artifacts: artifacts{a.cache}, Prepare: prepare(a.config),
		Ledger:  ledgerOf{Ledger: a.ledger, lease: a.workers.Lease, share: a.share, stores: a.stores(), log: a.log.With("component", "ledger")},
		Runners: runners{a.enrolment, a.config.Policy.Sandbox().Allow}, Events: a.queue.Events, Metrics: a.metrics.Handler(),
		Version: info, Log: a.log.With("component", "api"),
	})
	if err != nil {
		return err
	}
	a.later(func(context.Context) error { a.server.Close(); return nil })
	return a.server.Recover(ctx)
}

// abort cancels all jobs.
func (a *assembly) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	jobs, err := a.queue.List(ctx, queue.Filter{Active: true})
	if err != nil {
		a.log.Error("the jobs were not cancelled", "error", err)
	}
	for _, j := range jobs {
		if j.State == runner.Queued { // it waits for the next start
			continue
		}
		if err := a.queue.Cancel(ctx, j.ID, "runnerd was stopped"); err != nil && !errors.Is(err, queue.ErrFinished) {
			a.log.Error("a job was not cancelled", "id", j.ID, "error", err)
		}
	}
}
