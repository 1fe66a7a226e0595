// Package proxy stands between a job and its scope's BuildKit worker. BuildKit is no boundary between its
// clients (moby/buildkit, PROJECT.md, "Security boundary"), and one worker serves all jobs of a scope: a job
// reaches it through a Proxy only, which lets through what builds need, and of that what is the job's own.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/netutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// The bounds of one job. What a job can have the daemon hold of its messages is maxMessage for each session and
// each call that is being received, and a window for each connection: half a gigabyte, if it means harm.
const (
	maxMessage     = 4 << 20  // bytes
	maxAnswer      = 16 << 20 // bytes, BuildKit's own (util/appdefaults)
	streamWindow   = 512 << 10
	connWindow     = 1 << 20
	maxConnections = 64  // each buildx command has a few
	maxStreams     = 256 // of one connection
	maxReceiving   = 16  // calls
	maxSessions    = 96
	maxSolves      = 64      // one "docker buildx bake" builds all its targets at once
	maxIDs         = 1 << 16 // builds and sessions in a job's life
)

// Worker is a lease of a worker.
type Worker interface {
	// Dial connects to buildkitd.
	Dial(ctx context.Context) (net.Conn, error)
	// Close gives the worker back. Safe to call twice.
	Close(ctx context.Context) error
}

// Config is what a Proxy needs to know.
type Config struct {
	// Lease gets the worker of the job's scope. It is called when the job first builds, and again when the
	// worker has died.
	Lease func(ctx context.Context) (Worker, error)
	// Working is told that a build runs on that worker, until what it returns is called. May be nil.
	Working func() (done func())
	// Frontends are the images that "# syntax=" lines may name beside docker/dockerfile. The built-in
	// frontend serves them all.
	Frontends []string
	// Engine gets the images that buildx would load into an engine. nil: buildx loads them, as tars.
	Engine Engine
	// EngineAt are its addresses beside its socket, as a DOCKER_HOST names them.
	EngineAt []string
	Log      *slog.Logger // nil: nothing is logged
}

// Proxy serves one job.
type Proxy struct {
	cfg                     Config
	server                  *grpc.Server
	served                  sync.WaitGroup
	receiving, open, solves chan struct{} // held while a call is received, a session is open, a build runs
	// patience is how long a call waits for what it names to become the job's.
	patience time.Duration

	uploaded atomic.Int64 // bytes of sessions that clients have sent

	builds, sessions ids
	blobs            ids // digests that the history of the job's builds names

	leasing chan struct{} // held while a worker is got
	mu      sync.Mutex
	closed  bool
	worker  Worker
	conn    *grpc.ClientConn
}

var errClosed = errors.New("the job has ended")

// New returns a Proxy that serves nothing yet.
func New(cfg Config) *Proxy {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{
		cfg: cfg, receiving: make(chan struct{}, maxReceiving), open: make(chan struct{}, maxSessions), solves: make(chan struct{}, maxSolves),
		leasing: make(chan struct{}, 1), patience: openTimeout,
	}
	p.server = grpc.NewServer(
		grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(p.handle),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxAnswer), grpc.MaxConcurrentStreams(maxStreams),
		grpc.InitialWindowSize(streamWindow), grpc.InitialConnWindowSize(connWindow),
		grpc.MaxHeaderListSize(1<<20), grpc.WaitForHandlers(true),
	)
	return p
}

// Serve answers at a socket, in the background, until Close, which closes it.
func (p *Proxy) Serve(l net.Listener) {
	p.served.Go(func() {
		if err := p.server.Serve(netutil.LimitListener(clients{l}, maxConnections)); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			p.cfg.Log.Warn("a job's builder is no longer offered", "error", err)
		}
	})
}

// Uploaded is how many bytes the builds' clients have sent by their sessions: contexts, for the most part.
func (p *Proxy) Uploaded() int64 { return p.uploaded.Load() }

// Close ends the job's builds, closes its connections, and gives the worker back. Safe to call twice.
func (p *Proxy) Close(ctx context.Context) error {
	p.server.Stop() // cancels every call; it returns when all handlers have
	p.served.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.release(ctx)
}

// release gives up the worker; p.mu is held.
func (p *Proxy) release(ctx context.Context) error {
	var errs []error
	if p.conn != nil {
		errs = append(errs, p.conn.Close())
	}
	if p.worker != nil {
		errs = append(errs, p.worker.Close(ctx))
	}
	p.conn, p.worker = nil, nil
	return errors.Join(errs...)
}

// connect returns a connection to the scope's worker, which it leases if the job has none, or one that died.
func (p *Proxy) connect(ctx context.Context) (*grpc.ClientConn, error) {
	if conn := p.current(); conn != nil {
		return conn, nil
	}
	select { // one lease for all that wait
	case p.leasing <- struct{}{}:
		defer func() { <-p.leasing }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if conn := p.current(); conn != nil {
		return conn, nil
	}
	worker, err := p.cfg.Lease(ctx)
	if err != nil {
		return nil, fmt.Errorf("the project's builder cannot be had: %w: \"docker build --builder default\" builds with the engine of this sandbox instead, without the project's cache", err)
	}
	conn, err := grpc.NewClient("passthrough:///buildkitd", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return worker.Dial(ctx) }),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(maxAnswer), grpc.MaxCallSendMsgSize(maxAnswer)))
	if err != nil {
		return nil, errors.Join(err, worker.Close(ctx))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.Join(errClosed, conn.Close(), worker.Close(ctx))
	}
	p.conn, p.worker = conn, worker
	conn.Connect()
	return conn, nil
}

// current is the connection there is, unless its worker does not answer any more.
func (p *Proxy) current() *grpc.ClientConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conn != nil && p.conn.GetState() == connectivity.TransientFailure {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := p.release(ctx); err != nil {
			p.cfg.Log.Warn("give back a builder that does not answer", "error", err)
		}
	}
	return p.conn
}

// denied is the answer to what a job may not do: "call X", "use Y".
func denied(format string, args ...any) error {
	return status.Errorf(codes.PermissionDenied, "a job may not %s with its project's builder: \"docker buildx --builder default\" speaks to the engine of this sandbox instead", fmt.Sprintf(format, args...))
}

// foreign is the answer to what belongs to another job, or to none.
func foreign(what, id string) error {
	return status.Errorf(codes.PermissionDenied, "the %s %q is not this job's", what, id)
}
