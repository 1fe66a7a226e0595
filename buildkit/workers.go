package buildkit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// WorkersConfig is what Workers need to know.
type WorkersConfig struct {
	// Open starts a sandbox whose own container is root of its user namespace, for an engine.
	Open func(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error)
	// Owner is told whose a sandbox is before it is opened, by its id; may be nil.
	Owner func(id string, of scope.Scope)
	// Image holds buildkitd and what it needs.
	Image  string
	Limits sandbox.Limits // of one worker
	// Mirror is the registry that images come from, host:port as a sandbox sees it, plain HTTP.
	Mirror string
	// MirrorOf are the hosts whose images it has; none: docker.io.
	MirrorOf []string
	// Registry is the name under which builds push to and pull from that registry, host:port, and
	// RegistryAddress the address behind its host.
	Registry, RegistryAddress string
	// Insecure are further registries that speak plain HTTP, host:port.
	Insecure []string
	// Cloner is the program runnerd-clone on the machine.
	Cloner string
	// KeepBytes is how much a worker's disk may hold when a build starts. Above, what was not used for longest is
	// removed, down to 3/4 of it.
	KeepBytes int64
	// MaxParallelism is how many steps a worker runs at once; 0: as many as there are.
	MaxParallelism int
	// IdleTimeout is how long a worker that nobody uses lives on; its state outlives it.
	IdleTimeout time.Duration
	// CloneAge is how old an untrusted scope's worker becomes when its trusted scope goes on building; 0: an hour.
	CloneAge time.Duration
	// Disks are what the workers' states lie on, and Dir is where it is written whose they are.
	Disks Disks
	Dir   string
	Log   *slog.Logger
}

// Workers are the BuildKit workers of a machine, one a scope. BuildKit is no boundary between its
// clients (moby/buildkit, PROJECT.md, "Security boundary"), so scopes never share one.
type Workers struct {
	cfg WorkersConfig

	mu     sync.Mutex
	all    map[scope.Scope]*worker // by scope
	ending map[scope.Scope]*worker // by scope; the last one that is on its way out
	// By trusted scope: closed when what was being removed from its state is, and when it was last built in.
	removing map[scope.Scope]chan struct{}
	built    map[scope.Scope]time.Time
	closed   bool
}

// NewWorkers returns workers that start on demand.
func NewWorkers(cfg WorkersConfig) *Workers {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.CloneAge == 0 {
		cfg.CloneAge = time.Hour
	}
	return &Workers{
		cfg: cfg, all: map[scope.Scope]*worker{}, ending: map[scope.Scope]*worker{},
		removing: map[scope.Scope]chan struct{}{}, built: map[scope.Scope]time.Time{},
	}
}

// Lease lets a job use its scope's worker. It is the job's sandbox: what Exec says is the worker's, of what it uses the
// lease has its share.
type Lease struct {
	sandbox.Sandbox
	Client   *client.Client
	ws       *Workers
	w        *worker
	give     func()
	share    *share
	fresh    bool // the worker was started for it
	uploaded *atomic.Int64
}

// Close gives the worker back. Safe to call twice.
func (l *Lease) Close(context.Context) error {
	l.give()
	return nil
}

// diedWithin is how long it may take until a worker's end is seen, after its connections have ended.
const diedWithin = time.Second

// Died reports whether the worker has ended by itself, or for the sake of another scope.
func (l *Lease) Died() bool {
	if l.w.evicted.Load() {
		return true
	}
	select {
	case <-l.w.exited:
		return !l.w.stopping.Load()
	case <-time.After(diedWithin):
		return false
	}
}

// Renew exchanges a worker that has died for the scope's next one. It is for who uses the lease, and nobody else
// may use it meanwhile. When it fails the lease is what it was.
func (l *Lease) Renew(ctx context.Context) error {
	next, err := l.ws.Lease(ctx, l.w.scope)
	if err != nil {
		return err
	}
	l.give()
	next.w.shares.inherit(next.share, l.share.used) // nothing is added to it any more
	next.uploaded = l.uploaded
	*l = *next
	return nil
}

// Dial connects to the worker's buildkitd. Who is given the connection is not held back by anything: see package
// proxy.
func (l *Lease) Dial(ctx context.Context) (net.Conn, error) {
	dialer, ok := sandbox.As[sandbox.Dialer](l.Sandbox)
	if !ok {
		return nil, fmt.Errorf("a builder cannot be reached in %T", l.Sandbox)
	}
	return dialer.Dial(ctx, "unix", socketPath)
}

// Unwrap returns the worker's sandbox.
func (l *Lease) Unwrap() sandbox.Sandbox { return l.Sandbox }

var (
	errClosed = errors.New("the builders are stopped: runnerd is shutting down")
	errNobody = errors.New("the build belongs to no project: submit it again")
)

