package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"

	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/dind"
)

const (
	// readyTimeout bounds how long a nested engine may take to answer, pullTimeout how long it may take to get an image.
	readyTimeout = time.Minute
	pullTimeout  = 5 * time.Minute
	// bridge is the network of the containers with probes: as a job's own, it has the engine's resolver.
	bridge = "probes"
)

// engine is the Docker Engine of one level.
type engine struct {
	*client.Client
	level int
}

// openEngines makes the places of depth 2 and more.
func (r *Rig) openEngines(ctx context.Context) error {
	socket := dind.SocketPath
	docker, ok := sandbox.As[sandbox.DockerHost](r.full)
	if !ok {
		return fmt.Errorf("no engine in %T", r.full)
	}
	for depth := 2; depth <= r.cfg.Depth; depth++ {
		r.cfg.Say("starting the engine of depth %d", depth)
		if depth == 2 {
			if err := docker.EngineReady(ctx); err != nil {
				return fmt.Errorf("depth 2: %w", err)
			}
		}
		e, err := r.openEngine(ctx, depth, socket)
		if err != nil {
			return fmt.Errorf("depth %d: %w", depth, err)
		}
		p, err := r.openLeaf(ctx, e)
		if err != nil {
			return fmt.Errorf("depth %d: %w", depth, err)
		}
		r.chain = append(r.chain, p)
		if depth == r.cfg.Depth {
			break
		}
		if socket, err = r.startEngine(ctx, e); err != nil {
			return fmt.Errorf("depth %d: start an engine in a container: %w", depth+1, err)
		}
	}
	return nil
}

// openEngine connects to a level's engine, and refuses one whose storage is not what is to be measured.
func (r *Rig) openEngine(ctx context.Context, depth int, socket string) (*engine, error) {
	c, err := client.New(client.WithHost("unix://"+socket), client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
		return r.sb.Dial(ctx, "unix", socket)
	}))
	if err != nil {
		return nil, err
	}
	r.later(func(context.Context) error { return c.Close() })
	e := &engine{c, depth}
	ready, cancel := context.WithTimeoutCause(ctx, readyTimeout, errors.New("the engine does not answer in time"))
	defer cancel()
	for {
		if _, err = e.Ping(ready, client.PingOptions{}); err == nil {
			break
		}
		select {
		case <-ready.Done():
			return nil, fmt.Errorf("%w: %w", context.Cause(ready), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	info, err := e.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, err
	}
	if driver := info.Info.Driver; !slices.Contains([]string{"overlayfs", "overlay2"}, driver) {
		return nil, fmt.Errorf("the engine stores images by %q, which is not what is to be measured: it needs a data root on a real file system", driver)
	}
	if err := e.pull(ctx, r.cfg.Image); err != nil {
		return nil, err
	}
	_, err = e.NetworkCreate(ctx, bridge, client.NetworkCreateOptions{Driver: "bridge"})
	return e, err
}

func (e *engine) pull(ctx context.Context, image string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pullTimeout, errors.New("it takes too long"))
	defer cancel()
	progress, err := e.ImagePull(ctx, image, client.ImagePullOptions{})
	if err == nil {
		err = progress.Wait(ctx)
	}
	if err != nil {
		return fmt.Errorf("pull %s: %w", image, err)
	}
	return nil
}

// start creates and starts a container that sees the volume.
func (e *engine) start(ctx context.Context, name string, c container.Config, h container.HostConfig) (id string, err error) {
	h.Binds = append(h.Binds, shared+":"+shared)
	created, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{Name: name, Config: &c, HostConfig: &h})
	if err == nil {
		_, err = e.ContainerStart(ctx, created.ID, client.ContainerStartOptions{})
	}
	if err != nil {
		return "", fmt.Errorf("start container %s: %w", name, err)
	}
	return created.ID, nil
}

