package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	apitypes "github.com/moby/buildkit/api/types"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"google.golang.org/grpc"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// machine makes sandboxes that are none, with a buildkitd that only lists its workers. It is strict: two live
// sandboxes of one name are an error, as are uses after Close.
type machine struct {
	t      *testing.T
	labels map[string]string // of the buildkitd's worker
	broken string            // what buildkitd says instead of starting
	slow   chan struct{}     // Open waits for it
	base   error             // of a sandbox that is to have a Base
	cloner sandbox.Exit      // of the cloner

	mu     sync.Mutex
	live   map[string]*fake
	opened []sandbox.Spec
	disks  map[string]int64                   // by name
	used   int64                              // bytes on each sandbox's disk
	prunes []*controlapi.PruneRequest         // what was removed, in order
	cached map[string]*controlapi.UsageRecord // what each worker's BuildKit has
}

func newMachine(t *testing.T) *machine {
	return &machine{t: t, live: map[string]*fake{}, disks: map[string]int64{}, cached: map[string]*controlapi.UsageRecord{}, labels: map[string]string{
		"org.mobyproject.buildkit.worker.snapshotter":      "overlayfs",
		"org.mobyproject.buildkit.worker.oci.process-mode": "sandbox",
	}}
}

func (m *machine) workers(idle time.Duration) *Workers {
	ws := NewWorkers(WorkersConfig{Open: m.open, Image: "image", IdleTimeout: idle})
	m.t.Cleanup(ws.Close)
	return ws
}

func (m *machine) open(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
	if m.slow != nil {
		select {
		case <-m.slow:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[spec.ID] != nil {
		m.t.Errorf("two sandboxes are called %s", spec.ID)
	}
	if err := sandbox.CheckID(spec.ID); err != nil || spec.State != "" && spec.Base != nil || spec.Volumes[StateVolume] != StatePath {
		m.t.Errorf("spec %+v: %v", spec, err)
	}
	if spec.Base != nil && m.base != nil {
		return nil, m.base
	}
	if spec.State != "" {
		m.disks[spec.State] = 1000
	}
	sb := &fake{m: m, id: spec.ID, socket: filepath.Join(m.t.TempDir(), "sock"), crash: make(chan struct{})}
	m.live[spec.ID] = sb
	m.opened = append(m.opened, spec)
	return sb, nil
}

func (m *machine) count() (live, opened int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.live), len(m.opened)
}

type fake struct {
	m      *machine
	id     string
	socket string
	crash  chan struct{} // closed: buildkitd dies
	term   bool          // it was asked to end
	config string
}

func (f *fake) ID() string { return f.id }
func (f *fake) Usage(context.Context) (sandbox.Usage, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return sandbox.Usage{Disk: f.m.used}, nil
}

func (f *fake) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, network, f.socket)
}

func (f *fake) Listen(context.Context, string, string) (*os.File, error) {
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		return nil, err
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	defer l.Close()
	return l.(*net.UnixListener).File()
}

func (f *fake) Close(context.Context) error {
	time.Sleep(10 * time.Millisecond) // long enough for someone to start the next one too early
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.live[f.id] != f {
		f.m.t.Errorf("%s was closed twice", f.id)
	}
	delete(f.m.live, f.id)
	return nil
}

func (f *fake) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if p.Args[0] == clonerPath {
		return f.m.cloner, nil
	}
	if !slices.Contains(p.Args, "buildkitd") {
		text, err := io.ReadAll(p.Stdin)
		f.config = string(text)
		return sandbox.Exit{}, err
	}
	if f.m.broken != "" {
		_, err := fmt.Fprintln(p.Stderr, f.m.broken)
		return sandbox.Exit{Code: 1}, err
	}
	l, err := net.FileListener(p.Files[0])
	if err != nil {
		return sandbox.Exit{}, err
	}
	server := grpc.NewServer()
	controlapi.RegisterControlServer(server, control{m: f.m})
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	select {
	case <-ctx.Done():
		return sandbox.Exit{}, context.Cause(ctx)
	case <-f.crash:
		return sandbox.Exit{Code: 2}, nil
	case <-p.Signals:
		f.term = true
		return sandbox.Exit{}, nil
	}
}

