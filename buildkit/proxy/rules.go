package proxy

import (
	"context"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// rule says what a job may do with one method.
type rule struct {
	metadata func(*Proxy, context.Context, metadata.MD) error
	// request judges, and may change, the only message of a client. A method that streams has none.
	request func(context.Context, *Proxy, []byte) ([]byte, error)
	streams bool
	// response says which messages the client gets; nil: all.
	response func(*Proxy, []byte) (bool, error)
	// call replaces the forwarding of a call that has one answer.
	call  func(p *Proxy, ctx context.Context, c *grpc.ClientConn, method string, request []byte) ([]byte, error)
	limit func(*Proxy) chan struct{} // of how many run at once; nil: none
}

const (
	controlService = "/moby.buildkit.v1.Control/"
	bridgeService  = "/moby.buildkit.v1.frontend.LLBBridge/"
	contentService = "/containerd.services.content.v1.Content/"
)

// rules are all that a job may call. Not among them: Prune and DiskUsage, which are the scope's and not the
// job's; NewContainer and ExecProcess, with which a client runs processes beside any build.
var rules = map[string]rule{
	"/grpc.health.v1.Health/Check": {},

	controlService + "Info":               {},
	controlService + "ListWorkers":        {},
	controlService + "Session":            {metadata: (*Proxy).openSession, streams: true, limit: func(p *Proxy) chan struct{} { return p.open }},
	controlService + "Solve":              {request: decoded((*Proxy).checkSolve), call: solve, limit: func(p *Proxy) chan struct{} { return p.solves }},
	controlService + "Status":             {request: decoded((*Proxy).checkStatus)},
	controlService + "ListenBuildHistory": {response: (*Proxy).ownHistory},
	controlService + "UpdateBuildHistory": {request: decoded((*Proxy).checkHistoryUpdate)},

	bridgeService + "Ping":               {metadata: (*Proxy).ownBuild},
	bridgeService + "Solve":              {metadata: (*Proxy).ownBuild, request: decoded((*Proxy).checkBridgeSolve), call: solveServingSyntax},
	bridgeService + "ResolveImageConfig": {metadata: (*Proxy).ownBuild, request: decoded((*Proxy).checkImageConfig)},
	bridgeService + "ResolveSourceMeta":  {metadata: (*Proxy).ownBuild, request: decoded((*Proxy).checkSourceMeta)},
	bridgeService + "ReadFile":           {metadata: (*Proxy).ownBuild},
	bridgeService + "ReadDir":            {metadata: (*Proxy).ownBuild},
	bridgeService + "StatFile":           {metadata: (*Proxy).ownBuild},
	bridgeService + "Evaluate":           {metadata: (*Proxy).ownBuild},
	bridgeService + "Inputs":             {metadata: (*Proxy).ownBuild},
	bridgeService + "Return":             {metadata: (*Proxy).ownBuild, request: decoded((*Proxy).checkReturn)},
	bridgeService + "Warn":               {metadata: (*Proxy).ownBuild},

	// With these buildx reads the provenance of a build, for --metadata-file.
	contentService + "Info": {request: decoded((*Proxy).checkBlobInfo)},
	contentService + "Read": {request: decoded((*Proxy).checkBlobRead)},
}

// message is a pointer to a protobuf struct.
type message[T any] interface {
	*T
	proto.Message
}

// decoded makes a check of a message one of its bytes. What the check leaves of the message goes on, without
// what this code does not know: that could not be judged.
func decoded[T any, M message[T]](check func(*Proxy, context.Context, M) error) func(context.Context, *Proxy, []byte) ([]byte, error) {
	return func(ctx context.Context, p *Proxy, data []byte) ([]byte, error) {
		m := M(new(T))
		if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(data, m); err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "read the request: %v", err)
		}
		if err := check(p, ctx, m); err != nil {
			return nil, err
		}
		return proto.Marshal(m)
	}
}

