package wasm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/engine"
	"github.com/runnerd/runnerd/sandbox/wasm/wasmtest"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// TestMain makes this program the runtime of modules, too.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv("RUNNERD_TEST_WASM") {
	case "serve":
		var conn *wire.Conn
		var server *engine.Server
		if conn, err = wire.NewConn(os.NewFile(3, "daemon")); err == nil {
			if server, err = engine.NewServer(os.TempDir()); err == nil {
				err = server.Serve(context.Background(), conn)
			}
		}
	case "compile":
		err = engine.Compile(context.Background(), os.Stdin, os.Stdout)
	default:
		dir, err := os.MkdirTemp("", "compiled-")
		if err != nil {
			break
		}
		shared = newStore(dir)
		code := m.Run()
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// shared is the store of the tests that do not look at it.
var shared *Store

func newStore(dir string) *Store {
	return NewStore(StoreConfig{Dir: dir, Program: os.Args[0], Open: func(_ context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
		return &machine{id: s.ID}, nil
	}})
}

// machine is a sandbox that is none: processes of this machine.
type machine struct {
	id     string
	mu     sync.Mutex
	starts int
}

func (m *machine) ID() string                                         { return m.id }
func (m *machine) Usage(context.Context) (u sandbox.Usage, err error) { return u, nil }
func (m *machine) Close(context.Context) error                        { return nil }
func (m *machine) Adopt(sandbox.Spec) error                           { return nil }
func (m *machine) ImageDigest() string                                { return "" }
func (m *machine) Exec(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	m.mu.Lock()
	m.starts++
	m.mu.Unlock()
	if p.Args[0] != wire.Program {
		return sandbox.Exit{}, fmt.Errorf("%s is no program of this machine", p.Args[0])
	}
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(slices.Clone(p.Env), "RUNNERD_TEST_WASM="+p.Args[1], "TMPDIR="+os.TempDir())
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = p.Stdin, p.Stdout, p.Stderr, p.Files
	err := cmd.Run()
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return sandbox.Exit{Code: exit.ExitCode()}, nil
	}
	return sandbox.Exit{}, err
}

// fixture is a layer, and a directory that its modules may have.
type fixture struct {
	t   *testing.T
	dir string
	sb  sandbox.Sandbox
}

func newFixture(t *testing.T, store *Store, module sandbox.Module) *fixture {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "probe.wasm"), wasmtest.Probe(t), 0o644); err != nil {
		t.Fatal(err)
	}
	f := &fixture{t: t, dir: dir}
	if store == nil {
		store = shared
	}
	d := New(Config{Program: os.Args[0], Compiled: store, Log: slog.New(slog.DiscardHandler), Artifact: func(_ context.Context, ref string, how sandbox.Pull) (a Artifact, err error) {
		if ref != "probe:1" || how.Password != "" {
			return a, fmt.Errorf("%w: %s", sandbox.ErrUnknownImage, ref)
		}
		data := wasmtest.Probe(t)
		return Artifact{Digest: sum(data), Open: func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}, nil
	}})
	sb, err := d.Start(t.Context(), &machine{id: "m"}, sandbox.Spec{ID: "m", Env: []string{"A=1"}, Module: module, Pull: sandbox.Pull{Username: "u", Password: "p"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(sb.Close(context.Background()), sb.Close(context.Background())); err != nil {
			t.Error(err)
		}
		if _, err := sb.Exec(context.Background(), sandbox.Process{Args: []string{"probe.wasm"}}); !errors.Is(err, errClosed) {
			t.Errorf("exec in a closed sandbox: %v", err)
		}
	})
	f.sb = sb
	return f
}

func sum(data []byte) string { return fmt.Sprintf("%x", sha(data)) }

// run runs the probe in the fixture's directory.
func (f *fixture) run(args ...string) (stdout, stderr string, exit sandbox.Exit) {
	f.t.Helper()
	return f.runAs(sandbox.Process{}, "probe.wasm", args...)
}

func (f *fixture) runAs(p sandbox.Process, module string, args ...string) (stdout, stderr string, exit sandbox.Exit) {
	f.t.Helper()
	var out, errs bytes.Buffer
	p.Args, p.Dir, p.Stdout, p.Stderr = append([]string{module}, args...), f.dir, &out, &errs
	exit, err := f.sb.Exec(f.t.Context(), p)
	if err != nil {
		f.t.Fatalf("%v: %v", args, err)
	}
	return out.String(), errs.String(), exit
}

