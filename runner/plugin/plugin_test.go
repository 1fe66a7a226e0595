package plugin

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wasmtest"
	"github.com/runnerd/runnerd/scope"
)

// program builds runnerd-wasm once.
var program = sync.OnceValues(func() (string, error) {
	out := filepath.Join(os.TempDir(), "runnerd-wasm-test")
	cmd := exec.Command("go", "build", "-o", out, "../../cmd/runnerd-wasm")
	cmd.Stderr = os.Stderr
	return out, cmd.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		_ = os.Remove(path)
	}
	os.Exit(code)
}

// built is the module of a directory.
func built(t *testing.T, dir string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), filepath.Base(dir)+".wasm")
	if err := wasmtest.Build(dir, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func place(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		if err = os.WriteFile(to+".new", data, 0o600); err == nil {
			err = os.Rename(to+".new", to)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func runtime(t *testing.T) string {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestAdmission holds that the module's word counts, that one that fails denies, and that one that was replaced is used.
func TestAdmission(t *testing.T) {
	example, probe := built(t, "../../examples/wasm/admission"), filepath.Join(t.TempDir(), "probe.wasm")
	if err := os.WriteFile(probe, wasmtest.Probe(t), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "admission.wasm")
	place(t, example, file)
	a := NewAdmission(runtime(t), file, slog.New(slog.DiscardHandler))
	defer a.Close(context.Background())
	request := func(project, nesting, image string) runner.Request {
		n, err := sandbox.ParseNesting(nesting)
		if err != nil {
			t.Fatal(err)
		}
		return runner.Request{ID: "j", Nesting: n, Image: image, Scope: scope.Scope{Project: project, Trust: scope.Trusted}}
	}
	good := request("team/app", "container", "debian:12")
	if err := a.Admit(t.Context(), good); err != nil {
		t.Error(err)
	}
	for name, c := range map[string]struct {
		r    runner.Request
		text string
	}{
		"engine": {request("team/app", "container/dind", "debian:12"), "have no engine"},
		"no tag": {request("team/app", "container", "debian"), "neither tag nor digest"},
	} {
		if err := a.Admit(t.Context(), c.r); !errors.Is(err, sandbox.ErrDenied) || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%s: got %v", name, err)
		}
	}
	place(t, probe, file) // it says nothing, and exits with 0
	if err := a.Admit(t.Context(), good); !errors.Is(err, sandbox.ErrDenied) || !strings.Contains(err.Error(), "plugin failed") {
		t.Errorf("with a module that does not answer: %v", err)
	}
	place(t, "plugin_test.go", file)
	if err := a.Admit(t.Context(), good); !errors.Is(err, sandbox.ErrDenied) {
		t.Errorf("with a file that is no module: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := a.Admit(t.Context(), good); !errors.Is(err, sandbox.ErrDenied) {
		t.Errorf("without a module: %v", err)
	}
	place(t, example, file)
	if err := a.Admit(t.Context(), good); err != nil {
		t.Errorf("with the module again: %v", err)
	}
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(runner.ErrCancelled)
	if err := a.Admit(cancelled, good); !errors.Is(err, runner.ErrCancelled) || errors.Is(err, sandbox.ErrDenied) {
		t.Errorf("cancelled: %v", err)
	}
}

// kept is a Reporter that keeps what is written.
type kept struct {
	runner.Reporter
	mu      sync.Mutex
	streams map[runner.Stream]*strings.Builder
	decided bool
}

func (k *kept) Stream(s runner.Stream) io.Writer { return keptStream{k, s} }

func (k *kept) Decided(context.Context, runner.Result) error {
	k.decided = true
	return nil
}

type keptStream struct {
	k *kept
	s runner.Stream
}

func (w keptStream) Write(p []byte) (int, error) {
	w.k.mu.Lock()
	defer w.k.mu.Unlock()
	if w.k.streams[w.s] == nil {
		w.k.streams[w.s] = &strings.Builder{}
	}
	return w.k.streams[w.s].Write(p)
}

func (k *kept) text(s runner.Stream) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.streams[s] == nil {
		return ""
	}
	return k.streams[s].String()
}

// one is a source of one job.
type one struct{ a runner.Assignment }

func (o one) Next(context.Context) (runner.Assignment, error) { return o.a, nil }

// filtered writes lines through a filter and returns what is kept of them.
func filtered(t *testing.T, file string, writes ...string) *kept {
	t.Helper()
	f := NewFilter(runtime(t), file, slog.New(slog.DiscardHandler))
	defer f.Close(context.Background())
	k := &kept{streams: map[runner.Stream]*strings.Builder{}}
	a, err := f.Source(one{runner.Assignment{Reporter: k}}).Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range writes {
		if n, err := io.WriteString(a.Stream(runner.Stdout), text); n != len(text) || err != nil {
			t.Errorf("a write gave %d, %v", n, err)
		}
	}
	_, _ = io.WriteString(a.Stream(runner.Notice), "the job says b@example.com\n")
	_, _ = io.WriteString(a.Stream(runner.Progress), `{"vertexes":[{"name":"x"}],"logs":[{"data":"YUBleGFtcGxlLmNvbQ=="}]}`)
	if err := a.Decided(t.Context(), runner.Result{}); err != nil || !k.decided {
		t.Errorf("decided: %v", err)
	}
	return k
}

// TestFilter holds that a log is what the filter makes of it, however it was cut.
func TestFilter(t *testing.T) {
	k := filtered(t, built(t, "../../examples/wasm/logfilter"), "from a@exam", "ple.com to b@example.com\nand on")
	if got := k.text(runner.Stdout); got != "from [ADDRESS] to [ADDRESS]\nand on" {
		t.Errorf("kept is %q", got)
	}
	if got := k.text(runner.Notice); got != "the job says b@example.com\n" {
		t.Errorf("notices are %q", got)
	}
	if got := k.text(runner.Progress); strings.Contains(got, "logs") || !strings.Contains(got, "vertexes") {
		t.Errorf("progress is %q", got)
	}
}

// TestFilterFails holds that nothing is kept that a filter has not let through, whatever becomes of it.
func TestFilterFails(t *testing.T) {
	silent := filepath.Join(t.TempDir(), "silent.wasm")
	if err := os.WriteFile(silent, wasmtest.Probe(t), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"ends at once": silent, "no module": "plugin_test.go", "not there": filepath.Join(t.TempDir(), "none")} {
		lines := []string{"secret line\n"}
		for range 100 {
			lines = append(lines, strings.Repeat("secret line\n", 1000))
		}
		k := filtered(t, file, lines...)
		if got := k.text(runner.Stdout) + k.text(runner.Stderr); got != "" {
			t.Errorf("%s: kept is %.100q", name, got)
		}
		if got := k.text(runner.Notice); !strings.Contains(got, "is not kept") || strings.Contains(got, "secret") {
			t.Errorf("%s: notices are %q", name, got)
		}
	}
}
