package job

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// does is what a process of a fake does: it is found by a piece of its arguments or of its input.
type does func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error)

func exits(code int) does {
	return func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{Code: code}, nil }
}

func takes(d time.Duration) does {
	return func(ctx context.Context, _ sandbox.Process) (sandbox.Exit, error) {
		select {
		case <-time.After(d):
			return sandbox.Exit{}, nil
		case <-ctx.Done():
			return sandbox.Exit{}, context.Cause(ctx)
		}
	}
}

func breaks(err error) does {
	return func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{}, err }
}

// fakeSandbox is a sandbox.Pod. It writes down what was run in it, in order, and refuses what it does not know.
type fakeSandbox struct {
	t      *testing.T
	image  sandbox.ImageConfig
	does   map[string]does // by a piece of the process
	images map[string]sandbox.ImageConfig

	mu       sync.Mutex
	ran      []string // pieces
	envs     map[string][]string
	users    map[string]string
	hosts    map[string]string
	reached  []netip.AddrPort
	listened []string
	added    []sandbox.Companion
}

// fakeMember is the sandbox seen from one of its companions.
type fakeMember struct {
	*fakeSandbox
	config sandbox.ImageConfig
}

func (m fakeMember) ImageConfig() sandbox.ImageConfig { return m.config }

func (f *fakeSandbox) ImageConfig() sandbox.ImageConfig { return f.image }
func (f *fakeSandbox) ID() string                       { return "fake" }
func (f *fakeSandbox) Close(context.Context) error      { return nil }
func (f *fakeSandbox) Usage(context.Context) (sandbox.Usage, error) {
	return sandbox.Usage{}, nil
}

func (f *fakeSandbox) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	text := strings.Join(p.Args, " ")
	if p.Terminal != nil {
		text = shell
	} else if p.Stdin != nil {
		input, err := io.ReadAll(p.Stdin)
		if err != nil {
			return sandbox.Exit{}, err
		}
		text += "\n" + string(input)
	}
	for piece, do := range f.does {
		if !strings.Contains(text, piece) {
			continue
		}
		f.mu.Lock()
		f.ran = append(f.ran, piece)
		f.envs[piece], f.users[piece] = p.Env, p.User
		f.mu.Unlock()
		if ctx.Err() != nil {
			return sandbox.Exit{}, context.Cause(ctx)
		}
		return do(ctx, p)
	}
	f.t.Errorf("unexpected process: %s", text)
	return sandbox.Exit{}, errors.New("unexpected process")
}

func (f *fakeSandbox) Add(_ context.Context, c sandbox.Companion) (sandbox.Member, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.added = append(f.added, c)
	config, ok := f.images[c.Image]
	if !ok {
		return nil, fmt.Errorf("image %q: %w: %w", c.Image, sandbox.ErrImage, sandbox.ErrUnknownImage)
	}
	return fakeMember{f, config}, nil
}

func (f *fakeSandbox) Dial(context.Context, string, string) (net.Conn, error) {
	return nil, errors.New("nobody listens")
}

func (f *fakeSandbox) Listen(_ context.Context, network, address string) (*os.File, error) {
	f.mu.Lock()
	f.listened = append(f.listened, address)
	f.mu.Unlock()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.(*net.TCPListener).File()
}

func (f *fakeSandbox) AddHosts(names map[string]string) error {
	f.hosts = names
	return nil
}

func (f *fakeSandbox) Reach(_ context.Context, service netip.AddrPort) error {
	f.reached = append(f.reached, service)
	return nil
}

// fakeOut is an Output in memory.
type fakeOut struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *fakeOut) Stream(runner.Stream) io.Writer { return o }

func (o *fakeOut) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *fakeOut) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// fakeForge keeps nothing.
type fakeForge struct{}

func (fakeForge) UploadArtifact(context.Context, ArtifactOptions, func(io.Writer) error) error {
	return errors.New("the fake forge takes nothing")
}

func (fakeForge) DownloadArtifact(context.Context, spec.Dependency, io.Writer) error {
	return errors.New("the fake forge has nothing")
}

func (fakeForge) Status(error) int { return 0 }

