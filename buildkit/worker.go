package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

const (
	socketPath = "/run/buildkit/buildkitd.sock"
	configPath = "/etc/buildkit/buildkitd.toml"
	// StateVolume and StatePath are the worker's state: a volume on a disk that outlives it.
	StateVolume = "buildkit"
	StatePath   = "/var/lib/buildkit"

	readyTimeout = 60 * time.Second
	stopTimeout  = 5 * time.Second
	closeTimeout = 30 * time.Second
)

// worker is one scope's, from its first use to its end.
type worker struct {
	scope  scope.Scope
	cancel context.CancelCauseFunc // of its start
	ready  chan struct{}           // closed when what follows is set
	err    error
	sb     sandbox.Sandbox
	client *client.Client
	shares shares
	took   time.Duration // until buildkitd answered, from when its sandbox was there
	cloned bool          // it stands on the state of the scope above
	exited chan struct{} // closed when buildkitd has ended
	gone   chan struct{} // closed when nothing of it is left

	stopping atomic.Bool
	evicted  atomic.Bool         // it was ended for others' sake
	signals  chan syscall.Signal // to buildkitd
	kill     context.CancelFunc  // buildkitd

	born time.Time

	// guarded by Workers.mu
	leases int
	uses   int64     // leases so far
	used   time.Time // the last build's end
	idle   *time.Timer
}

func newWorker(of scope.Scope) *worker {
	return &worker{
		scope: of, born: time.Now(), used: time.Now(), ready: make(chan struct{}), signals: make(chan syscall.Signal, 1),
		exited: make(chan struct{}), gone: make(chan struct{}),
	}
}

// launch starts the worker; it is ready when it has answered its first request. On failure nothing is left.
//
// A trusted scope's worker has a state that outlives it. An untrusted one's is a clone of that, and is gone with
// the worker.
func (w *worker) launch(ctx context.Context, cfg WorkersConfig) error {
	above, ok := w.scope.Above()
	if !ok {
		cfg.addUses(w.scope, 0)
		return w.start(ctx, cfg, sandbox.Spec{State: workerID(w.scope)})
	}
	err := w.start(ctx, cfg, cloneSpec(cfg, above))
	if err == nil {
		w.cloned = true
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, sandbox.ErrNoState) {
		cfg.Log.Warn("a builder starts empty: the state of the trusted one cannot be cloned", "scope", w.scope, "error", err)
	}
	return w.start(ctx, cfg, sandbox.Spec{})
}

// start starts the worker in a sandbox with the state that spec gives it.
func (w *worker) start(ctx context.Context, cfg WorkersConfig, spec sandbox.Spec) (err error) {
	spec.ID, spec.Image, spec.Limits = workerID(w.scope), cfg.Image, cfg.Limits
	spec.Volumes = map[string]string{StateVolume: StatePath}
	if host, _, err := net.SplitHostPort(cfg.Registry); err == nil {
		spec.Hosts = map[string]string{host: cfg.RegistryAddress}
	}
	if cfg.Owner != nil {
		cfg.Owner(spec.ID, w.scope)
	}
	sb, err := cfg.Open(ctx, spec)
	if err != nil {
		return err
	}
	began := time.Now()
	life, kill := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			kill()
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
			defer cancel()
			err = errors.Join(err, sb.Close(cleanup))
		}
	}()
	dialer, ok := sandbox.As[sandbox.Dialer](sb)
	listener, ok2 := sandbox.As[sandbox.Listener](sb)
	if !ok || !ok2 {
		return fmt.Errorf("a builder cannot live in %T", sb)
	}
	if err := configure(ctx, sb, cfg); err != nil {
		return err
	}
	if spec.Base != nil {
		if err := completeClone(ctx, sb); err != nil {
			return err
		}
	}
	// The socket is open before buildkitd runs: the first request waits in it, nothing polls.
	socket, err := listener.Listen(ctx, "unix", socketPath)
	if err != nil {
		return err
	}
	log := sandbox.NewTail(4096)
	go func() {
		defer close(w.exited)
		defer socket.Close()
		exit, err := sb.Exec(life, sandbox.Process{
			Args:  sandbox.EngineArgs("buildkitd", "--config", configPath, "--addr", "fd://", rootful),
			Files: []*os.File{socket}, Stdout: log, Stderr: log, Signals: w.signals,
		})
		if life.Err() == nil && !w.stopping.Load() {
			cfg.Log.Warn("a builder died", "scope", w.scope, "exit", exit, "error", err, "log", log.String())
		}
	}()
	c, err := client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		return dialer.Dial(ctx, "unix", socketPath)
	}))
	if err != nil {
		return err
	}
	if err := awaitWorker(ctx, c, w.exited); err != nil {
		return errors.Join(fmt.Errorf("%w: %s", err, log), c.Close())
	}
	w.sb, w.client, w.kill, w.took = sb, c, kill, time.Since(began)
	w.shares.read = func() (sandbox.Usage, error) { return sb.Usage(context.Background()) }
	return nil
}

