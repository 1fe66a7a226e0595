package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// Services are containers beside the job's own, in its network: they are reached on the loopback, as with
// gitlab-runner's Kubernetes executor, by names that mean it.

const (
	loopback = "127.0.0.1"
	// maxServices bounds how many services a job may have.
	maxServices = 32
	// serviceLog is how much of a service's output is kept for the log, in bytes.
	serviceLog = 64 << 10
	// healthPort tells at which port a service answers, if not at the lowest that its image exposes.
	healthPort = "HEALTHCHECK_TCP_PORT"
	// healthEvery is how often it is tried.
	healthEvery = 20 * time.Millisecond
)

// service is a service of a job, before it runs.
type service struct {
	image image
	label string   // its first alias, or name
	names []string // of hosts
	env   []string
	port  string // of healthPort; may be empty
}

// service reads a service.
func (p *plan) service(s spec.Image) error {
	i, err := p.image("Service", s)
	if err != nil {
		return err
	}
	given, own := p.aliases(s), serviceNames(i.String())
	names := unique(slices.Concat(given, own))
	out := service{image: i, env: p.vars.ServiceEnv(s.Variables), label: own[0]}
	if len(given) > 0 {
		out.label = given[0]
	}
	for _, name := range names {
		if isHostname(name) {
			out.names = append(out.names, name)
		} else {
			p.note("Service %s: %q is not used: it can be no name of a host", i, name)
		}
	}
	out.port = p.vars.Get(healthPort)
	for _, v := range s.Variables {
		if v.Key == healthPort {
			out.port = p.vars.Expand(v.Value)
		}
	}
	p.services = append(p.services, out)
	return nil
}

