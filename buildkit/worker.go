package buildkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/sandbox"
)

const (
	socketPath = "/run/buildkit/buildkitd.sock"
	configPath = "/etc/buildkit/buildkitd.toml"
	// StateVolume and StatePath are the worker's state: a volume on a disk that outlives it.
	StateVolume = "buildkit"
	StatePath   = "/var/lib/buildkit"

	readyTimeout = 60 * time.Second
	closeTimeout = 30 * time.Second
)

// WorkersConfig is what Workers need to know.
type WorkersConfig struct {
	// Open starts a sandbox whose own container is root of its user namespace, for an engine.
	Open func(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error)
	// Image holds buildkitd and what it needs.
	Image  string
	Limits sandbox.Limits // of one worker
	// Mirror is the registry that images come from, host:port as a sandbox sees it, plain HTTP.
	Mirror string
	// Registry is the name under which builds push to and pull from that registry, host:port, and
	// RegistryAddress the address behind its host.
	Registry, RegistryAddress string
	// KeepBytes is how much state a worker keeps when it collects garbage.
	KeepBytes int64
	// IdleTimeout is how long a worker that nobody uses lives on; its state outlives it.
	IdleTimeout time.Duration
	Log         *slog.Logger
}

// Workers are the BuildKit workers of a machine, one a project. BuildKit is no boundary between its
// clients (moby/buildkit, PROJECT.md, "Security boundary"), so projects never share one.
type Workers struct {
	cfg WorkersConfig

	mu     sync.Mutex
	all    map[string]*worker
	closed bool
}

// NewWorkers returns workers that start on demand.
func NewWorkers(cfg WorkersConfig) *Workers {
	return &Workers{cfg: cfg, all: map[string]*worker{}}
}

// worker is one project's, from its first use to its end.
type worker struct {
	project string
	ready   chan struct{} // closed when sandbox, client or err is set
	err     error
	sb      sandbox.Sandbox
	client  *client.Client
	exited  chan struct{} // closed when buildkitd has ended
	stop    context.CancelFunc

	// guarded by Workers.mu
	leases int
	idle   *time.Timer
}

// Lease lets a job use its project's worker. It is the job's sandbox: what Exec and Usage say is the
// worker's.
type Lease struct {
	sandbox.Sandbox
	Client *client.Client
	give   func()
}

// Close gives the worker back. Safe to call twice.
func (l *Lease) Close(context.Context) error {
	l.give()
	return nil
}

// Unwrap returns the worker's sandbox.
func (l *Lease) Unwrap() sandbox.Sandbox { return l.Sandbox }

// Lease returns a lease of a project's worker, starting the worker if there is none or the last has died.
func (ws *Workers) Lease(ctx context.Context, project string) (*Lease, error) {
	for {
		w, fresh, err := ws.take(project)
		if err != nil {
			return nil, err
		}
		if fresh {
			go ws.start(context.WithoutCancel(ctx), w)
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			ws.give(w)
			return nil, context.Cause(ctx)
		}
		if w.err != nil {
			ws.give(w)
			return nil, fmt.Errorf("start the builder of project %q: %w", project, w.err)
		}
		select {
		case <-w.exited: // it died since; the next take starts another
			ws.drop(w)
			ws.give(w)
			continue
		default:
		}
		return &Lease{Sandbox: w.sb, Client: w.client, give: sync.OnceFunc(func() { ws.give(w) })}, nil
	}
}

// take counts a lease of the project's worker; fresh says that the caller must start it.
func (ws *Workers) take(project string) (w *worker, fresh bool, err error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return nil, false, errors.New("the builders are stopped: runnerd is shutting down")
	}
	w = ws.all[project]
	if w == nil {
		w = &worker{project: project, ready: make(chan struct{}), exited: make(chan struct{})}
		ws.all[project] = w
		fresh = true
	}
	w.leases++
	if w.idle != nil {
		w.idle.Stop()
	}
	return w, fresh, nil
}

// give ends a lease; a worker without leases ends when it has been idle for long enough.
func (ws *Workers) give(w *worker) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.leases--
	if w.leases > 0 || ws.closed || ws.all[w.project] != w {
		return
	}
	w.idle = time.AfterFunc(ws.cfg.IdleTimeout, func() {
		ws.mu.Lock()
		unused := w.leases == 0 && ws.all[w.project] == w
		if unused {
			delete(ws.all, w.project)
		}
		ws.mu.Unlock()
		if unused {
			ws.end(w)
		}
	})
}

// drop forgets a worker that has died, and removes what is left of it.
func (ws *Workers) drop(w *worker) {
	ws.mu.Lock()
	current := ws.all[w.project] == w
	if current {
		delete(ws.all, w.project)
	}
	ws.mu.Unlock()
	if current {
		ws.end(w)
	}
}

