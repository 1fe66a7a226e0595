//go:build integration

package integration

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"

	"github.com/runnerd/runnerd/sandbox"
	initwire "github.com/runnerd/runnerd/sandbox/initd/wire"
	"github.com/runnerd/runnerd/sandbox/sandboxtest"
	"github.com/runnerd/runnerd/sandbox/wasm"
	"github.com/runnerd/runnerd/sandbox/wasm/wasmtest"
)

// modules is a driver of modules on the test's machine, with a store of its own.
type modules struct {
	*wasm.Driver
	store *wasm.Store
	on    sandbox.Nesting
}

func newModules(t *testing.T, on sandbox.Nesting) *modules {
	t.Helper()
	program, err := filepath.Abs("../bin/engines/runnerd-wasm")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(host.dir, "wasm-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	store := wasm.NewStore(wasm.StoreConfig{Dir: dir, Program: program, Image: debian, Open: func(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) {
		return host.container.Start(ctx, nil, s)
	}})
	driver := wasm.New(wasm.Config{Program: program, Compiled: store, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Artifact: func(ctx context.Context, ref string, how sandbox.Pull) (wasm.Artifact, error) {
		digest, open, err := host.container.Artifact(ctx, ref, how)
		if err != nil {
			return wasm.Artifact{}, err
		}
		return wasm.Artifact{Digest: digest.Encoded(), Open: open}, nil
	}})
	return &modules{driver, store, on}
}

func (m *modules) open(ctx context.Context, id string, module sandbox.Module) (sandbox.Sandbox, error) {
	policy, err := sandbox.PolicyFor(sandbox.Measurement)
	if err != nil {
		return nil, err
	}
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: host.dind, sandbox.WASM: m}
	return sandbox.Open(ctx, nil, append(m.on, sandbox.WASM), sandbox.Spec{
		ID: id, Image: engine, Env: []string{"A=1"}, Module: module, Programs: m.Programs(), Volumes: map[string]string{"workspace": "/workspace"},
	}, drivers, policy)
}

// copyIn puts a file into a sandbox, by the layer that modules are in.
func copyIn(t *testing.T, sb sandbox.Sandbox, path string, data []byte) {
	t.Helper()
	below, ok := sandbox.As[sandbox.Pod](sb)
	if !ok {
		t.Fatal("there is no container below the modules")
	}
	if exit, err := below.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", `cat >"$0"`, path}, Stdin: bytes.NewReader(data)}); err != nil || !exit.Success() {
		t.Fatal(exit, err)
	}
}

// TestWASM runs modules in a container, in one in a container, and beside an engine.
func TestWASM(t *testing.T) {
	for _, on := range []string{"container", "container/container", "container/dind"} {
		t.Run(on, func(t *testing.T) {
			nesting, err := sandbox.ParseNesting(on)
			if err != nil {
				t.Fatal(err)
			}
			m := newModules(t, nesting)
			id := "wasm-" + strings.ReplaceAll(on, "/", "-")
			sb, err := m.open(t.Context(), id, sandbox.Module{Dirs: []sandbox.ModuleDir{{Path: "/workspace", At: "/w"}}, Memory: 64 << 20, Fuel: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer closeClean(t, sb)
			copyIn(t, sb, "/workspace/probe.wasm", wasmtest.Probe(t))
			for _, c := range []struct {
				p      sandbox.Process
				args   []string
				stdout string
				code   int
			}{
				{sandbox.Process{}, []string{"echo", "x"}, "x\n", 0},
				{sandbox.Process{}, []string{"env"}, "A=1\nPWD=/w\n", 0},
				{sandbox.Process{}, []string{"read", "/etc/passwd"}, "", 1},
				{sandbox.Process{}, []string{"files", "/w"}, "one two g 7 true\n", 0},
				{sandbox.Process{User: "65534:65534"}, []string{"files", "/w"}, "one two g 7 true\n", 0},
				{sandbox.Process{}, []string{"alloc", "100"}, "", 2},
				{sandbox.Process{}, []string{"exit", "9"}, "", 9},
			} {
				var out, errs bytes.Buffer
				p := c.p
				p.Args, p.Dir, p.Stdout, p.Stderr = append([]string{"probe.wasm"}, c.args...), "/workspace", &out, &errs
				exit, err := sb.Exec(t.Context(), p)
				if err != nil || out.String() != c.stdout || exit.Code != c.code {
					t.Errorf("%v: got %q, %q, %v, %v", c.args, out.String(), errs.String(), exit, err)
				}
			}
			if n := m.store.Compiles(); n != 1 {
				t.Errorf("the module was compiled %d times", n)
			}
		})
	}
}

// TestWASMLife is what every driver's sandboxes do, as far as no program of the image is needed for it.
func TestWASMLife(t *testing.T) {
	m := newModules(t, sandbox.Nesting{sandbox.Container})
	sandboxtest.RunLife(t, func(ctx context.Context, id string) (sandbox.Sandbox, error) {
		return m.open(ctx, id, sandbox.Module{})
	}, host.leftovers)
	sb, err := m.open(t.Context(), "wasm-closes", sandbox.Module{})
	if err != nil {
		t.Fatal(err)
	}
	copyIn(t, sb, "/probe.wasm", wasmtest.Probe(t))
	out := &closing{sb: sb}
	if exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"/probe.wasm", "spin"}, Stdout: out}); err == nil {
		t.Errorf("a module that the sandbox's end killed counted as ended by itself: %v", exit)
	}
	closeClean(t, sb)
}

