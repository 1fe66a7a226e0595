package job

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// A docker:dind service is not started: the sandbox has an engine of its own, beside the job, which needs no
// privileges. It is reached where the service would be.

const (
	engineSocket = "/var/run/docker.sock"
	plainPort    = "2375" // of the Docker Engine
	tlsPort      = "2376"
	// certsVariable is where the images of Docker put certificates, and where their clients look for them.
	certsVariable = "DOCKER_TLS_CERTDIR"
	defaultCerts  = "/certs"
)

// engine is the sandbox's engine in the place of services.
type engine struct {
	names []string // of hosts
	certs string   // where the client's certificates go; empty: nowhere
	args  []string // of dockerd
}

// flatten notes that a service is the sandbox's engine.
func (p *plan) flatten(name string, s spec.Image) {
	if p.engine == nil {
		p.engine = &engine{names: []string{"docker"}}
	}
	e := p.engine
	e.names = unique(slices.Concat(e.names, p.aliases(s), serviceNames(name)))
	dir := p.vars.Get(certsVariable)
	for _, v := range s.Variables {
		if v.Key == certsVariable {
			dir = p.vars.Expand(v.Value)
		}
	}
	if dir == "" && (p.vars.Get("DOCKER_CERT_PATH") != "" || p.vars.Get("DOCKER_TLS_VERIFY") != "") {
		dir = defaultCerts
	}
	if e.certs == "" {
		e.certs = dir
	}
	p.note("Service %s is this sandbox's own Docker Engine, which needs no privileges", name)
	for _, arg := range slices.Concat(s.Entrypoint, s.Command) {
		p.engineArg(p.vars.Expand(arg))
	}
}

// engineArg takes over an argument of dockerd's, or says why it is not.
func (p *plan) engineArg(arg string) {
	flag, _, valued := strings.Cut(arg, "=")
	switch flag {
	case "--insecure-registry", "--registry-mirror", "--bip", "--default-address-pool", "--experimental":
		if valued || flag == "--experimental" {
			p.engine.args = append(p.engine.args, arg)
			return
		}
		p.note("The engine's argument %s is not used: write it as %s=VALUE", arg, flag)
	case "--tls", "--tlsverify", "--tlscacert", "--tlscert", "--tlskey", "--host", "-H":
		// It answers at both ports, with TLS and without.
	case "--mtu":
		p.note("The engine's argument %s is not used: its networks have the sandbox's MTU", arg)
	case "dockerd", "dockerd-entrypoint.sh", "sh", "-c", "":
	default:
		p.note("The engine's argument %s is not used", arg)
	}
}

// startEngine has the engine start while the sources are got: who asks for one as a service will use it.
func (r *run) startEngine() {
	docker, ok := ability[sandbox.DockerHost](r.on)
	if r.engine == nil || !ok {
		return
	}
	r.background.Go(func() {
		began := time.Now()
		if err := docker.EngineReady(r.life); err == nil { // else the job's own connection tells
			r.debug("engine", began)
		}
	})
}

// offerEngine makes the engine reachable where a service would be.
func (r *run) offerEngine(ctx context.Context) error {
	for _, name := range r.engine.names {
		r.hosts[name] = loopback
	}
	dialer, ok := ability[sandbox.Dialer](r.on)
	if !ok {
		return fmt.Errorf("the engine of %T cannot be reached", r.on)
	}
	dial := func(ctx context.Context) (net.Conn, error) { return dialer.Dial(ctx, "unix", engineSocket) }
	if err := r.forward(ctx, "tcp", loopback+":"+plainPort, dial, nil); err != nil {
		return fmt.Errorf("offer the engine at port %s: %w", plainPort, err)
	}
	certs, err := newCertificates(r.engine.names)
	if err != nil {
		return fmt.Errorf("make the engine's certificates: %w", err)
	}
	wrap := func(c net.Conn) net.Conn { return tls.Server(c, certs.server) }
	if err := r.forward(ctx, "tcp", loopback+":"+tlsPort, dial, wrap); err != nil {
		return fmt.Errorf("offer the engine at port %s: %w", tlsPort, err)
	}
	if r.engine.certs == "" {
		return nil
	}
	dir := path.Join(r.engine.certs, "client")
	if !path.IsAbs(dir) {
		return configurationError("%s is %q: it must be absolute", certsVariable, r.engine.certs)
	}
	return r.install(ctx, dir, certs.client)
}

// installScript writes files that follow on its input, each as a line with its name, one with its number of lines, and
// these. They are for whatever user the job has, and the sandbox is all the job's.
const installScript = `set -e
umask 022
mkdir -p "$0"
while read -r name lines; do
	while [ "$lines" -gt 0 ]; do
		IFS= read -r line
		printf '%s\n' "$line"
		lines=$((lines - 1))
	done >"$0/$name"
	chmod 644 "$0/$name"
done`

// install writes text files into a directory of the job's container.
func (r *run) install(ctx context.Context, dir string, files map[string]string) error {
	var input strings.Builder
	for name, text := range files {
		fmt.Fprintf(&input, "%s %d\n%s", name, strings.Count(text, "\n"), text)
	}
	log := sandbox.NewTail(1024)
	exit, err := r.on.Exec(ctx, sandbox.Process{
		Args: []string{"/bin/sh", "-c", installScript, dir}, User: rootUser, Dir: "/", Stdin: strings.NewReader(input.String()), Stdout: log, Stderr: log,
	})
	if err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	if !exit.Success() {
		r.warn("%s was not written: %s %s", dir, exit, log)
	}
	return nil
}
