package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/proxy"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Where a job with a Docker Engine finds its project's builder.
const (
	builderSocket = "/run/runnerd/buildkit.sock"
	buildxDir     = "/run/runnerd/buildx"
	buildxName    = "runnerd"
)

// builderEnv makes the builder the default of "docker build", buildx, bake and compose. BUILDX_BUILDER alone
// reaches "docker build" (docker/cli, cmd/docker/builder.go, processBuilder).
var builderEnv = []string{"BUILDX_BUILDER=" + buildxName, "BUILDX_CONFIG=" + buildxDir}

// buildxInstance describes the builder to buildx (docker/buildx, store/nodegroup.go).
const buildxInstance = `{"Name":"` + buildxName + `","Driver":"remote","Nodes":[{"Name":"` + buildxName + `0","Endpoint":"unix://` + builderSocket + `","Platforms":null,"DriverOpts":{"default-load":"true"},"Flags":null,"Files":null}]}`

// offerScript writes buildx's configuration, for whatever user the job's commands run as: nobody but the job is
// in its sandbox, so its sockets too are for all of them. With the same node in every job the worker knows a
// directory again that a job sends, and asks for what has changed in it (build/build.go, TryNodeIdentifier).
const offerScript = `set -e
umask 0
mkdir -p "$0/instances"
printf %s "$1" >"$0/instances/$2"
printf '{"Key":"","Name":"%s","Global":true}' "$2" >"$0/current"
printf %s "$2" >"$0/.buildNodeID"
chmod 666 "$3" /var/run/docker.sock`

// offerBuilder gives a job its project's builder, at a socket in its sandbox. The builder is started when the job
// first builds. A sandbox whose image cannot be told of it, for want of a shell, has its engine alone. On failure
// the sandbox is closed.
func (a *assembly) offerBuilder(ctx context.Context, sb sandbox.Sandbox, j runner.Job) (_ sandbox.Sandbox, err error) {
	defer func() {
		if err != nil {
			cleanup, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			err = errors.Join(fmt.Errorf("offer the builder: %w", err), sb.Close(cleanup))
		}
	}()
	began := time.Now()
	listener, ok := sandbox.As[sandbox.Listener](sb)
	adopter, ok2 := sandbox.As[sandbox.Adopter](sb)
	if !ok || !ok2 {
		return nil, fmt.Errorf("%T has no place for it", sb)
	}
	socket, err := listener.Listen(ctx, "unix", builderSocket)
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	log := sandbox.NewTail(1024)
	exit, err := sb.Exec(ctx, sandbox.Process{
		Args: []string{"/bin/sh", "-c", offerScript, buildxDir, buildxInstance, buildxName, builderSocket},
		User: "0:0", Dir: "/", Stderr: log,
	})
	if err != nil {
		return nil, err
	}
	if !exit.Success() {
		a.log.Warn("a job's image cannot be told of its builder", "job", j.ID, "image", j.Image, "exit", exit, "log", log.String())
		return sb, nil
	}
	if err := adopter.Adopt(sandbox.Spec{Env: append(append([]string(nil), builderEnv...), j.Env...), Limits: j.Limits}); err != nil {
		return nil, err
	}
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, err
	}
	engine, err := a.jobEngine(sb, j)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	builds := &jobBuilds{}
	p := proxy.New(proxy.Config{
		Lease: func(ctx context.Context) (proxy.Worker, error) {
			lease, err := a.leaseFor(ctx, j)
			if err != nil {
				return nil, err // not a nil *Lease in an interface
			}
			builds.add(lease)
			return lease, nil
		},
		Working:   builds.working,
		Frontends: a.config.Builder.Frontends, Engine: engine, EngineAt: j.EngineAt, Log: a.log.With("component", "proxy", "job", j.ID),
	})
	p.Serve(l)
	return &withBuilder{Sandbox: sb, proxy: p, builds: builds, offered: time.Since(began)}, nil
}

// leaseFor leases the worker of a job's scope for what runs in the job's sandbox.
func (a *assembly) leaseFor(ctx context.Context, j runner.Job) (*buildkit.Lease, error) {
	if err := a.config.Policy.Sandbox().Allow(sandbox.Nesting{sandbox.Container, sandbox.BuildKit}); err != nil {
		return nil, err
	}
	if err := checkRoom(a.config.StateDir); err != nil {
		return nil, err
	}
	return a.workers.Lease(ctx, j.Scope)
}
