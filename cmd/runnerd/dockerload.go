package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

const (
	engineSocket = "/var/run/docker.sock"
	// engineAPI is what every engine of the last years speaks: nothing is negotiated.
	engineAPI = "1.44"
	// maxLoads is how many images an engine is told to load at once, and maxEngineAnswer how many bytes are read of
	// what it says about one: whoever answers at its socket may be the job itself. An hour's progress of a download
	// is a quarter of it.
	maxLoads        = 4
	maxEngineAnswer = 32 << 20
	// reachTime bounds how long the registry is waited for, which is on the same machine.
	reachTime = 2 * time.Second
)

// jobEngine is the Docker Engine of a job's sandbox. It pulls what the worker of the job's scope pushes to a
// repository of that scope, which both of them may use.
type jobEngine struct {
	sandbox    sandbox.Dialer
	borrower   sandbox.Borrower // nil if the engine cannot borrow
	pull       sandbox.Pull
	repository string        // empty: the job belongs to no scope
	address    string        // of the registry, host:port
	loads      chan struct{} // held while an image is loaded
	naming     chan struct{} // held while images get names
	log        *slog.Logger
}

func (a *assembly) jobEngine(sb sandbox.Sandbox, j runner.Job) (*jobEngine, error) {
	dialer, ok := sandbox.As[sandbox.Dialer](sb)
	if !ok {
		return nil, fmt.Errorf("the engine of %T cannot be reached", sb)
	}
	e := &jobEngine{sandbox: dialer, address: a.mirror(), loads: make(chan struct{}, maxLoads), naming: make(chan struct{}, 1), log: a.log.With("job", j.ID)}
	e.borrower, _ = sandbox.As[sandbox.Borrower](sb)
	if !j.Scope.IsZero() {
		e.pull.Asking = asking(j.Scope)
		e.repository = a.registryHost() + "/" + registry.CacheRepository(j.Scope, "load")
	}
	return e, nil
}

// asking tells the machine's registry that a scope asks.
func asking(s scope.Scope) map[string]string {
	return map[string]string{registry.As: registry.AsScope(s)}
}

// Repository implements proxy.Engine. The registry may be configured to listen where sandboxes do not reach it.
func (e *jobEngine) Repository(ctx context.Context) (string, error) {
	if e.repository == "" {
		return "", errors.New("the job belongs to no project")
	}
	ctx, cancel := context.WithTimeout(ctx, reachTime)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", e.address)
	if err != nil {
		return "", fmt.Errorf("sandboxes do not reach the registry: %w: see registry.address", err)
	}
	return e.repository, conn.Close()
}

// Load implements proxy.Engine. The names of an image that the engine has are all it needs.
func (e *jobEngine) Load(ctx context.Context, repository string, image digest.Digest, names []string) error {
	if err := take(ctx, e.loads); err != nil {
		return err
	}
	defer func() { <-e.loads }()
	docker, err := client.New(client.WithHost("unix://"+engineSocket), client.WithDialContext(e.dial), client.WithAPIVersion(engineAPI))
	if err != nil {
		return err
	}
	defer docker.Close()
	if len(names) == 0 {
		if _, err := docker.ImageInspect(ctx, image.String()); !errdefs.IsNotFound(err) {
			return err
		}
	} else if err := e.name(ctx, docker, image, names, ""); !errdefs.IsNotFound(err) {
		return err
	}
	began := time.Now()
	ref := repository + "@" + image.String()
	if e.borrower != nil {
		// What the machine lends, the engine need not fetch nor unpack. The pull does what is not lent.
		if err := e.borrower.Borrow(ctx, ref, e.pull); err != nil && ctx.Err() == nil {
			e.log.Warn("an image is loaded without the machine's layers, which takes longer", "error", err)
		}
	}
	lent := time.Now()
	pull, err := docker.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer pull.Close()
	if err := pull.Wait(ctx); err != nil {
		return err
	}
	pulled := time.Now()
	if len(names) > 0 {
		err = e.name(ctx, docker, image, names, ref)
	}
	e.log.Debug("loaded an image", "image", image, "lend", lent.Sub(began), "pull", pulled.Sub(lent), "name", time.Since(pulled))
	return err
}

// name gives an image its names, and takes away the one that it was pulled by. Meanwhile no other load moves a
// name: with the only one of an image, the image would go.
func (e *jobEngine) name(ctx context.Context, docker *client.Client, image digest.Digest, names []string, pulled string) error {
	if err := take(ctx, e.naming); err != nil {
		return err
	}
	defer func() { <-e.naming }()
	for _, name := range names {
		if _, err := docker.ImageTag(ctx, client.ImageTagOptions{Source: image.String(), Target: name}); err != nil {
			return err
		}
	}
	if pulled == "" {
		return nil
	}
	if _, err := docker.ImageRemove(ctx, pulled, client.ImageRemoveOptions{}); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the name that the image was pulled by: %w", err)
	}
	return nil
}

func take(ctx context.Context, turn chan struct{}) error {
	select {
	case turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (e *jobEngine) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := e.sandbox.Dial(ctx, "unix", engineSocket)
	if err != nil {
		return nil, err
	}
	return &boundedConn{Conn: conn, left: maxEngineAnswer}, nil
}

// boundedConn is a connection that says a bounded amount.
type boundedConn struct {
	net.Conn
	left int
}

var errTalkative = errors.New("the engine says too much")

func (c *boundedConn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errTalkative
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}