// names is a Resolver that knows these.
type names map[string]string

func (n names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if address, ok := n[host]; ok {
		return []netip.Addr{netip.MustParseAddr(address)}, nil
	}
	return nil, errors.New("no such host")
}

const (
	forgeURL    = "https://gitlab.example.com"
	helperImage = "runnerd/sandbox:latest"
)

func testConfig() Config {
	return Config{
		Version: "1", Revision: "r", Image: "debian", Helper: helperImage, Pull: sandbox.IfNotPresent,
		Limits: func(*sandbox.Limits) error { return nil },
		Asking: func(s scope.Scope) map[string]string { return map[string]string{"as": s.ID()} },
		Files:  names{}, Resolver: names{}, Addresses: func() ([]net.Addr, error) { return nil, nil },
		ServiceTimeout: DefaultServiceTimeout,
	}
}

// testJob is a job of two script lines, with an after_script.
func testJob() spec.Job {
	return spec.Job{
		ID: 42, Token: "job-token-1",
		JobInfo: spec.JobInfo{Name: "test", ProjectFullPath: "group/app"},
		GitInfo: spec.GitInfo{
			RepoURL: "https://gitlab-ci-token:job-token-1@gitlab.example.com/group/app.git", Ref: "main",
			SHA: strings.Repeat("a", 40), RefType: "branch", Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main"},
		},
		RunnerInfo: spec.RunnerInfo{Timeout: 3600},
		Steps: []spec.Step{
			{Name: spec.StepScript, Script: []string{"make it"}, Timeout: 3600, When: "on_success"},
			{Name: spec.StepAfterScript, Script: []string{"clean up"}, Timeout: 3600, When: "always"},
		},
		Image: &spec.Image{Name: "debian:12"},
	}
}

// bench runs a job on a fake.
type bench struct {
	t      *testing.T
	config Config
	in     Assigned
	on     *fakeSandbox
	out    *fakeOut
	step   *Step
}

// Pieces by which the processes of testJob are known.
const (
	sources = "Fetching changes"
	script1 = "make it"
	after   = "clean up"
)

func newBench(t *testing.T) *bench {
	return &bench{
		t: t, config: testConfig(), in: Assigned{Runner: Runner{Name: "r", URL: forgeURL}, Job: testJob(), Forge: fakeForge{}},
		on: &fakeSandbox{
			t: t, image: sandbox.ImageConfig{Reference: "debian:12", Env: []string{"PATH=/bin", "OF=image"}},
			images: map[string]sandbox.ImageConfig{helperImage: {Reference: helperImage}},
			does:   map[string]does{sources: exits(0), script1: exits(0), after: exits(0)},
			envs:   map[string][]string{}, users: map[string]string{},
		},
		out: &fakeOut{},
	}
}

func (b *bench) prepare() runner.Job {
	b.t.Helper()
	j, err := Prepare(b.t.Context(), b.config, b.in)
	if err != nil {
		b.t.Fatal(err)
	}
	b.step = j.Steps[0].(*Step)
	return j
}

func (b *bench) run(ctx context.Context) (sandbox.Exit, error) {
	b.t.Helper()
	b.prepare()
	return b.step.Run(ctx, b.on, b.out)
}

// vars are the job's variables.
func (b *bench) vars() *script.Variables {
	b.t.Helper()
	v, err := script.NewVariables(b.in.Job, script.Runner{})
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// wants asserts what has run, and what the log says.
func (b *bench) wants(ran []string, says ...string) {
	b.t.Helper()
	if got := strings.Join(b.on.ran, ", "); got != strings.Join(ran, ", ") {
		b.t.Errorf("ran %s; want %s\n%s", got, strings.Join(ran, ", "), b.out)
	}
	for _, text := range says {
		if !strings.Contains(b.out.String(), text) {
			b.t.Errorf("the log does not say %q:\n%s", text, b.out)
		}
	}
}

func (b *bench) env(piece, key string) string {
	for _, entry := range b.on.envs[piece] {
		if k, v, _ := strings.Cut(entry, "="); k == key {
			return v
		}
	}
	return ""
}
