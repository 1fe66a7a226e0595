package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/grpcerrors"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	dockerfileFrontend = "dockerfile.v0"
	gatewayFrontend    = "gateway.v0" // runs an image as a frontend
)

// What a build may write: "local", "tar", "oci" and "docker" go to the client by its session, images to
// registries with the credentials of that session.
var (
	exporters = []string{"image", "docker", "oci", "tar", "local"}
	caches    = []string{"registry", "inline", "local", "gha", "s3", "azblob"}
)

// checkSolve judges a build that a client starts, and makes it the job's.
func (p *Proxy) checkSolve(ctx context.Context, r *control.SolveRequest) error {
	if len(r.Entitlements) > 0 {
		return denied("use the entitlement %q", r.Entitlements[0])
	}
	if r.ProxyNetwork {
		return denied("use a network of its own for steps")
	}
	var err error
	if r.Frontend, err = p.checkFrontend(r.Frontend, r.FrontendAttrs); err != nil {
		return err
	}
	if err := p.checkFrontendSessions(ctx, r.FrontendAttrs); err != nil {
		return err
	}
	types := []string{r.ExporterDeprecated}
	for _, e := range r.Exporters {
		types = append(types, e.GetType())
	}
	for _, t := range types {
		if t != "" && !slices.Contains(exporters, t) {
			return denied("use the exporter %q", t)
		}
	}
	for _, entry := range append(r.Cache.GetExports(), r.Cache.GetImports()...) {
		if !slices.Contains(caches, entry.GetType()) {
			return denied("use the cache type %q", entry.GetType())
		}
	}
	if err := p.checkDefinitions(ctx, r.Definition, r.FrontendInputs); err != nil {
		return err
	}
	for _, id := range []string{r.Session, r.SourcePolicySession} {
		if err := p.checkSession(ctx, id); err != nil {
			return err
		}
	}
	// The worker makes no difference between a name that is taken and one that is not; other jobs know only
	// their own, which are random.
	if !p.builds.add(r.Ref) {
		return status.Error(codes.ResourceExhausted, "too many builds in one job, or a bad name for one")
	}
	return nil
}

// checkBridgeSolve judges what a client asks for within a build.
func (p *Proxy) checkBridgeSolve(ctx context.Context, r *gateway.SolveRequest) (err error) {
	if r.Frontend, err = p.checkFrontend(r.Frontend, r.FrontendOpt); err != nil {
		return err
	}
	if err := p.checkFrontendSessions(ctx, r.FrontendOpt); err != nil {
		return err
	}
	for _, entry := range r.CacheImports {
		if !slices.Contains(caches, entry.GetType()) {
			return denied("use the cache type %q", entry.GetType())
		}
	}
	return p.checkDefinitions(ctx, r.Definition, r.FrontendInputs)
}

// checkFrontend returns the frontend that serves a request: none, or the built-in one.
func (p *Proxy) checkFrontend(name string, attrs map[string]string) (string, error) {
	if parent := attrs["cgroup-parent"]; parent != "" {
		return "", denied("use the cgroup %q", parent)
	}
	switch mode := attrs["force-network-mode"]; mode {
	case "", "sandbox", "default", "none":
	default:
		return "", denied("use the network mode %q", mode)
	}
	switch name {
	case "", dockerfileFrontend:
		if _, named := attrs["cmdline"]; !named && attrs["build-arg:BUILDKIT_SYNTAX"] != "" {
			return name, p.serve(attrs, attrs["build-arg:BUILDKIT_SYNTAX"])
		}
		return name, nil
	case gatewayFrontend:
		return dockerfileFrontend, p.serve(attrs, attrs["source"])
	}
	return "", denied("use the frontend %q", name)
}

// serve has the built-in frontend answer for an image, if it may.
func (p *Proxy) serve(attrs map[string]string, image string) error {
	if !p.serves(image) {
		return denied("run the foreign frontend %q (# syntax=, BUILDKIT_SYNTAX)", image)
	}
	delete(attrs, "source")
	attrs["cmdline"] = image // set, it keeps the frontend from looking for a "# syntax" line
	return nil
}

// serves reports whether the built-in frontend answers for an image, whatever its tag.
func (p *Proxy) serves(ref string) bool {
	ref, _, _ = strings.Cut(strings.TrimSpace(ref), " ")
	image, _, _ := strings.Cut(ref, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		image = image[:i]
	}
	return image == "docker/dockerfile" || image == "docker.io/docker/dockerfile" || slices.Contains(p.cfg.Frontends, image)
}

// checkFrontendSessions judges the sessions that a frontend is told to take directories from.
func (p *Proxy) checkFrontendSessions(ctx context.Context, attrs map[string]string) error {
	for key, id := range attrs {
		if strings.HasPrefix(key, "local-sessionid:") {
			if err := p.checkSession(ctx, id); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Proxy) checkDefinitions(ctx context.Context, def *pb.Definition, inputs map[string]*pb.Definition) error {
	if err := p.checkDefinition(ctx, def); err != nil {
		return err
	}
	for name, def := range inputs {
		if err := p.checkDefinition(ctx, def); err != nil {
			return fmt.Errorf("input %q: %w", name, err)
		}
	}
	return nil
}

func (p *Proxy) checkImageConfig(ctx context.Context, r *gateway.ResolveImageConfigRequest) error {
	return p.checkSession(ctx, r.SessionID)
}

func (p *Proxy) checkSourceMeta(ctx context.Context, r *gateway.ResolveSourceMetaRequest) error {
	return p.checkSource(ctx, r.Source)
}

// invoke makes a call that has one answer.
func invoke(ctx context.Context, c *grpc.ClientConn, method string, request []byte) (answer []byte, err error) {
	err = c.Invoke(ctx, method, &request, &answer)
	return answer, err
}

// foreignFrontend is how the worker says that it runs no images as frontends (solver/llbsolver/provenance.go).
const foreignFrontend = "invalid frontend: " + gatewayFrontend

// explained is invoke, with an error that says how to mend a foreign frontend.
func explained(_ *Proxy, ctx context.Context, c *grpc.ClientConn, method string, request []byte) ([]byte, error) {
	answer, err := invoke(ctx, c, method, request)
	return answer, explain(err)
}

func explain(err error) error {
	if err == nil || !strings.Contains(err.Error(), foreignFrontend) {
		return err
	}
	return denied("run a foreign frontend: name none but docker/dockerfile in the line \"# syntax=\" of the Dockerfile, or builder.frontends in runnerd's configuration")
}

// solveServingSyntax solves, and has the built-in frontend serve a "# syntax" line that names it. That line is in
// a file that the client sends to the worker alone: the worker's refusal shows it.
func solveServingSyntax(p *Proxy, ctx context.Context, c *grpc.ClientConn, method string, request []byte) ([]byte, error) {
	answer, err := invoke(ctx, c, method, request)
	if err == nil || !strings.Contains(err.Error(), foreignFrontend) {
		return answer, err
	}
	for _, source := range errdefs.Sources(grpcerrors.FromGRPC(err)) {
		ref, _, _, ok := parser.DetectSyntax(source.GetInfo().GetData())
		if !ok {
			continue
		}
		var r gateway.SolveRequest
		if err := proto.Unmarshal(request, &r); err != nil {
			return nil, err
		}
		if r.FrontendOpt == nil {
			r.FrontendOpt = map[string]string{}
		}
		if err := p.serve(r.FrontendOpt, ref); err != nil {
			return nil, err
		}
		if request, err = proto.Marshal(&r); err != nil {
			return nil, err
		}
		return invoke(ctx, c, method, request)
	}
	return nil, explain(err)
}