// awaitWorker waits for the first good answer, and refuses a worker that would be slow or unsafe.
func awaitWorker(ctx context.Context, c *client.Client, exited <-chan struct{}) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-exited:
			cancel(errors.New("buildkitd ended"))
		case <-ctx.Done():
		}
	}()
	workers, err := c.ListWorkers(ctx)
	if err != nil {
		select {
		case <-exited: // rather than that its socket has closed
			return errors.New("buildkitd ended")
		case <-time.After(time.Second):
		case <-ctx.Done():
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if len(workers) != 1 {
		return fmt.Errorf("buildkitd has %d workers, not one", len(workers))
	}
	labels := workers[0].Labels
	if s := labels["org.mobyproject.buildkit.worker.snapshotter"]; s != "overlayfs" {
		return fmt.Errorf("buildkitd chose the snapshotter %q: its state must lie on a real file system", s)
	}
	if s := labels["org.mobyproject.buildkit.worker.oci.process-mode"]; s != "sandbox" {
		return fmt.Errorf("buildkitd runs steps in process mode %q: they would see one another", s)
	}
	return nil
}

// end stops buildkitd, gently first, and closes the worker's sandbox.
func (w *worker) end(log *slog.Logger) {
	defer close(w.gone)
	<-w.ready
	if w.err != nil {
		return
	}
	w.stopping.Store(true)
	w.signals <- syscall.SIGTERM
	select {
	case <-w.exited:
	case <-time.After(stopTimeout):
	}
	w.kill()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := errors.Join(w.client.Close(), w.sb.Close(ctx)); err != nil {
		log.Error("close a builder", "scope", w.scope, "error", err)
	}
}

// rootful has buildkitd place its steps in the cgroups that it is told (config): in a user namespace it would leave that
// to runc, which puts them below its own (moby/buildkit, util/rootless/specconv). Nothing else depends on it here.
const rootful = "--oci-worker-rootless=false"

// config is buildkitd's (moby/buildkit, docs/buildkitd.toml.md). What is not named is denied: entitlements,
// devices, and frontends other than the built-in ones. networkMode "host" is the sandbox's network, which
// is the worker's own: a network namespace a step would cost its start and protect nothing from anyone.
// gc is the daemon's to do, when no clone stands on the state. Steps have their cgroups beside buildkitd's own, not
// below it, so that it is known what they have used.
func (cfg WorkersConfig) config() string {
	text := fmt.Sprintf(`root = %q
insecure-entitlements = []
[history]
  maxEntries = 100
[frontend."gateway.v0"]
  enabled = false
[cdi]
  disabled = true
[worker.containerd]
  enabled = false
[worker.oci]
  enabled = true
  snapshotter = "overlayfs"
  networkMode = "host"
  noProcessSandbox = false
  defaultCgroupParent = "/"
  gc = false
`, StatePath)
	if cfg.MaxParallelism > 0 {
		text += fmt.Sprintf("  max-parallelism = %d\n", cfg.MaxParallelism)
	}
	if cfg.Mirror != "" {
		of := cfg.MirrorOf
		if len(of) == 0 {
			of = []string{"docker.io"}
		}
		for _, host := range of {
			text += fmt.Sprintf("[registry.%q]\n  mirrors = [%q]\n", host, cfg.Mirror)
			if slices.Contains(cfg.Insecure, host) {
				text += "  http = true\n"
			}
		}
		text += fmt.Sprintf("[registry.%q]\n  http = true\n", cfg.Mirror)
	}
	if cfg.Registry != "" && cfg.Registry != cfg.Mirror {
		text += fmt.Sprintf("[registry.%q]\n  http = true\n", cfg.Registry)
	}
	for _, host := range cfg.Insecure {
		if cfg.Mirror != "" && slices.Contains(cfg.MirrorOf, host) { // it is above
			continue
		}
		text += fmt.Sprintf("[registry.%q]\n  http = true\n", host)
	}
	return text
}

// configure writes buildkitd's configuration into the sandbox.
func configure(ctx context.Context, sb sandbox.Sandbox, cfg WorkersConfig) error {
	log := sandbox.NewTail(4096)
	exit, err := sb.Exec(ctx, sandbox.Process{
		Args:  []string{"/bin/sh", "-c", `mkdir -p "${0%/*}" && cat >"$0"`, configPath},
		Stdin: strings.NewReader(cfg.config()), Stderr: log,
	})
	if err == nil && !exit.Success() {
		err = fmt.Errorf("write %s: %s: %s", configPath, exit, log)
	}
	return err
}

// workerID names a scope's worker and its state.
func workerID(of scope.Scope) string { return workerPrefix + of.ID() }

const workerPrefix = "builder-"