// Lease returns a lease of a scope's worker, starting the worker if there is none or the last has died.
// Leases of one scope share its worker, and its start. ctx covers the wait only: a start goes on when the
// one who asked for it first gives up, since others may wait for it.
func (ws *Workers) Lease(ctx context.Context, of scope.Scope) (*Lease, error) {
	if of.IsZero() {
		return nil, errNobody
	}
	for tidied, fresh := false, false; ; {
		w, err := ws.take(ctx, of)
		if err != nil {
			return nil, err
		}
		select {
		case <-w.ready:
		default:
			fresh = true
		}
		select {
		case <-w.ready:
		case <-ctx.Done():
			ws.give(w)
			return nil, context.Cause(ctx)
		}
		if w.err != nil {
			ws.give(w)
			return nil, fmt.Errorf("start the builder of %s: %w", of, w.err)
		}
		select {
		case <-w.exited: // it died since; the next take starts another
			ws.retire(w, false)
			ws.give(w)
			continue
		default:
		}
		if !tidied {
			tidied = true
			if ws.tidy(ctx, w) {
				ws.give(w)
				continue
			}
		}
		l := ws.lease(w, true)
		l.fresh = fresh
		return l, nil
	}
}

// lease is a lease of a worker that is ready and has been taken. Only builds keep it from being idle.
func (ws *Workers) lease(w *worker, build bool) *Lease {
	mine := w.shares.begin()
	return &Lease{Sandbox: w.sb, Client: w.client, ws: ws, w: w, share: mine, uploaded: new(atomic.Int64), give: sync.OnceFunc(func() {
		w.shares.end(mine)
		if build {
			ws.mu.Lock()
			w.used, ws.built[w.scope] = time.Now(), time.Now()
			ws.mu.Unlock()
		}
		ws.give(w)
	})}
}

// take counts a lease of the scope's worker, and starts the worker if there is none.
func (ws *Workers) take(ctx context.Context, of scope.Scope) (*worker, error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return nil, errClosed
	}
	w := ws.all[of]
	if w != nil && ws.outdated(w) {
		ws.end(w)
		w = nil
	}
	if w == nil {
		w = newWorker(of)
		ws.all[of] = w
		ctx, w.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
		above, _ := of.Above()
		go ws.start(ctx, w, ws.ending[of], ws.removing[above])
	}
	w.uses++
	w.leases++
	if w.idle != nil {
		w.idle.Stop()
	}
	return w, nil
}

// start starts a worker when its predecessor has gone, whose name and disk it takes over, and nothing is being
// removed from what it is cloned from.
func (ws *Workers) start(ctx context.Context, w, before *worker, removed <-chan struct{}) {
	defer close(w.ready)
	if before != nil {
		<-before.gone
	}
	if removed != nil {
		<-removed
	}
	ctx, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("buildkitd does not answer in time"))
	defer cancel()
	if w.err = w.launch(ctx, ws.cfg); w.err != nil {
		ws.mu.Lock()
		if ws.all[w.scope] == w {
			delete(ws.all, w.scope) // the next lease tries again
		}
		ws.mu.Unlock()
	}
}

// give ends a lease; a worker without leases ends when it has been idle for long enough.
func (ws *Workers) give(w *worker) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	w.leases--
	if w.leases > 0 || ws.all[w.scope] != w {
		return
	}
	if w.idle != nil {
		w.idle.Stop()
	}
	w.idle = time.AfterFunc(ws.cfg.IdleTimeout-time.Since(w.used), func() { ws.retire(w, true) })
}

// retire takes a worker out of use, or only if it is idle, and ends it in the background.
func (ws *Workers) retire(w *worker, ifIdle bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.all[w.scope] != w || ifIdle && w.leases > 0 {
		return
	}
	ws.end(w)
}

// end takes a worker out of use and ends it in the background. ws.mu is held.
func (ws *Workers) end(w *worker) {
	delete(ws.all, w.scope)
	ws.ending[w.scope] = w
	go func() {
		ws.cfg.addUses(w.scope, w.uses)
		w.end(ws.cfg.Log)
		ws.mu.Lock()
		if ws.ending[w.scope] == w {
			delete(ws.ending, w.scope)
		}
		ws.mu.Unlock()
	}()
}

// Close ends all workers, whoever uses them, and returns when nothing of them is left.
func (ws *Workers) Close() {
	ws.mu.Lock()
	ws.closed = true
	var all []*worker
	for _, w := range ws.all {
		all = append(all, w)
	}
	ws.mu.Unlock()
	for _, w := range all {
		w.cancel(errClosed) // if it is still starting
		ws.retire(w, false)
	}
	for {
		ws.mu.Lock()
		var next *worker
		for _, w := range ws.ending {
			next = w
			break
		}
		ws.mu.Unlock()
		if next == nil {
			return
		}
		<-next.gone
		ws.mu.Lock()
		if ws.ending[next.scope] == next {
			delete(ws.ending, next.scope)
		}
		ws.mu.Unlock()
	}
}