// startEngine starts an engine in a container of this level's engine, with its data on a volume of it. The container is
// a privileged one, as those of docker:dind are: in the sandbox's user namespace.
func (r *Rig) startEngine(ctx context.Context, e *engine) (socket string, err error) {
	image := r.cfg.Engine.Image
	if err := e.pull(ctx, image); err != nil {
		return "", err
	}
	socket = fmt.Sprintf("%s/engine-%d.sock", shared, e.level+1)
	args := append([]string{"dockerd"}, r.cfg.Engine.Arguments("unix://"+socket)...)
	_, err = e.start(ctx, "engine", container.Config{
		Image: image, Entrypoint: []string{}, Cmd: sandbox.EngineArgs(args...), Volumes: map[string]struct{}{dind.DataRoot: {}},
	}, container.HostConfig{Privileged: true, CgroupnsMode: "private"})
	return socket, err
}

// openLeaf starts a probe in a container of a level's engine, and another one as its neighbour.
func (r *Rig) openLeaf(ctx context.Context, e *engine) (place, error) {
	var p place
	neighbour, id, err := r.startLeaf(ctx, e, fmt.Sprintf("neighbour-%d", e.level))
	if err != nil {
		return p, err
	}
	inspected, err := e.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return p, err
	}
	endpoint := inspected.Container.NetworkSettings.Networks[bridge]
	if endpoint == nil || !endpoint.IPAddress.IsValid() {
		return p, fmt.Errorf("the neighbour has no address on the network %s", bridge)
	}
	serving, err := neighbour.Ask(ctx, probe.Request{Do: probe.DoServe, Args: probe.Args{Server: endpoint.IPAddress.String()}})
	if err != nil {
		return p, err
	}
	agent, _, err := r.startLeaf(ctx, e, fmt.Sprintf("depth-%d", e.level))
	if err != nil {
		return p, err
	}
	args := inside(r.serve)
	args.Neighbour = serving.Text
	return place{name: fmt.Sprintf("depth %d", e.level), depth: e.level, agent: agent, args: args, start: func(ctx context.Context) (time.Duration, error) {
		return e.startAndEnd(ctx, r.cfg.Image)
	}}, nil
}

func (r *Rig) startLeaf(ctx context.Context, e *engine, name string) (*probe.Agent, string, error) {
	socket := shared + "/" + name
	id, err := e.start(ctx, name, container.Config{Image: r.cfg.Image, Entrypoint: []string{}, Cmd: []string{inSandbox, "serve", socket}},
		container.HostConfig{NetworkMode: bridge})
	if err != nil {
		return nil, "", err
	}
	agent, err := r.dial(ctx, socket, func() error {
		inspected, err := e.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		if state := inspected.Container.State; err == nil && state != nil && !state.Running {
			return fmt.Errorf("%w with exit code %d: %s", errEnded, state.ExitCode, state.Error)
		}
		return nil
	})
	return agent, id, err
}

// startAndEnd runs a container that ends at once. Its removal is not counted.
func (e *engine) startAndEnd(ctx context.Context, image string) (_ time.Duration, err error) {
	began := time.Now()
	created, err := e.ContainerCreate(ctx, client.ContainerCreateOptions{
		Config: &container.Config{Image: image, Entrypoint: []string{}, Cmd: []string{"/bin/true"}}, NetworkingConfig: &network.NetworkingConfig{},
	})
	if err != nil {
		return 0, err
	}
	defer func() {
		_, removal := e.ContainerRemove(context.WithoutCancel(ctx), created.ID, client.ContainerRemoveOptions{Force: true})
		err = errors.Join(err, removal)
	}()
	ended := e.ContainerWait(ctx, created.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := e.ContainerStart(ctx, created.ID, client.ContainerStartOptions{}); err != nil {
		return 0, err
	}
	select {
	case err := <-ended.Error:
		return 0, err
	case result := <-ended.Result:
		took := time.Since(began)
		if result.StatusCode != 0 {
			return 0, fmt.Errorf("a container that is to succeed ended with %d", result.StatusCode)
		}
		return took, nil
	}
}
