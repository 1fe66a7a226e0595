package proxy

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	control "github.com/moby/buildkit/api/services/control"
	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// buildkitd stands for a worker: it notes what reaches it, and answers with an empty message.
type buildkitd struct {
	socket string
	server *grpc.Server

	mu     sync.Mutex
	calls  []string
	solve  *control.SolveRequest // the last
	built  map[string]string     // what the answer to one says
	leases int
	ended  int // of the calls to Status, which go on for as long as their clients
}

func newBuildkitd(t *testing.T) *buildkitd {
	b := &buildkitd{socket: t.TempDir() + "/s"}
	b.server = grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(b.handle))
	l, err := net.Listen("unix", b.socket)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = b.server.Serve(l) }()
	t.Cleanup(b.server.Stop)
	return b
}

func (b *buildkitd) handle(_ any, s grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(s)
	b.mu.Lock()
	b.calls = append(b.calls, method)
	b.mu.Unlock()
	var request, answer []byte
	if err := s.RecvMsg(&request); err != nil {
		return nil
	}
	switch method {
	case controlService + "Solve":
		r := &control.SolveRequest{}
		if err := proto.Unmarshal(request, r); err != nil {
			return err
		}
		b.mu.Lock()
		b.solve = r
		var err error
		answer, err = proto.Marshal(&control.SolveResponse{ExporterResponse: b.built})
		b.mu.Unlock()
		if err != nil {
			return err
		}
	case controlService + "Status":
		<-s.Context().Done()
		b.mu.Lock()
		b.ended++
		b.mu.Unlock()
		return s.Context().Err()
	case controlService + "ListenBuildHistory":
		for _, ref := range []string{"theirs", "mine"} {
			data, err := proto.Marshal(&control.BuildHistoryEvent{Record: &control.BuildHistoryRecord{Ref: ref, Logs: &control.Descriptor{Digest: "sha256:" + ref}}})
			if err != nil {
				return err
			}
			if err := s.SendMsg(&data); err != nil {
				return err
			}
		}
		return nil
	}
	return s.SendMsg(&answer)
}

func (b *buildkitd) Dial(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", b.socket)
}

func (b *buildkitd) Close(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases--
	return nil
}

func (b *buildkitd) lease(context.Context) (Worker, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.leases++
	return &once{b, sync.Once{}}, nil
}

// once is a lease that is safe to give back twice.
type once struct {
	*buildkitd
	closed sync.Once
}

func (o *once) Close(ctx context.Context) error {
	o.closed.Do(func() { _ = o.buildkitd.Close(ctx) })
	return nil
}

// dial connects to a socket as clients do.
func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func serve(t *testing.T, cfg Config) (*Proxy, *grpc.ClientConn) {
	t.Helper()
	p := New(cfg)
	p.patience = 50 * time.Millisecond
	socket := t.TempDir() + "/p"
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	p.Serve(l)
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p, dial(t, socket)
}

// call calls a method with an empty message, of the job's own build.
func call(ctx context.Context, c *grpc.ClientConn, method string) error {
	var request, answer []byte
	return c.Invoke(metadata.AppendToOutgoingContext(ctx, buildKey, "mine"), method, &request, &answer, grpc.ForceCodec(rawCodec{}))
}

// TestMethods calls every method of the services that a worker has: through the proxy only those in rules reach
// it, at its own socket all of them.
func TestMethods(t *testing.T) {
	var methods []string
	for _, service := range []grpc.ServiceDesc{control.Control_ServiceDesc, gateway.LLBBridge_ServiceDesc, contentapi.Content_ServiceDesc} {
		for _, m := range service.Methods {
			methods = append(methods, "/"+service.ServiceName+"/"+m.MethodName)
		}
		for _, m := range service.Streams {
			methods = append(methods, "/"+service.ServiceName+"/"+m.StreamName)
		}
	}
	methods = append(methods, "/containerd.services.leases.v1.Leases/List", "/no.such/Method")
	b := newBuildkitd(t)
	p, through := serve(t, Config{Lease: b.lease})
	p.builds.add("mine")
	direct := dial(t, b.socket)
	for _, method := range methods {
		if _, ok := rules[method]; ok {
			continue
		}
		if err := call(t.Context(), through, method); status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "--builder default") {
			t.Errorf("%s: %v", method, err)
		}
		if slices.Contains(b.calls, method) {
			t.Errorf("%s reached the worker", method)
		}
		if err := call(t.Context(), direct, method); err != nil || !slices.Contains(b.calls, method) {
			t.Errorf("%s, directly: %v", method, err)
		}
	}
	for method := range rules {
		if !slices.Contains(methods, method) && !strings.HasPrefix(method, "/grpc.health") {
			t.Errorf("%s is no method of a worker", method)
		}
	}
}

