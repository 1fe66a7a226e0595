// Package dind is the driver of the layer "dind": a current Docker Engine beside the job's container in
// its sandbox. The engine is root of the sandbox's user namespace and of nothing else; it starts when the
// job first connects to its socket, so a job that never speaks to Docker never pays for one.
package dind

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

const (
	// SocketPath is where every Docker client looks (moby client, DefaultDockerHost).
	SocketPath = "/var/run/docker.sock"
	// DataRoot is a volume: a nested engine's data must lie on a real file system, never on overlay.
	DataRoot   = "/var/lib/docker"
	dataVolume = "docker"
	engineName = "engine"
	// maxStarts bounds how often an engine that keeps dying is started again in one sandbox.
	maxStarts = 3
)

// Config is what a Driver needs to know.
type Config struct {
	// Image holds dockerd and what it needs.
	Image string
	// Lender is the path of runnerd-lend on the machine; empty if nothing is lent to engines.
	Lender string
	// MTU is that of the sandboxes' interfaces in bytes; the engine's own networks get the same, since a
	// packet leaves a container through both.
	MTU int
	// Mirror is the registry that images come from, host:port as the sandbox sees it, plain HTTP; empty for none.
	Mirror string
	// MirrorOf are further hosts than docker.io whose images it has.
	MirrorOf []string
	// Registries are further registries to speak plain HTTP to, host:port.
	Registries []string
	// Tuning is for measuring: nothing of it is worth its price. See RATIONALE.md.
	Tuning Tuning
	Log    *slog.Logger
}

// Driver starts engines in sandboxes. It is safe for concurrent use.
type Driver struct{ cfg Config }

// New returns a driver.
func New(cfg Config) *Driver { return &Driver{cfg} }

// On is a container: an engine is a companion in its pod.
func (*Driver) On() []sandbox.Kind { return []sandbox.Kind{sandbox.Container} }

// Check tells whether on can hold an engine.
func (d *Driver) Check(_ context.Context, on sandbox.Host) error {
	_, err := podOf(on)
	return err
}

// host is what an engine needs of the sandbox it is started in.
type host interface {
	sandbox.Pod
	sandbox.Dialer
	sandbox.Listener
}

func podOf(on sandbox.Host) (host, error) {
	if h, ok := on.(host); ok {
		return h, nil
	}
	return nil, fmt.Errorf("a Docker Engine needs a sandbox that can hold companions, not %T: use container/dind", on)
}

// Start opens the engine's socket in the sandbox. The engine itself starts with the first connection.
func (d *Driver) Start(ctx context.Context, on sandbox.Host, s sandbox.Spec) (sandbox.Sandbox, error) {
	pod, err := podOf(on)
	if err != nil {
		return nil, err
	}
	socket, err := pod.Listen(ctx, "unix", SocketPath)
	if err != nil {
		return nil, fmt.Errorf("open the engine's socket: %w", err)
	}
	life, end := context.WithCancelCause(context.WithoutCancel(ctx))
	e := &engine{host: pod, cfg: d.cfg, spec: s, socket: socket, end: end, done: make(chan struct{})}
	go func() {
		defer close(e.done)
		e.serve(life)
	}()
	return e, nil
}

// engine is a sandbox with a Docker Engine in it.
type engine struct {
	host
	cfg    Config
	spec   sandbox.Spec
	socket *os.File
	end    context.CancelCauseFunc
	done   chan struct{} // closed when serve has ended

	mu     sync.Mutex
	starts int
	member sandbox.Member // nil while the engine does not run
	failed error          // why the engine is not there
	// How long the engine took to answer, and to end; 0 if it did not.
	ready, ended time.Duration
}

var errClosed = errors.New("the sandbox is closed")

// serve starts the engine whenever somebody waits at the socket and none is there.
func (e *engine) serve(ctx context.Context) {
	defer e.socket.Close()
	for range maxStarts {
		if !e.awaitClient(ctx) {
			return
		}
		e.mu.Lock()
		e.starts++
		e.mu.Unlock()
		err := e.run(ctx)
		if ctx.Err() != nil {
			return
		}
		e.cfg.Log.Warn("the engine of a sandbox ended", "sandbox", e.ID(), "error", err)
		e.mu.Lock()
		e.failed = err
		e.mu.Unlock()
	}
}

// awaitClient waits until a connection waits to be accepted, and leaves it to the engine to accept it.
func (e *engine) awaitClient(ctx context.Context) bool {
	stop := context.AfterFunc(ctx, func() { e.socket.SetReadDeadline(time.Now()) })
	defer stop()
	raw, err := e.socket.SyscallConn()
	if err != nil {
		return false
	}
	waits := false
	err = raw.Read(func(fd uintptr) bool {
		waits = pending(int(fd))
		return waits
	})
	return err == nil && waits && ctx.Err() == nil
}