func isHostname(name string) bool {
	return name != "" && len(name) <= 253 && strings.Trim(strings.ToLower(name), "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// running is a service that was started.
type running struct {
	service
	log   *sandbox.Tail
	ports []int         // that its image exposes, or the one that it was said to have
	ready chan struct{} // closed when it was started, or failed to
	err   error         // why it was not; once ready is closed
	ended chan struct{} // closed when it has ended
	exit  string        // how; once ended is closed
	at    sandbox.Host
}

// startServices starts all services, each in a goroutine of its own.
func (r *run) startServices(ctx context.Context) {
	for n, s := range r.services {
		for _, name := range s.names {
			r.hosts[name] = loopback
		}
		x := &running{service: s, log: sandbox.NewTail(serviceLog), ready: make(chan struct{}), ended: make(chan struct{})}
		r.started = append(r.started, x)
		r.background.Go(func() {
			defer close(x.ended)
			r.serve(ctx, n, x)
		})
	}
}

// serve runs a service until the job ends.
func (r *run) serve(ctx context.Context, n int, x *running) {
	member, err := r.add(ctx, sandbox.Companion{
		Name: "service-" + strconv.Itoa(n), Env: x.env, Volumes: map[string]string{BuildsVolume: r.vars.BuildsDir},
	}, x.image)
	if err != nil {
		x.err = fmt.Errorf("start service %s: %w", x.image, err)
		close(x.ready)
		return
	}
	config := member.(sandbox.Imaged).ImageConfig()
	x.at, x.ports = member, healthPorts(x.port, config.Ports)
	process := sandbox.Process{Args: x.image.argv(config), User: x.image.user, Stdout: x.log, Stderr: x.log}
	if r.settings.DebugServices {
		both := io.MultiWriter(x.log, &prefixed{w: r.w, prefix: "[service:" + x.label + "] "})
		process.Stdout, process.Stderr = both, both
	}
	if len(process.Args) == 0 {
		x.err = configurationError("service %s: its image has no command: give it an entrypoint or a command", x.image)
		close(x.ready)
		return
	}
	close(x.ready)
	exit, err := member.Exec(r.life, process)
	x.exit = exit.String()
	if err != nil {
		x.exit = err.Error()
	}
}

// add starts a companion, with an image that is got in one of several ways.
func (r *run) add(ctx context.Context, c sandbox.Companion, i image) (member sandbox.Member, err error) {
	pod, ok := ability[sandbox.Pod](r.on)
	if !ok {
		return nil, fmt.Errorf("%T holds no further containers", r.on)
	}
	for _, try := range i.tries {
		c.Image, c.Pull = try.Ref, try.Pull
		if member, err = pod.Add(ctx, c); err == nil || !errors.Is(err, sandbox.ErrImage) {
			return member, err
		}
	}
	return nil, &Failure{Reason: spec.ImagePullFailure, Err: err}
}

// healthPorts are the ports at which a service may answer, the first one first.
func healthPorts(said string, exposed []string) (ports []int) {
	if port, err := strconv.ParseUint(said, 10, 16); err == nil && port > 0 {
		return []int{int(port)}
	}
	for _, text := range exposed {
		number, protocol, _ := strings.Cut(text, "/")
		if port, err := strconv.ParseUint(number, 10, 16); err == nil && (protocol == "" || protocol == "tcp") {
			ports = append(ports, int(port))
		}
	}
	slices.Sort(ports)
	return ports
}

// awaitStarted returns when all services run, or with the error of the first that does not.
func (r *run) awaitStarted(ctx context.Context) error {
	for _, x := range r.started {
		select {
		case <-x.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if x.err != nil {
			return failure(spec.RunnerSystemFailure, x.err)
		}
	}
	at := map[int]*running{}
	for _, x := range r.started {
		for _, port := range x.ports {
			if other := at[port]; other != nil {
				r.warn("Services %s and %s both expose port %d. All services of a job share its network here, so only one of them can have the port: move one with its configuration, and say so with %s",
					other.label, x.label, port, healthPort)
			}
			at[port] = x
		}
	}
	return nil
}

// awaitServices waits until the services answer, as long as a job waits, and shows the logs of those that do not.
func (r *run) awaitServices(ctx context.Context) error {
	if len(r.started) == 0 {
		return nil
	}
	if err := r.awaitStarted(ctx); err != nil {
		return err
	}
	if r.cfg.ServiceTimeout < 0 {
		return nil
	}
	r.say("Waiting for services to be up and running (timeout %d seconds)...", int(r.cfg.ServiceTimeout.Seconds()))
	waiting, cancel := context.WithTimeout(ctx, r.cfg.ServiceTimeout)
	defer cancel()
	healthy := make(chan error, len(r.started))
	for _, x := range r.started {
		go func() { healthy <- x.healthy(waiting) }()
	}
	for range r.started {
		if err := <-healthy; err != nil && ctx.Err() == nil {
			r.write(err.Error())
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// healthy returns when the service accepts a connection at its first port. Its error is what the log says.
func (x *running) healthy(ctx context.Context) error {
	dialer, ok := x.at.(sandbox.Dialer)
	if !ok || len(x.ports) == 0 {
		return x.unhealthy("it exposes no port to try: say which with " + healthPort)
	}
	address := net.JoinHostPort(loopback, strconv.Itoa(x.ports[0]))
	tick := time.NewTicker(healthEvery)
	defer tick.Stop()
	for {
		conn, err := dialer.Dial(ctx, "tcp", address)
		if err == nil {
			_ = conn.Close()
			return nil
		}
		select {
		case <-x.ended:
			return x.unhealthy("it has ended: " + x.exit)
		case <-ctx.Done():
			return x.unhealthy(fmt.Sprintf("no answer at port %d in time: %v", x.ports[0], err))
		case <-tick.C:
		}
	}
}

// errUnhealthy is what the log says of a service.
type errUnhealthy string

func (e errUnhealthy) Error() string { return string(e) }

func (x *running) unhealthy(why string) error {
	return errUnhealthy(fmt.Sprintf("\n%s Service %s probably didn't start properly.\n\nHealth check error:\n%s\n\nService container logs:\n%s\n\n%s\n\n",
		"\x1b[0;33m*** WARNING:\x1b[0;m", x.label, why, x.log, "\x1b[0;33m*********\x1b[0;m"))
}

// prefixed writes whole lines, each after a prefix.
type prefixed struct {
	w      io.Writer
	prefix string
	rest   []byte
}

// maxServiceLine is how many bytes of a line are held back until the rest of it comes.
const maxServiceLine = 16 << 10

func (p *prefixed) Write(text []byte) (int, error) {
	p.rest = append(p.rest, text...)
	var out []byte
	for {
		i := slices.Index(p.rest, '\n')
		if i < 0 && len(p.rest) < maxServiceLine {
			break
		}
		line, next := len(p.rest), len(p.rest)
		if i >= 0 {
			line, next = i, i+1
		}
		out = append(append(append(out, p.prefix...), p.rest[:line]...), '\n')
		p.rest = p.rest[next:]
	}
	if len(out) == 0 {
		return len(text), nil
	}
	if _, err := p.w.Write(out); err != nil {
		return 0, err
	}
	return len(text), nil
}