// TestRun runs modules that do what modules do.
func TestRun(t *testing.T) {
	f := newFixture(t, nil, sandbox.Module{Memory: 64 << 20, Fuel: time.Minute})
	for _, c := range []struct {
		name, module   string
		args           []string
		stdout, stderr string // parts
		code           int
	}{
		{"output", "probe.wasm", []string{"echo", "a", "b"}, "a b\n", "err\n", 0},
		{"artifact", "oci:probe:1", []string{"echo", "c"}, "c\n", "", 0},
		{"unknown artifact", "oci:none:1", nil, "", "none:1", 127},
		{"exit code", "probe.wasm", []string{"exit", "7"}, "", "", 7},
		{"its environment alone", "probe.wasm", []string{"env"}, "A=1\n", "", 0},
		{"no directory", "probe.wasm", []string{"read", f.dir + "/probe.wasm"}, "", "", 1},
		{"a clock that stands", "probe.wasm", []string{"now"}, "1640995200\n", "", 0},
		{"sleep takes no time", "probe.wasm", []string{"sleep", "10h"}, "ready", "", 0},
		{"memory", "probe.wasm", []string{"alloc", "100"}, "", "out of memory", 2},
		{"not there", "none.wasm", nil, "", "none.wasm: no such file", 127},
		{"no module", "/proc/self/status", nil, "", "no WebAssembly module", 126},
		{"no file", "/", nil, "", "it is no file", 126},
		{"a component", component(t), nil, "", "component", 126},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, exit := f.runAs(sandbox.Process{}, c.module, c.args...)
			if !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) || exit.Code != c.code {
				t.Errorf("got %q, %q, %v", stdout, stderr, exit)
			}
		})
	}
	if stdout, _, _ := f.run("env"); strings.TrimSpace(stdout) != "A=1" {
		t.Errorf("its environment is %q", stdout)
	}
	if _, stderr, exit := f.runAs(sandbox.Process{Terminal: &sandbox.Terminal{}}, "probe.wasm"); exit.Code != 126 {
		t.Errorf("with a terminal: %q, %v", stderr, exit)
	}
	in := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	if stdout, _, exit := f.runAs(sandbox.Process{Stdin: bytes.NewReader(in)}, "probe.wasm", "cat"); stdout != string(in) {
		t.Errorf("cat gave %d bytes of %d, %v", len(stdout), len(in), exit)
	}
}

// component is a file that begins as a component does.
func component(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "component.wasm")
	if err := os.WriteFile(file, []byte("\x00asm\x0d\x00\x01\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestDirectories holds that a module sees the declared directories, and nothing else.
func TestDirectories(t *testing.T) {
	outside := t.TempDir()
	for dir, files := range map[string]map[string]string{outside: {"secret": "secret"}} {
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	shared, readOnly := t.TempDir(), t.TempDir()
	err := errors.Join(
		os.WriteFile(filepath.Join(readOnly, "f"), []byte("text"), 0o644),
		os.Symlink(outside, filepath.Join(shared, "out")), os.Symlink("../"+filepath.Base(outside), filepath.Join(shared, "rel")),
		os.Symlink("inner", filepath.Join(shared, "in")), os.Mkdir(filepath.Join(shared, "inner"), 0o755),
		os.WriteFile(filepath.Join(shared, "inner/f"), []byte("inner"), 0o644),
		syscall.Mkfifo(filepath.Join(shared, "fifo"), 0o644),
	)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, nil, sandbox.Module{Dirs: []sandbox.ModuleDir{{Path: shared, At: "/s"}, {Path: readOnly, At: "/r", ReadOnly: true}}})
	for _, c := range []struct {
		args   []string
		stdout string
		code   int
	}{
		{[]string{"files", "/s"}, "one two g 7 true\n", 0},
		{[]string{"ls", "/s"}, "fifo\nin\ninner\nout\nrel\n", 0},
		{[]string{"read", "/s/in/f"}, "inner", 0},
		{[]string{"read", "/s/out/secret"}, "", 1},
		{[]string{"read", "/s/rel/secret"}, "", 1},
		{[]string{"read", "/s/../" + filepath.Base(outside) + "/secret"}, "", 1},
		{[]string{"ls", "/s/out"}, "", 1},
		{[]string{"write", "/s/out/new", "x"}, "", 1},
		{[]string{"read", "/r/f"}, "text", 0},
		{[]string{"write", "/r/f", "x"}, "", 1},
		{[]string{"files", "/r"}, "", 1},
		{[]string{"ls", "/"}, "", 1},
	} {
		stdout, stderr, exit := f.run(c.args...)
		if stdout != c.stdout || exit.Code != c.code {
			t.Errorf("%v: got %q, %q, %v", c.args, stdout, stderr, exit)
		}
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 1 {
		t.Errorf("outside there is %v", entries)
	}
	f.dir = filepath.Join(shared, "inner")
	if stdout, _, _ := f.runAs(sandbox.Process{}, "oci:probe:1", "pwd"); stdout != "/s/inner\n" {
		t.Errorf("its directory is %q", stdout)
	}
}

// TestLimits holds that a run ends when it has used up its fuel or its time, and that its neighbour does not.
func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		module sandbox.Module
		args   []string
		signal syscall.Signal
		text   string
	}{
		"fuel":                   {sandbox.Module{Fuel: 200 * time.Millisecond}, []string{"spin"}, syscall.SIGXCPU, "fuel"},
		"time":                   {sandbox.Module{Time: 200 * time.Millisecond, Clock: true}, []string{"sleep", "1h"}, syscall.SIGALRM, "time"},
		"time of one that spins": {sandbox.Module{Time: 200 * time.Millisecond}, []string{"spin"}, syscall.SIGALRM, "time"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, nil, c.module)
			f.run("echo") // loads it
			began := time.Now()
			_, stderr, exit := f.run(c.args...)
			if exit.Signal != c.signal || exit.Code != 128+int(c.signal) || !strings.Contains(stderr, c.text) {
				t.Errorf("got %q, %v", stderr, exit)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			if stdout, _, _ := f.run("echo", "x"); stdout != "x\n" {
				t.Errorf("the next run says %q", stdout)
			}
		})
	}
}