// run runs the engine until it ends.
func (e *engine) run(ctx context.Context) error {
	began := time.Now()
	volumes := maps.Clone(e.spec.Volumes) // bind mounts mean the same on both sides of the socket
	if volumes == nil {
		volumes = map[string]string{}
	}
	volumes[dataVolume] = DataRoot
	companion := sandbox.Companion{Name: engineName, Image: e.cfg.Image, Engine: true, Volumes: volumes}
	if e.cfg.Lender != "" {
		companion.Programs, companion.Borrows = map[string]string{lenderPath: e.cfg.Lender}, loansPath
	}
	member, err := e.Add(ctx, companion)
	if err != nil {
		return fmt.Errorf("start Docker Engine: %w", err)
	}
	e.setMember(member)
	defer e.setMember(nil)
	timing, cancelTiming := context.WithCancel(ctx)
	defer cancelTiming()
	go e.time(timing, began)
	log := sandbox.NewTail(4096)
	exit, err := member.Exec(ctx, sandbox.Process{
		Args:  sandbox.EngineArgs(e.cfg.Tuning.command(e.command())...),
		Files: []*os.File{e.socket}, Stdout: log, Stderr: log,
	})
	if err == nil {
		err = fmt.Errorf("Docker Engine ended with %s: %s", exit, log)
	}
	cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	return errors.Join(err, member.Close(cleanup))
}

func (e *engine) setMember(m sandbox.Member) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.member = m
}

// mirrorScript tells dockerd about mirrors of other registries than Docker Hub, which it has no flag for: one
// hosts.toml each, as containerd has them (docs/hosts.md there).
const mirrorScript = `mirror=$1; shift
while [ "$1" != -- ]; do
	mkdir -p "/etc/docker/certs.d/$1"
	printf '[host."http://%s"]\n  capabilities = ["pull", "resolve"]\n' "$mirror" >"/etc/docker/certs.d/$1/hosts.toml"
	shift
done
shift
exec "$@"`

// command starts dockerd.
func (e *engine) command() []string {
	dockerd := slices.Concat([]string{"dockerd"}, e.cfg.Arguments("fd://"), e.spec.EngineArgs)
	others := slices.DeleteFunc(slices.Clone(e.cfg.MirrorOf), func(host string) bool { return host == "docker.io" })
	if e.cfg.Mirror == "" || len(others) == 0 {
		return dockerd
	}
	return slices.Concat([]string{"/bin/sh", "-c", mirrorScript, "mirrors", e.cfg.Mirror}, others, []string{"--"}, dockerd)
}

// Arguments are those of a dockerd that listens at host, such as "fd://", in a sandbox or in a container of another one
// there.
func (c Config) Arguments(host string) []string {
	args := []string{
		"--host=" + host, "--data-root=" + DataRoot, "--config-file=/dev/null", "--log-level=warn",
		"--userland-proxy=false", // it would listen where nobody can reach it
		"--ip6tables=false",      // a sandbox has no IPv6 beyond itself, and these rules are a quarter of the start
		"--mtu=" + strconv.Itoa(c.MTU), "--exec-opt=native.cgroupdriver=cgroupfs",
		"--default-network-opt=bridge=com.docker.network.driver.mtu=" + strconv.Itoa(c.MTU),
	}
	if c.Mirror != "" {
		args = append(args, "--registry-mirror=http://"+c.Mirror, "--insecure-registry="+c.Mirror)
	}
	for _, registry := range c.Registries {
		args = append(args, "--insecure-registry="+registry)
	}
	return args
}

// Unwrap returns the sandbox that the engine is in, for its further abilities.
func (e *engine) Unwrap() sandbox.Sandbox { return e.host }

// EngineReady returns when the engine answers GET /_ping. Its connection starts the engine, as any does.
func (e *engine) EngineReady(ctx context.Context) error {
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return e.Dial(ctx, "unix", SocketPath)
	}}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() { // an engine that cannot start never answers
		select {
		case <-e.done:
			e.mu.Lock()
			defer e.mu.Unlock()
			cancel(errors.Join(errClosed, e.failed))
		case <-ctx.Done():
		}
	}()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("Docker Engine does not answer: %w", err)
	}
	defer response.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 4096))
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("Docker Engine answers %s", response.Status)
	}
	return nil
}

// EngineStarted reports whether anybody has connected to the engine so far.
func (e *engine) EngineStarted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.starts > 0
}

func (e *engine) close(ctx context.Context) error {
	e.end(errClosed)
	select {
	case <-e.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("end Docker Engine: %w", context.Cause(ctx))
	}
}
