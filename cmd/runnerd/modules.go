package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/plugin"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm"
)

// wasmProgram runs modules. It is in the directory of the engines.
const wasmProgram = "runnerd-wasm"

// startModules makes the driver of modules. Nothing is started, or read, before the first of them.
func (a *assembly) startModules() {
	program := filepath.Join(a.engines.Dir(), wasmProgram)
	a.modules = wasm.NewStore(wasm.StoreConfig{
		Dir: a.modulesDir(), Program: program, Image: a.config.SandboxImage,
		Open: func(ctx context.Context, s sandbox.Spec) (sandbox.Sandbox, error) { return a.driver.Start(ctx, nil, s) },
	})
	a.wasm = wasm.New(wasm.Config{
		Program: program, Compiled: a.modules, Log: a.log.With("component", "wasm"),
		Artifact: func(ctx context.Context, ref string, how sandbox.Pull) (wasm.Artifact, error) {
			digest, open, err := a.driver.Artifact(ctx, ref, how)
			if err != nil {
				return wasm.Artifact{}, err
			}
			return wasm.Artifact{Digest: digest.Encoded(), Open: open}, nil
		},
	})
}

func (a *assembly) modulesDir() string { return filepath.Join(a.config.StateDir, "wasm") }

// moduleStore is the modules that are kept compiled.
type moduleStore struct {
	*wasm.Store
	dir string
}

func (moduleStore) Name() string { return "modules" }

func (s moduleStore) Usage(ctx context.Context) (int64, error) { return budget.DiskUsage(ctx, s.dir) }

func (s moduleStore) Entries(ctx context.Context) ([]budget.Entry, error) {
	kept, err := s.Kept(ctx)
	out := make([]budget.Entry, 0, len(kept))
	for _, k := range kept {
		out = append(out, budget.Entry{ID: k.Digest, Description: "a compiled module", Bytes: k.Bytes, Created: k.Created, LastUsed: k.LastUsed})
	}
	return out, err
}

// startPlugins makes what the configured plugins do. A file that is not there is told now, and not when a job needs it.
func (a *assembly) startPlugins() error {
	c := a.config.Plugins
	program, log := filepath.Join(a.engines.Dir(), wasmProgram), a.log.With("component", "plugin")
	for option, path := range map[string]string{"admission": c.Admission, "log_filter": c.LogFilter} {
		if path == "" {
			continue
		}
		if err := plugin.Check(path); err != nil {
			return fmt.Errorf("plugins.%s: %w", option, err)
		}
	}
	if c.Admission != "" {
		admission := plugin.NewAdmission(program, c.Admission, log)
		a.later(admission.Close)
		a.admit = admission.Admit
	}
	if c.LogFilter != "" {
		a.filter = plugin.NewFilter(program, c.LogFilter, log)
		a.later(a.filter.Close)
	}
	return nil
}

// source is a source of jobs with all that wraps it.
func (a *assembly) source(of runner.Source) runner.Source {
	if a.filter != nil {
		of = a.filter.Source(of)
	}
	return a.metrics.Source(of)
}