// closing closes a sandbox when something is written to it.
type closing struct {
	sb   sandbox.Sandbox
	once sync.Once
}

func (c *closing) Write(p []byte) (int, error) {
	c.once.Do(func() { go c.sb.Close(context.Background()) })
	return len(p), nil
}

// TestWASMRacers holds that a module that a hundred ask for at once is compiled once, and that its compiler leaves
// nothing.
func TestWASMRacers(t *testing.T) {
	m := newModules(t, nil)
	module := wasmtest.Probe(t)
	sum := sha256.Sum256(module)
	digest := hex.EncodeToString(sum[:])
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			file, err := initwire.Memfile(module)
			if err != nil {
				t.Error(err)
				return
			}
			defer file.Close()
			_, compiled, err := m.store.Get(t.Context(), digest, file)
			if err != nil {
				t.Error(err)
				return
			}
			defer compiled.Close()
			if info, err := compiled.Stat(); err != nil || info.Mode().Perm() != 0o444 || info.Size() < 1<<20 {
				t.Errorf("it is %v, %v", info, err)
			}
		})
	}
	all.Wait()
	if n := m.store.Compiles(); n != 1 {
		t.Errorf("the module was compiled %d times", n)
	}
	if left := host.leftovers("wasm-" + digest[:8]); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// TestWASMCompiledIsReadOnly holds that a job cannot change what the next one will run, even as root of its sandbox.
func TestWASMCompiledIsReadOnly(t *testing.T) {
	m := newModules(t, nil)
	module := wasmtest.Probe(t)
	sum := sha256.Sum256(module)
	file, err := initwire.Memfile(module)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, compiled, err := m.store.Get(t.Context(), hex.EncodeToString(sum[:]), file)
	if err != nil {
		t.Fatal(err)
	}
	defer compiled.Close()
	sb := openLimited(t, "wasm-evil", sandbox.Limits{})
	var out bytes.Buffer
	script := `head -c 4 <&3 | od -An -c | grep -q W && echo readable; for how in ">>" ">" "<>"; do eval "echo x 1$how/proc/self/fd/3" 2>/dev/null && echo "written by $how"; done; chmod 666 /proc/self/fd/3 2>/dev/null && echo changed; true`
	exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", script}, Files: []*os.File{compiled}, Stdout: &out, Stderr: &out})
	if err != nil || !exit.Success() || out.String() != "readable\n" {
		t.Errorf("got %q, %v, %v", out.String(), exit, err)
	}
}

// pushModule pushes a module as an artifact to a registry on this machine.
func pushModule(t *testing.T, ref string, module []byte) {
	t.Helper()
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), "application/vnd.wasm.config.v0+json")
	image, err := mutate.Append(image, mutate.Addendum{Layer: static.NewLayer(module, "application/wasm")})
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, v1.Image(image)); err != nil {
		t.Fatal(err)
	}
}

