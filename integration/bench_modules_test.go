//go:build integration && bench

package integration

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wasmtest"
)

// moduleRuns is how many runs of a module in memory are measured: a percentile needs more than a median.
const moduleRuns = 300

// bare is wazero as a program has it that has nothing else to do: in this process, with the defaults.
type bare struct {
	t       *testing.T
	runtime wazero.Runtime
	module  wazero.CompiledModule
}

// newBare reads and compiles a module, or finds it in a cache's directory.
func newBare(t *testing.T, file, cacheDir string) *bare {
	t.Helper()
	config := wazero.NewRuntimeConfigCompiler()
	if cacheDir != "" {
		cache, err := wazero.NewCompilationCacheWithDir(cacheDir)
		if err != nil {
			t.Fatal(err)
		}
		config = config.WithCompilationCache(cache)
	}
	b := &bare{t: t, runtime: wazero.NewRuntimeWithConfig(t.Context(), config)}
	wasi_snapshot_preview1.MustInstantiate(t.Context(), b.runtime)
	text, err := os.ReadFile(file)
	if err == nil {
		b.module, err = b.runtime.CompileModule(t.Context(), text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bare) close() {
	if err := b.runtime.Close(context.Background()); err != nil {
		b.t.Error(err)
	}
}

// run runs the module to its end, with its output in a pipe as a sandbox's is.
func (b *bare) run() {
	r, w, err := os.Pipe()
	if err != nil {
		b.t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(io.Discard, r)
	}()
	instance, err := b.runtime.InstantiateModule(b.t.Context(), b.module,
		wazero.NewModuleConfig().WithName("").WithArgs("probe", "echo", "hello").WithStdout(w).WithRandSource(rand.Reader))
	if instance != nil {
		_ = instance.Close(b.t.Context())
	}
	w.Close()
	<-done
	r.Close()
	if err != nil && err.Error() != "module closed with exit_code(0)" {
		b.t.Fatal(err)
	}
}

// benchWASM is about what a sandbox adds to a module's run.
func benchWASM(t *testing.T) {
	file := filepath.Join(t.TempDir(), "probe.wasm")
	if err := os.WriteFile(file, wasmtest.Probe(t), 0o644); err != nil {
		t.Fatal(err)
	}
	m := newModules(t, containerNesting)
	ids := 0
	open := func() sandbox.Sandbox {
		ids++
		sb, err := m.open(t.Context(), fmt.Sprintf("bench-wasm-%d", ids), sandbox.Module{})
		if err != nil {
			t.Fatal(err)
		}
		copyIn(t, sb, "/probe.wasm", wasmtest.Probe(t))
		return sb
	}
	run := func(sb sandbox.Sandbox) time.Duration {
		began := time.Now()
		exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"/probe.wasm", "echo", "hello"}, Stdout: io.Discard})
		if err != nil || !exit.Success() {
			t.Fatal(exit, err)
		}
		return time.Since(began)
	}

	peer := newBare(t, file, "")
	bareRun := func() time.Duration {
		began := time.Now()
		peer.run()
		return time.Since(began)
	}
	sb := open()
	run(sb)
	time.Sleep(1200 * time.Millisecond) // until its digest is kept
	run(sb)
	bareRun()
	compare(t, "bare wazero / itself (A/A: the noise)", pairs, bareRun, bareRun, 0)
	times := compare(t, "Go module in memory / bare wazero", moduleRuns, func() time.Duration { return run(sb) }, bareRun, 1.1)
	p99 := measure.Quantile(times, 0.99)
	absolute("Go module in memory, p99", millis(p99), "< 10 ms", p99 < 10*time.Millisecond)
	closeSandbox(t, sb)
	peer.close()

	cache := t.TempDir()
	newBare(t, file, cache).close()
	fromDisk := func() time.Duration {
		began := time.Now()
		b := newBare(t, file, cache)
		b.run()
		took := time.Since(began)
		b.close()
		return took
	}
	compare(t, "Go module compiled on disk / bare wazero", pairs, func() time.Duration {
		sb := open()
		defer closeSandbox(t, sb)
		time.Sleep(200 * time.Millisecond) // not beside the sandbox's own start
		return run(sb)
	}, fromDisk, 1.05)
	absolute("compiles of that module", fmt.Sprint(m.store.Compiles()), "1", m.store.Compiles() == 1)
}