// end closes a worker's sandbox.
func (ws *Workers) end(w *worker) {
	<-w.ready
	if w.sb == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	w.stop()
	if err := errors.Join(w.client.Close(), w.sb.Close(ctx)); err != nil {
		ws.cfg.Log.Error("close a builder", "project", w.project, "error", err)
	}
}

// start starts a worker; it is ready when it has answered its first request.
func (ws *Workers) start(ctx context.Context, w *worker) {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("buildkitd does not answer in time"))
	defer cancel()
	w.err = ws.launch(ctx, w)
	if w.err != nil {
		ws.mu.Lock()
		if ws.all[w.project] == w {
			delete(ws.all, w.project) // the next lease tries again
		}
		ws.mu.Unlock()
	}
	close(w.ready)
}

func (ws *Workers) launch(ctx context.Context, w *worker) (err error) {
	id := workerID(w.project)
	host, _, _ := net.SplitHostPort(ws.cfg.Registry)
	sb, err := ws.cfg.Open(ctx, sandbox.Spec{
		ID: id, State: id, Image: ws.cfg.Image, Limits: ws.cfg.Limits,
		Volumes: map[string]string{StateVolume: StatePath},
		Hosts:   map[string]string{host: ws.cfg.RegistryAddress},
	})
	if err != nil {
		return err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			stop()
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
	if err := ws.configure(ctx, sb); err != nil {
		return err
	}
	socket, err := listener.Listen(ctx, "unix", socketPath)
	if err != nil {
		return err
	}
	log := sandbox.NewTail(4096)
	go func() {
		defer close(w.exited)
		defer socket.Close()
		exit, err := sb.Exec(life, sandbox.Process{
			Args:  sandbox.EngineArgs("buildkitd", "--config", configPath, "--addr", "fd://"),
			Files: []*os.File{socket}, Stdout: log, Stderr: log,
		})
		if life.Err() == nil {
			ws.cfg.Log.Warn("a builder ended", "project", w.project, "exit", exit, "error", err, "log", log.String())
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
	w.sb, w.client, w.stop = sb, c, stop
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
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	if len(workers) != 1 {
		return fmt.Errorf("buildkitd has %d workers, not one", len(workers))
	}
	if s := workers[0].Labels["org.mobyproject.buildkit.worker.snapshotter"]; s != "overlayfs" {
		return fmt.Errorf("buildkitd chose the snapshotter %q: its state must lie on a real file system", s)
	}
	return nil
}

// configure writes buildkitd's configuration into the sandbox.
func (ws *Workers) configure(ctx context.Context, sb sandbox.Sandbox) error {
	// RUN steps share the sandbox's network, which is the build's own. What is not named is denied:
	// entitlements, and frontends other than the built-in ones.
	text := fmt.Sprintf(`root = %q
[history]
  maxEntries = 100
[frontend."gateway.v0"]
  enabled = false
[worker.containerd]
  enabled = false
[worker.oci]
  enabled = true
  snapshotter = "overlayfs"
  networkMode = "host"
  gc = true
  reservedSpace = "0"
  maxUsedSpace = "%d"
`, StatePath, ws.cfg.KeepBytes)
	if ws.cfg.Mirror != "" {
		text += fmt.Sprintf("[registry.\"docker.io\"]\n  mirrors = [%q]\n[registry.%q]\n  http = true\n", ws.cfg.Mirror, ws.cfg.Mirror)
	}
	if ws.cfg.Registry != "" {
		text += fmt.Sprintf("[registry.%q]\n  http = true\n", ws.cfg.Registry)
	}
	log := sandbox.NewTail(4096)
	exit, err := sb.Exec(ctx, sandbox.Process{
		Args:  []string{"/bin/sh", "-c", `mkdir -p "${0%/*}" && cat >"$0"`, configPath},
		Stdin: strings.NewReader(text), Stderr: log,
	})
	if err == nil && !exit.Success() {
		err = fmt.Errorf("write %s: %s: %s", configPath, exit, log)
	}
	return err
}

// Close ends all workers, whoever uses them.
func (ws *Workers) Close() {
	ws.mu.Lock()
	ws.closed = true
	all := ws.all
	ws.all = map[string]*worker{}
	ws.mu.Unlock()
	var ends sync.WaitGroup
	for _, w := range all {
		ends.Go(func() { ws.end(w) })
	}
	ends.Wait()
}

// workerID names a project's worker and its state: projects are foreign text, so by their hash.
func workerID(project string) string {
	sum := sha256.Sum256([]byte(project))
	return "builder-" + hex.EncodeToString(sum[:8])
}