// TestWASMDaemon runs modules as users do.
func TestWASMDaemon(t *testing.T) {
	d := startDaemon(t, "")
	pushModule(t, "127.0.0.1:"+registryPort(t, "10.214.0.1")+"/tools/probe:1", wasmtest.Probe(t))
	const probe = "oci:registry.runnerd.internal/tools/probe:1"
	wasmRun := func(flags []string, args ...string) []string {
		return append(append([]string{"run", "--sandbox", "container/wasm"}, flags...), append([]string{"--", probe}, args...)...)
	}
	for name, c := range map[string]struct {
		args           []string
		code           int
		stdout, stderr string // parts
	}{
		"succeeds":         {wasmRun([]string{"-e", "B=2"}, "env"), 0, "B=2", ""},
		"fails":            {wasmRun(nil, "exit", "3"), 3, "", ""},
		"a directory":      {wasmRun([]string{"--module-dir", "/workspace:/w"}, "files", "/w"), 0, "one two g 7", ""},
		"one to read only": {wasmRun([]string{"--module-dir", "/workspace:/w:ro"}, "files", "/w"), 1, "", "/w"},
		"none":             {wasmRun(nil, "ls", "/workspace"), 1, "", "/workspace"},
		"fuel":             {wasmRun([]string{"--module-fuel", "300ms"}, "spin"), 152, "", "fuel"},
		"time":             {wasmRun([]string{"--module-time", "300ms", "--module-clock"}, "sleep", "1h"), 142, "", "time"},
		"timeout":          {wasmRun([]string{"--timeout", "2s"}, "spin"), 124, "", "timeout"},
		"memory":           {wasmRun([]string{"--module-memory", "64MiB"}, "alloc", "100"), 2, "", "out of memory"},
		"the sandbox's":    {wasmRun([]string{"--memory", "64MiB"}, "alloc", "300"), 137, "", "out of memory"},
		"no such artifact": {[]string{"run", "--sandbox", "container/wasm", "--", "oci:registry.runnerd.internal/none:1"}, 127, "", "none:1"},
		"no module":        {[]string{"run", "--sandbox", "container/wasm", "--", "/bin/sh"}, 126, "", "no WebAssembly module"},
		"not in container": {[]string{"run", "--module-clock", "--", "true"}, 2, "", "use container/wasm"},
		"a bad directory":  {wasmRun([]string{"--module-dir", "workspace"}), 2, "", "absolute"},
		"explained":        {[]string{"nesting", "explain", "container/wasm"}, 0, "container/wasm would be run", ""},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := d.run(c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("got exit code %d, %q, %q", code, stdout, stderr)
			}
		})
	}
	kept, _ := filepath.Glob(filepath.Join(d.state, "wasm/*/*/*"))
	if len(kept) != 1 {
		t.Errorf("compiled and kept are %v", kept)
	}
	stdout, _, _ := d.run("cache", "du", "--json")
	if !strings.Contains(stdout, `"modules"`) {
		t.Errorf("cache du does not tell of modules: %s", stdout)
	}
	// What was compiled before a restart is there after it.
	d.stop(syscall.SIGKILL)
	d.start()
	if stdout, stderr, code := d.run(wasmRun(nil, "echo", "again")...); code != 0 || stdout != "again\n" {
		t.Errorf("after a restart: %d, %q, %q", code, stdout, stderr)
	}
	if again, _ := filepath.Glob(filepath.Join(d.state, "wasm/*/*/*")); len(again) != 1 || len(kept) == 1 && again[0] != kept[0] {
		t.Errorf("after a restart kept are %v, before %v", again, kept)
	}
}

// TestPluginsDaemon replaces the plugins of a daemon that runs.
func TestPluginsDaemon(t *testing.T) {
	dir := t.TempDir()
	admission, filter := filepath.Join(dir, "admission.wasm"), filepath.Join(dir, "logfilter.wasm")
	build := func(name, to string) {
		t.Helper()
		if err := wasmtest.Build("../examples/wasm/"+name, to+".new"); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(to+".new", to); err != nil {
			t.Fatal(err)
		}
	}
	build("admission", admission)
	build("logfilter", filter)
	d := startDaemon(t, "plugins: {admission: "+admission+", log_filter: "+filter+"}\n")
	logged := func(args ...string) (log string, code int) {
		t.Helper()
		before := len(d.jobs())
		_, stderr, code := d.run(args...)
		all := d.jobs()
		if len(all) == before {
			t.Fatalf("%v made no job: %s", args, stderr)
		}
		log, _, _ = d.run("logs", all[0].ID)
		return log, code
	}
	if log, code := logged("run", "--image", debian, "--", "echo", "mail to a@example.com"); code != 0 || !strings.Contains(log, "mail to [ADDRESS]") {
		t.Errorf("exit code %d, the log is %q", code, log)
	}
	if _, stderr, code := d.run("run", "--image", "debian", "--", "true"); code != 3 || !strings.Contains(stderr, "neither tag nor digest") {
		t.Errorf("a job that the plugin denies: exit code %d, %s", code, stderr)
	}
	// Each other's place is no plugin that works.
	build("logfilter", admission)
	if _, stderr, code := d.run("run", "--image", debian, "--", "true"); code != 3 || !strings.Contains(stderr, "plugin failed") {
		t.Errorf("with an admission plugin that gives no answer: exit code %d, %s", code, stderr)
	}
	build("admission", admission)
	build("admission", filter)
	if log, code := logged("run", "--image", debian, "--", "echo", "mail to a@example.com"); code != 0 || strings.Contains(log, "example.com") {
		t.Errorf("with a log filter that fails: exit code %d, the log is %q", code, log)
	}
	build("logfilter", filter)
	if log, code := logged("run", "--image", debian, "--", "echo", "mail to a@example.com"); code != 0 || !strings.Contains(log, "mail to [ADDRESS]") {
		t.Errorf("with the log filter again: exit code %d, the log is %q", code, log)
	}
}
