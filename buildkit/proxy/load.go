package proxy

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/distribution/reference"
	control "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Engine is the Docker Engine beside a job, which gets what the job builds from a registry.
type Engine interface {
	// Repository is where the worker pushes what the engine is to have: HOST/PATH, of a registry that speaks plain
	// HTTP. Its error says why there is none now.
	Repository(ctx context.Context) (string, error)
	// Load returns when the engine has an image of that repository, under the names: normalized ones, with tags. An
	// image without a name is found by its digest.
	Load(ctx context.Context, repository string, image digest.Digest, names []string) error
}

// loadMark is what buildx says of an image that it loads into an engine with containerd's image store, and of no
// image that goes to a file (docker/buildx, build/opt.go).
const loadMark = "prefer-image-digest"

// loadOptions are those of BuildKit's "oci" exporter that its "image" exporter understands the same; beside them
// there are annotations.
var loadOptions = []string{
	string(exptypes.OptKeyLayerCompression), string(exptypes.OptKeyCompressionLevel), string(exptypes.OptKeyForceCompression),
	string(exptypes.OptKeyOCITypes), string(exptypes.OptKeyOCIArtifact), string(exptypes.OptKeySourceDateEpoch),
	string(exptypes.OptKeyRewriteTimestamp), string(exptypes.OptKeyForceInlineAttestations),
}

// load is an image that the job's engine gets from a registry.
type load struct {
	repository string
	names      []string
}

// divert makes of an export that buildx would load as a tar a push to a repository of the daemon's choice. It
// returns nil if there is none, or if it must stay as it is.
func (p *Proxy) divert(ctx context.Context, r *control.SolveRequest) *load {
	if p.cfg.Engine == nil {
		return nil
	}
	i := slices.IndexFunc(r.Exporters, loads)
	if i < 0 || !plain(r.FrontendAttrs) || otherEngine(ctx, p.cfg.EngineAt) {
		return nil
	}
	for j, e := range r.Exporters { // one answer has the digest of one image
		if j != i && e.GetType() != client.ExporterLocal && e.GetType() != client.ExporterTar {
			return nil
		}
	}
	e := r.Exporters[i]
	names, ok := namesOf(e.Attrs[string(exptypes.OptKeyName)])
	if !ok {
		return nil
	}
	attrs := map[string]string{}
	for key, value := range e.Attrs {
		switch {
		case key == string(exptypes.OptKeyName), key == loadMark:
		case slices.Contains(loadOptions, key), strings.HasPrefix(key, "annotation"):
			attrs[key] = value
		default:
			return nil
		}
	}
	repository, err := p.cfg.Engine.Repository(ctx)
	if err != nil {
		p.cfg.Log.Warn("an image is loaded as a tar, which takes longer", "error", err)
		return nil
	}
	if _, ok := attrs[string(exptypes.OptKeyForceInlineAttestations)]; !ok {
		attrs[string(exptypes.OptKeyForceInlineAttestations)] = "false" // as "oci" has it
	}
	attrs[string(exptypes.OptKeyName)] = repository
	attrs[string(exptypes.OptKeyPush)] = "true"
	attrs[string(exptypes.OptKeyPushByDigest)] = "true" // no tags to clean up
	attrs[string(exptypes.OptKeyInsecure)] = "true"
	r.Exporters[i] = &control.Exporter{Type: client.ExporterImage, Attrs: attrs}
	r.ExporterDeprecated, r.ExporterAttrsDeprecated = "", nil // the same once more, for old workers
	return &load{repository, names}
}

// loads reports whether buildx loads what an exporter writes into the engine that it finds by itself.
func loads(e *control.Exporter) bool {
	return e.GetType() == client.ExporterOCI && e.Attrs[loadMark] == "true"
}

// plain reports whether a frontend makes a single image of the machine's platform, which is all that an engine
// pulls by itself.
func plain(attrs map[string]string) bool {
	if platform := attrs["platform"]; platform != "" && platform != "linux/"+runtime.GOARCH {
		return false
	}
	for key, value := range attrs {
		if strings.HasPrefix(key, "attest:") && !slices.Contains(strings.Split(value, ","), "inline-only=true") {
			return false
		}
	}
	return true
}

// namesOf reads the names of an image as BuildKit's "oci" exporter does (exporter/oci/export.go); what that has
// something to say about is left to it.
func namesOf(list string) (names []string, ok bool) {
	if list == "" {
		return nil, true
	}
	for name := range strings.SplitSeq(list, ",") {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			return nil, false
		}
		if _, ok := named.(reference.Digested); ok {
			return nil, false
		}
		names = append(names, reference.TagNameOnly(named).String())
	}
	return names, true
}

// solve starts a build, and has what buildx would load loaded without a detour through the client.
func solve(p *Proxy, ctx context.Context, c *grpc.ClientConn, method string, request []byte) ([]byte, error) {
	var r control.SolveRequest
	if err := proto.Unmarshal(request, &r); err != nil {
		return nil, err
	}
	l := p.divert(ctx, &r)
	if l == nil {
		return explained(p, ctx, c, method, request)
	}
	request, err := proto.Marshal(&r)
	if err != nil {
		return nil, err
	}
	answer, err := explained(p, ctx, c, method, request)
	if err != nil {
		return nil, err
	}
	var built control.SolveResponse
	if err := proto.Unmarshal(answer, &built); err != nil {
		return nil, fmt.Errorf("read the builder's answer: %w", err)
	}
	image, err := digest.Parse(built.ExporterResponse[exptypes.ExporterImageDigestKey])
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the builder does not say what it has built: %v", err)
	}
	if err := p.cfg.Engine.Load(ctx, l.repository, image, l.names); err != nil {
		if ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		return nil, status.Errorf(codes.FailedPrecondition, "the image is built, but the engine of this sandbox cannot load it: %v", err)
	}
	delete(built.ExporterResponse, exptypes.ExporterImageNameKey)
	if len(l.names) > 0 {
		built.ExporterResponse[exptypes.ExporterImageNameKey] = strings.Join(l.names, ",")
	}
	return proto.Marshal(&built)
}