func TestSolve(t *testing.T) {
	b := newBuildkitd(t)
	p, c := serve(t, Config{Lease: b.lease, Frontends: []string{"our/frontend"}})
	p.sessions.add("mine")
	client := control.NewControlClient(c)
	for name, x := range map[string]struct {
		r    *control.SolveRequest
		want string // part of the refusal
	}{
		"plain":               {&control.SolveRequest{Session: "mine"}, ""},
		"built-in frontend":   {&control.SolveRequest{Frontend: dockerfileFrontend}, ""},
		"syntax":              {&control.SolveRequest{Frontend: gatewayFrontend, FrontendAttrs: map[string]string{"source": "docker/dockerfile:1"}}, ""},
		"allowed frontend":    {&control.SolveRequest{Frontend: gatewayFrontend, FrontendAttrs: map[string]string{"source": "our/frontend@sha256:0"}}, ""},
		"foreign frontend":    {&control.SolveRequest{Frontend: gatewayFrontend, FrontendAttrs: map[string]string{"source": "evil/frontend"}}, "evil/frontend"},
		"looks allowed":       {&control.SolveRequest{Frontend: gatewayFrontend, FrontendAttrs: map[string]string{"source": "docker/dockerfile.evil/x:1"}}, "foreign frontend"},
		"no attributes":       {&control.SolveRequest{Frontend: gatewayFrontend}, "foreign frontend"},
		"argument":            {&control.SolveRequest{Frontend: dockerfileFrontend, FrontendAttrs: map[string]string{"build-arg:BUILDKIT_SYNTAX": "evil/frontend"}}, "evil/frontend"},
		"unknown frontend":    {&control.SolveRequest{Frontend: "x"}, "frontend"},
		"entitlement":         {&control.SolveRequest{Entitlements: []string{"network.host"}}, "network.host"},
		"cgroup":              {&control.SolveRequest{FrontendAttrs: map[string]string{"cgroup-parent": "/"}}, "cgroup"},
		"network":             {&control.SolveRequest{FrontendAttrs: map[string]string{"force-network-mode": "host"}}, "network"},
		"exporter":            {&control.SolveRequest{Exporters: []*control.Exporter{{Type: "moby"}}}, "exporter"},
		"deprecated exporter": {&control.SolveRequest{ExporterDeprecated: "moby"}, "exporter"},
		"cache":               {&control.SolveRequest{Cache: &control.CacheOptions{Exports: []*control.CacheOptionsEntry{{Type: "x"}}}}, "cache type"},
		"foreign context":     {&control.SolveRequest{FrontendAttrs: map[string]string{"local-sessionid:context": "theirs"}}, "not this job's"},
		"foreign session":     {&control.SolveRequest{Session: "theirs"}, "not this job's"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x.r.Ref = name
			_, err := client.Solve(t.Context(), x.r)
			if x.want == "" && err != nil || x.want != "" && (status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("got %v, want %q", err, x.want)
			}
			if p.builds.has(name) != (x.want == "") {
				t.Error("the build belongs to the job: ", p.builds.has(name))
			}
		})
	}
}

