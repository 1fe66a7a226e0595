package main

import (
	"context"
	"path/filepath"

	"github.com/runnerd/runnerd/budget"
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
