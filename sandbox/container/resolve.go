package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/runnerd/runnerd/sandbox"
)

// resolveTimeout bounds how long a registry may take to say what a name means.
const resolveTimeout = 30 * time.Second

// find asks what ref names now, and whether whoever asks may have it. The machine's registry is asked first; what it
// does not have, because not everybody may, the image's own registry is asked for with the credentials of who asks.
func (i *images) find(ctx context.Context, ref string, how sandbox.Pull) (found, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return found{}, fmt.Errorf("%w: %w", sandbox.ErrUnknownImage, err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, resolveTimeout, errors.New("its registry does not answer in time"))
	defer cancel()
	host := reference.Domain(named)
	own := i.isOwn(host)
	f := found{name: named.String(), namespace: i.cfg.Name, resolver: i.mirror(how)}
	err = f.resolve(ctx)
	if err == nil && own {
		f.namespace = i.ownNamespace(ctx, f, named)
	}
	if err == nil || !errdefs.IsNotFound(err) {
		return f, err
	}
	_, mirrored := i.cfg.Upstreams[host]
	if own || len(i.cfg.Upstreams) == 0 || mirrored && how.Password == "" {
		return f, fmt.Errorf("%w: push it to the registry first, correct the name, or give the credentials that it needs", sandbox.ErrUnknownImage)
	}
	f.namespace = i.namespaceOf(named)
	if f.resolver, err = i.direct(host, how); err != nil {
		return f, err
	}
	err = f.resolve(ctx)
	if errdefs.IsNotFound(err) || errors.Is(err, sandbox.ErrDenied) {
		err = fmt.Errorf("%w: %s does not have it, or not with these credentials: %w", sandbox.ErrUnknownImage, host, err)
	}
	if err == nil && how.Policy == sandbox.Never {
		i.mu.Lock()
		defer i.mu.Unlock()
		if i.unpacked[f.key()] == nil {
			err = fmt.Errorf("%w on this machine, and the pull policy is %s", sandbox.ErrUnknownImage, sandbox.Never)
		}
	}
	return f, err
}

// namespaceOf is where the images of a repository are kept that not all may read.
func (i *images) namespaceOf(repository reference.Named) string {
	sum := sha256.Sum256([]byte(reference.TrimNamed(repository).String()))
	return i.cfg.Name + "-" + hex.EncodeToString(sum[:8])
}

// ownNamespace is where an image of the machine's registry is kept: what all may read in one namespace, and what only
// some may in its repository's. The registry asks for the blobs that an image names, but an image's configuration can
// name layers that its author never had, and containerd takes those for unpacked that the namespace has.
func (i *images) ownNamespace(ctx context.Context, f found, named reference.Named) string {
	if len(i.cfg.Public) > 0 {
		all := found{name: f.name, resolver: i.mirror(sandbox.Pull{Asking: i.cfg.Public})}
		if err := all.resolve(ctx); err == nil && all.digest == f.digest {
			return i.cfg.Name + "-own"
		}
	}
	return i.namespaceOf(named)
}

// resolve sets the digest. What is refused wraps sandbox.ErrDenied.
func (f *found) resolve(ctx context.Context) error {
	_, d, err := f.resolver.Resolve(ctx, f.name)
	f.digest = d.Digest
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return err
	case errors.As(err, &status) && (status.StatusCode == http.StatusForbidden || status.StatusCode == http.StatusUnauthorized),
		errors.Is(err, docker.ErrInvalidAuthorization):
		return fmt.Errorf("%w: %w", sandbox.ErrDenied, err)
	}
	if status.StatusCode == http.StatusServiceUnavailable {
		return fmt.Errorf("its registry does not answer (%w): runnerd's log says why", err)
	}
	return fmt.Errorf("resolve: %w", err)
}

// isOwn reports whether a host is the machine's registry itself.
func (i *images) isOwn(host string) bool {
	name, _, err := net.SplitHostPort(host)
	return slices.Contains(i.cfg.MirrorNames, host) || err == nil && slices.Contains(i.cfg.MirrorNames, name)
}

// mirror asks the machine's registry, which is on this machine and speaks plain HTTP, and mirrors all others.
func (i *images) mirror(how sandbox.Pull) remotes.Resolver {
	headers := http.Header{}
	for key, value := range how.Asking {
		headers.Set(key, value)
	}
	switch how.Policy {
	case sandbox.Always:
		headers.Set("Cache-Control", "no-cache")
	case sandbox.Never:
		headers.Set("Cache-Control", "only-if-cached")
	}
	return docker.NewResolver(docker.ResolverOptions{Headers: headers, Hosts: func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Host: i.cfg.Mirror, Scheme: "http", Path: "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}})
}

// direct asks an image's own registry.
func (i *images) direct(host string, how sandbox.Pull) (remotes.Resolver, error) {
	at := url.URL{Scheme: "https", Host: host}
	if host == "docker.io" {
		at.Host = "registry-1.docker.io"
	}
	configured, trusted := i.cfg.Upstreams[host]
	if trusted {
		parsed, err := url.Parse(configured)
		if err != nil {
			return nil, err
		}
		at = *parsed
	} else if slices.Contains(i.cfg.Insecure, host) {
		at.Scheme, trusted = "http", true
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.ResponseHeaderTimeout = resolveTimeout
	if !trusted {
		transport.DialContext = (&net.Dialer{Timeout: 5 * time.Second, Control: i.outside}).DialContext
	}
	c := &http.Client{Transport: transport}
	authorizer := docker.NewDockerAuthorizer(docker.WithAuthClient(c), docker.WithAuthCreds(func(asked string) (string, string, error) {
		if asked != at.Host { // nobody else gets them
			return "", "", nil
		}
		return how.Username, how.Password, nil
	}))
	return docker.NewResolver(docker.ResolverOptions{Hosts: func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{{
			Client: c, Authorizer: authorizer, Host: at.Host, Scheme: at.Scheme, Path: strings.TrimSuffix(at.Path, "/") + "/v2",
			Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
		}}, nil
	}}), nil
}

// outside keeps the names of images, which jobs choose, from making the daemon speak to the machine's own services, to
// sandboxes, or to what is only on the link, such as a cloud's metadata service.
func (i *images) outside(_, address string, _ syscall.RawConn) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	addr := at.Addr().Unmap()
	if addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || i.cfg.Subnet.Contains(addr) {
		return fmt.Errorf("%w: %s is no address of a registry: registry.mirror.upstreams lists those that are nevertheless", sandbox.ErrDenied, addr)
	}
	return nil
}