type control struct {
	controlapi.UnimplementedControlServer
	m *machine
}

func (c control) ListWorkers(context.Context, *controlapi.ListWorkersRequest) (*controlapi.ListWorkersResponse, error) {
	return &controlapi.ListWorkersResponse{Record: []*apitypes.WorkerRecord{{ID: "w", Labels: c.m.labels}}}, nil
}

func (c control) DiskUsage(context.Context, *controlapi.DiskUsageRequest) (*controlapi.DiskUsageResponse, error) {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	return &controlapi.DiskUsageResponse{Record: slices.Collect(maps.Values(c.m.cached))}, nil
}

// Prune removes what the filter names, or all.
func (c control) Prune(r *controlapi.PruneRequest, to controlapi.Control_PruneServer) error {
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	c.m.prunes, c.m.used = append(c.m.prunes, r), 0
	for id, record := range c.m.cached {
		if len(r.Filter) > 0 && !slices.Contains(r.Filter, "id=="+id) {
			continue
		}
		delete(c.m.cached, id)
		if err := to.Send(record); err != nil {
			return err
		}
	}
	return nil
}

// StateDisks and RemoveState make the machine the Disks.
func (m *machine) StateDisks() (all []sandbox.StateDisk, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.disks)) {
		all = append(all, sandbox.StateDisk{Name: name, Bytes: m.disks[name], InUse: m.live[name] != nil})
	}
	return all, nil
}

func (m *machine) RemoveState(name string) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[name] != nil {
		return 0, nil
	}
	freed := m.disks[name]
	delete(m.disks, name)
	return freed, nil
}

// set changes what the machine's sandboxes and workers say.
func (m *machine) set(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("in vain: ", what)
		}
	}
}

func TestWorkersShare(t *testing.T) {
	m := newMachine(t)
	ws := m.workers(time.Hour)
	var wait sync.WaitGroup
	var mu sync.Mutex
	clients := map[any]bool{}
	for i := range 20 {
		wait.Go(func() {
			l, err := ws.Lease(t.Context(), trusted(fmt.Sprint("group/project ", i%2)))
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := l.Client.ListWorkers(t.Context()); err != nil {
				t.Error(err)
			}
			mu.Lock()
			clients[l.Client] = true
			mu.Unlock()
			_ = l.Close(t.Context())
			_ = l.Close(t.Context())
		})
	}
	wait.Wait()
	if live, opened := m.count(); live != 2 || opened != 2 || len(clients) != 2 {
		t.Errorf("for two projects: %d sandboxes opened, %d live, %d clients", opened, live, len(clients))
	}
	ws.Close()
	if live, _ := m.count(); live != 0 {
		t.Errorf("%d sandboxes left", live)
	}
	if _, err := ws.Lease(t.Context(), trusted("p")); !errors.Is(err, errClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestWorkersIdle(t *testing.T) {
	m := newMachine(t)
	ws := m.workers(20 * time.Millisecond)
	l, err := ws.Lease(t.Context(), trusted("p"))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(60 * time.Millisecond)
	if live, _ := m.count(); live != 1 {
		t.Error("a worker in use was stopped")
	}
	sb := l.Sandbox.(*fake)
	_ = l.Close(t.Context())
	eventually(t, "an idle worker is stopped", func() bool { live, _ := m.count(); return live == 0 })
	if !sb.term {
		t.Error("it was killed, not asked to end")
	}
	// Leases that come while it is on its way out wait for it; the machine holds that.
	var wait sync.WaitGroup
	for range 4 {
		wait.Go(func() {
			for range 15 {
				l, err := ws.Lease(t.Context(), trusted("p"))
				if err != nil {
					t.Error(err)
					return
				}
				_ = l.Close(t.Context())
				time.Sleep(21 * time.Millisecond)
			}
		})
	}
	wait.Wait()
}

func TestWorkersRestart(t *testing.T) {
	m := newMachine(t)
	ws := m.workers(time.Hour)
	first, err := ws.Lease(t.Context(), trusted("p"))
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close(t.Context())
	close(first.Sandbox.(*fake).crash)
	eventually(t, "a dead worker is replaced", func() bool {
		l, err := ws.Lease(t.Context(), trusted("p"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close(t.Context())
		return l.Client != first.Client
	})
	if live, opened := m.count(); live != 1 || opened != 2 {
		t.Errorf("%d opened, %d live", opened, live)
	}
}

func TestWorkersRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		change func(m *machine)
		want   string
	}{
		"dies":            {func(m *machine) { m.broken = "cannot do it" }, "buildkitd ended: cannot do it"},
		"snapshotter":     {func(m *machine) { m.labels["org.mobyproject.buildkit.worker.snapshotter"] = "fuse-overlayfs" }, `snapshotter "fuse-overlayfs"`},
		"process sandbox": {func(m *machine) { m.labels["org.mobyproject.buildkit.worker.oci.process-mode"] = "no-sandbox" }, `process mode "no-sandbox"`},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			c.change(m)
			ws := m.workers(time.Hour)
			for range 2 { // the second tries again
				if _, err := ws.Lease(t.Context(), trusted("p")); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("got %v, want %s", err, c.want)
				}
			}
			if live, opened := m.count(); live != 0 || opened != 2 {
				t.Errorf("%d opened, %d left", opened, live)
			}
		})
	}
}