// TestEnd holds that a run ends with its context, and with a signal, whatever it does.
func TestEnd(t *testing.T) {
	f := newFixture(t, nil, sandbox.Module{Clock: true})
	f.run("echo")
	cause := errors.New("cancelled")
	for _, args := range [][]string{{"spin"}, {"sleep", "1h"}} {
		ctx, cancel := context.WithCancelCause(t.Context())
		out := &cancels{cancel: func() { cancel(cause) }}
		if exit, err := f.sb.Exec(ctx, sandbox.Process{Args: append([]string{"probe.wasm"}, args...), Dir: f.dir, Stdout: out}); !errors.Is(err, cause) {
			t.Errorf("%v: got %v, %v", args, exit, err)
		}
		signals := make(chan syscall.Signal, 1)
		out = &cancels{cancel: func() { signals <- syscall.SIGTERM }}
		exit, err := f.sb.Exec(t.Context(), sandbox.Process{Args: append([]string{"probe.wasm"}, args...), Dir: f.dir, Stdout: out, Signals: signals})
		if err != nil || exit.Signal != syscall.SIGTERM {
			t.Errorf("%v: got %v, %v", args, exit, err)
		}
	}
	r, w, err := os.Pipe() // nobody writes to it
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, cause)
	defer cancel()
	if exit, err := f.sb.Exec(ctx, sandbox.Process{Args: []string{"probe.wasm", "cat"}, Dir: f.dir, Stdin: r}); !errors.Is(err, cause) {
		t.Errorf("got %v, %v", exit, err)
	}
	if stdout, _, _ := f.run("echo", "x"); stdout != "x\n" {
		t.Errorf("the next run says %q", stdout)
	}
}

// cancels calls cancel once something is written to it.
type cancels struct{ cancel func() }

func (c *cancels) Write(p []byte) (int, error) {
	c.cancel()
	return len(p), nil
}

// TestStore holds that a module is compiled once for all sandboxes that ask for it at once, and not again.
func TestStore(t *testing.T) {
	store := newStore(t.TempDir())
	var all sync.WaitGroup
	for range 8 {
		f := newFixture(t, store, sandbox.Module{})
		all.Go(func() {
			if stdout, stderr, exit := f.run("echo", "x"); stdout != "x\n" {
				t.Errorf("got %q, %q, %v", stdout, stderr, exit)
			}
		})
	}
	all.Wait()
	if n := store.Compiles(); n != 1 {
		t.Errorf("compiled %d times", n)
	}
	kept, err := store.Kept(t.Context())
	if err != nil || len(kept) != 1 || kept[0].Digest != sum(wasmtest.Probe(t)) || kept[0].Bytes < 1<<20 {
		t.Fatalf("kept are %+v, %v", kept, err)
	}
	if freed, err := store.Remove(t.Context(), []string{kept[0].Digest, ".."}); err != nil || freed != kept[0].Bytes {
		t.Errorf("freed %d, %v", freed, err)
	}
	if kept, _ := store.Kept(t.Context()); len(kept) != 0 {
		t.Errorf("still kept are %+v", kept)
	}
}

// TestStoreRefuses holds that nothing gets into the store but what a module is compiled to, under its own digest.
func TestStoreRefuses(t *testing.T) {
	store := newStore(t.TempDir())
	plain, err := os.Create(filepath.Join(t.TempDir(), "plain"))
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	nonsense := sealed(t, []byte("\x00asm\x01\x00\x00\x00nonsense"))
	var invalid *ModuleError
	for name, c := range map[string]struct {
		digest string
		file   *os.File
		text   string
	}{
		"not sealed":   {sum(nil), plain, "not sealed"},
		"other digest": {sum(nil), nonsense, "another module"},
		"no module":    {sum([]byte("\x00asm\x01\x00\x00\x00nonsense")), nonsense, "section"},
	} {
		_, _, err := store.Get(t.Context(), c.digest, c.file)
		if err == nil || !strings.Contains(err.Error(), c.text) || errors.As(err, &invalid) != (name == "no module") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if kept, _ := store.Kept(t.Context()); len(kept) != 0 {
		t.Errorf("kept are %+v", kept)
	}
}