// The metadata of BuildKit's clients (session/session.go, client/buildid/metadata.go).
const (
	sessionKey = "x-docker-expose-session-uuid"
	buildKey   = "buildkit-controlapi-buildid"
)

func only(md metadata.MD, key string) (string, error) {
	if v := md.Get(key); len(v) == 1 {
		return v[0], nil
	}
	return "", status.Errorf(codes.InvalidArgument, "the call has not one %s", key)
}

func (p *Proxy) openSession(_ context.Context, md metadata.MD) error {
	id, err := only(md, sessionKey)
	if err != nil {
		return err
	}
	if !p.sessions.add(id) {
		return status.Error(codes.ResourceExhausted, "too many sessions, or a bad name for one")
	}
	return nil
}

// ownBuild waits for the build that a call belongs to: a client starts it at the same time.
func (p *Proxy) ownBuild(ctx context.Context, md metadata.MD) error {
	id, err := only(md, buildKey)
	if err != nil {
		return err
	}
	return p.awaitOwn(ctx, id)
}

func (p *Proxy) awaitOwn(ctx context.Context, build string) error {
	if p.builds.await(ctx, build, p.patience) {
		return nil
	}
	return p.own(build)
}

func (p *Proxy) own(build string) error {
	if !p.builds.has(build) {
		return foreign("build", build)
	}
	return nil
}

// checkSession waits for a session that a request names to be opened by the job.
func (p *Proxy) checkSession(ctx context.Context, id string) error {
	if id != "" && !p.sessions.await(ctx, id, p.patience) {
		return foreign("session", id)
	}
	return nil
}

func (p *Proxy) checkStatus(ctx context.Context, r *control.StatusRequest) error {
	return p.awaitOwn(ctx, r.Ref)
}

func (p *Proxy) checkHistoryUpdate(_ context.Context, r *control.UpdateBuildHistoryRequest) error {
	return p.own(r.Ref)
}

// ownHistory lets through what concerns the job's builds, and notes the blobs that it names.
func (p *Proxy) ownHistory(data []byte) (bool, error) {
	var event control.BuildHistoryEvent
	if err := proto.Unmarshal(data, &event); err != nil {
		return false, err
	}
	r := event.Record
	if r == nil || !p.builds.has(r.Ref) {
		return false, nil
	}
	results := []*control.BuildResultInfo{r.Result}
	for _, result := range r.Results {
		results = append(results, result)
	}
	blobs := []*control.Descriptor{r.Logs, r.Trace, r.ExternalError}
	for _, result := range results {
		blobs = append(blobs, result.GetResultDeprecated())
		blobs = append(blobs, result.GetAttestations()...)
		for _, d := range result.GetResults() {
			blobs = append(blobs, d)
		}
	}
	for _, d := range blobs {
		if d != nil {
			p.blobs.add(d.Digest)
		}
	}
	return true, nil
}

func (p *Proxy) checkBlob(digest string) error {
	if !p.blobs.has(digest) {
		return foreign("blob", digest)
	}
	return nil
}

func (p *Proxy) checkBlobInfo(_ context.Context, r *contentapi.InfoRequest) error {
	return p.checkBlob(r.Digest)
}

func (p *Proxy) checkBlobRead(_ context.Context, r *contentapi.ReadContentRequest) error {
	return p.checkBlob(r.Digest)
}

// checkReturn judges a result that a client gives its build.
func (p *Proxy) checkReturn(ctx context.Context, r *gateway.ReturnRequest) error {
	refs := []*gateway.Ref{r.Result.GetRef()}
	for _, ref := range r.Result.GetRefs().GetRefs() {
		refs = append(refs, ref)
	}
	for _, all := range r.Result.GetAttestations() {
		for _, a := range all.GetAttestation() {
			refs = append(refs, a.GetRef())
		}
	}
	for _, ref := range refs {
		if err := p.checkDefinition(ctx, ref.GetDef()); err != nil {
			return err
		}
	}
	return nil
}