func TestWorkersCloseWhileStarting(t *testing.T) {
	m := newMachine(t)
	m.slow = make(chan struct{})
	ws := m.workers(time.Hour)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	ended := make(chan error, 2)
	for range 2 {
		go func() { _, err := ws.Lease(ctx, trusted("p")); ended <- err }()
	}
	time.Sleep(10 * time.Millisecond)
	cancel(gone)
	for range 2 {
		if err := <-ended; !errors.Is(err, gone) {
			t.Errorf("a lease whose job is gone: %v", err)
		}
	}
	go func() { _, err := ws.Lease(t.Context(), trusted("p")); ended <- err }()
	time.Sleep(10 * time.Millisecond)
	ws.Close()
	if err := <-ended; !errors.Is(err, errClosed) {
		t.Errorf("a lease when Close came: %v", err)
	}
	if live, _ := m.count(); live != 0 {
		t.Errorf("%d sandboxes left", live)
	}
}

// TestConfig reads the configuration as buildkitd does.
func TestConfig(t *testing.T) {
	cfg := WorkersConfig{Mirror: "10.0.0.1:5000", Registry: "registry.test:5000", KeepBytes: 12345, MaxParallelism: 3}
	got, err := config.Load(strings.NewReader(cfg.config()))
	if err != nil {
		t.Fatal(err)
	}
	oci := got.Workers.OCI
	for what, ok := range map[string]bool{
		"root":            got.Root == StatePath,
		"no entitlements": len(got.Entitlements) == 0,
		"no gateway":      got.Frontends.Gateway.Enabled != nil && !*got.Frontends.Gateway.Enabled,
		"no devices":      got.CDI.Disabled != nil && *got.CDI.Disabled,
		"no containerd":   got.Workers.Containerd.Enabled != nil && !*got.Workers.Containerd.Enabled,
		"overlayfs":       oci.Snapshotter == "overlayfs",
		"process sandbox": !oci.NoProcessSandbox,
		"no gc":           oci.GC != nil && !*oci.GC,
		"parallelism":     oci.MaxParallelism == 3,
		"network":         oci.NetworkConfig.Mode == "host",
		"mirror":          slices.Equal(got.Registries["docker.io"].Mirrors, []string{"10.0.0.1:5000"}),
		"mirror is http":  got.Registries["10.0.0.1:5000"].PlainHTTP != nil && *got.Registries["10.0.0.1:5000"].PlainHTTP,
		"registry":        got.Registries["registry.test:5000"].PlainHTTP != nil && *got.Registries["registry.test:5000"].PlainHTTP,
	} {
		if !ok {
			t.Errorf("%s: not in\n%s", what, cfg.config())
		}
	}
}

func trusted(project string) scope.Scope {
	return scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Trusted}
}

func untrusted(project string) scope.Scope {
	return scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Untrusted}
}