func TestServedSyntaxNeedsNoImage(t *testing.T) {
	b := newBuildkitd(t)
	_, c := serve(t, Config{Lease: b.lease})
	_, err := control.NewControlClient(c).Solve(t.Context(), &control.SolveRequest{
		Ref: "r", Frontend: gatewayFrontend, FrontendAttrs: map[string]string{"source": "docker/dockerfile:1", "filename": "f"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if b.solve.Frontend != dockerfileFrontend || b.solve.FrontendAttrs["cmdline"] == "" || b.solve.FrontendAttrs["source"] != "" || b.solve.FrontendAttrs["filename"] != "f" {
		t.Errorf("the worker got %v", b.solve)
	}
}

// TestOthersBuilds tries to follow, change and read another job's build.
func TestOthersBuilds(t *testing.T) {
	b := newBuildkitd(t)
	p, c := serve(t, Config{Lease: b.lease})
	p.builds.add("mine")
	client := control.NewControlClient(c)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()

	follow, err := client.Status(ctx, &control.StatusRequest{Ref: "theirs"})
	if err == nil {
		_, err = follow.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("status: %v", err)
	}
	if _, err := client.UpdateBuildHistory(ctx, &control.UpdateBuildHistoryRequest{Ref: "theirs", Delete: true}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("history: %v", err)
	}
	of := metadata.AppendToOutgoingContext(ctx, buildKey, "theirs")
	if _, err := gateway.NewLLBBridgeClient(c).ReadFile(of, &gateway.ReadFileRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("read a file: %v", err)
	}
	events, err := client.ListenBuildHistory(ctx, &control.BuildHistoryRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for {
		e, err := events.Recv()
		if err != nil {
			break
		}
		seen = append(seen, e.Record.Ref)
	}
	if !slices.Equal(seen, []string{"mine"}) {
		t.Errorf("history shows %q", seen)
	}
	content := contentapi.NewContentClient(c)
	if _, err := content.Info(ctx, &contentapi.InfoRequest{Digest: "sha256:mine"}); err != nil {
		t.Errorf("a blob of its own: %v", err)
	}
	if _, err := content.Info(ctx, &contentapi.InfoRequest{Digest: "sha256:theirs"}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a blob of another job: %v", err)
	}
}

// TestClose ends a job in the middle of a build.
func TestClose(t *testing.T) {
	b := newBuildkitd(t)
	p, c := serve(t, Config{Lease: b.lease})
	p.builds.add("mine")
	if b.leases != 0 {
		t.Error("a worker was leased for a job that builds nothing")
	}
	follow, err := control.NewControlClient(c).Status(t.Context(), &control.StatusRequest{Ref: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	reaches := func(what string, done func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			b.mu.Lock()
			ok := done()
			b.mu.Unlock()
			if ok {
				return
			}
		}
		t.Error(what)
	}
	reaches("the call does not reach the worker", func() bool { return len(b.calls) == 1 && b.leases == 1 })
	if err := errors.Join(p.Close(t.Context()), p.Close(t.Context())); err != nil {
		t.Error(err)
	}
	if _, err := follow.Recv(); err == nil {
		t.Error("the call goes on")
	}
	reaches("the call goes on in the worker, or its lease is kept", func() bool { return b.ended == 1 && b.leases == 0 })
}

func TestNoWorker(t *testing.T) {
	_, c := serve(t, Config{Lease: func(context.Context) (Worker, error) { return nil, errors.New("no room") }})
	_, err := control.NewControlClient(c).Info(t.Context(), &control.InfoRequest{})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "no room") || !strings.Contains(err.Error(), "--builder default") {
		t.Error(err)
	}
}

// TestWorkerDies holds that the next call after a worker's death gets another worker.
func TestWorkerDies(t *testing.T) {
	first, second := newBuildkitd(t), newBuildkitd(t)
	workers := []*buildkitd{first, second}
	_, c := serve(t, Config{Lease: func(ctx context.Context) (Worker, error) {
		w := workers[0]
		workers = workers[1:]
		return w.lease(ctx)
	}})
	client := control.NewControlClient(c)
	if _, err := client.Info(t.Context(), &control.InfoRequest{}); err != nil {
		t.Fatal(err)
	}
	first.server.Stop()
	var err error
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, err = client.Info(t.Context(), &control.InfoRequest{}); err == nil {
			break
		}
	}
	if err != nil || first.leases != 0 || second.leases != 1 {
		t.Errorf("%v; leases %d and %d", err, first.leases, second.leases)
	}
}
