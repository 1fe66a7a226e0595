// Package engine runs WebAssembly modules (WASI preview 1) with wazero, in the program runnerd-wasm. The daemon does not
// import it: what it runs is strangers' code, and belongs into their sandbox.
package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// newRuntime returns a runtime whose modules end with their context. That is part of what is compiled, so everything
// that compiles uses this.
func newRuntime(ctx context.Context, cache wazero.CompilationCache, pages uint32) (wazero.Runtime, error) {
	config := wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(true).WithMemoryLimitPages(pages)
	if cache != nil {
		config = config.WithCompilationCache(cache)
	}
	r := wazero.NewRuntimeWithConfig(ctx, config)
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, r); err != nil {
		return nil, errors.Join(err, r.Close(ctx))
	}
	return r, nil
}

// cacheDir is the directory in dir in which wazero's cache keeps this version's files.
func cacheDir(dir string) (string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "wazero-*"))
	if err == nil && len(found) != 1 {
		err = fmt.Errorf("%d directories of wazero are in %s, not one", len(found), dir)
	}
	if err != nil {
		return "", err
	}
	return found[0], nil
}

// The beginnings of binaries: of a module (core specification 2.0, 5.5.16), and of a component (component-model,
// design/mvp/Binary.md: a version and the layer 1).
var (
	magic       = []byte("\x00asm")
	moduleStart = []byte("\x00asm\x01\x00\x00\x00")
)

// Recognise says what is wrong with a file that is no module.
func Recognise(start []byte) error {
	switch {
	case bytes.HasPrefix(start, moduleStart):
		return nil
	case !bytes.HasPrefix(start, magic) || len(start) < 8:
		return errors.New("it is no WebAssembly module")
	case start[6] == 1 && start[7] == 0:
		return errors.New("it is a component (WASI preview 2), and only modules of WASI preview 1 are run: build it for wasip1 or wasm32-wasip1, or take the module out of it")
	}
	return fmt.Errorf("it is WebAssembly of the unknown version %x", start[4:8])
}

// Compile compiles the module that it reads, and writes the name under which wazero looks for it, a line, and then the
// compiled module. What is wrong with the module is an error, too.
func Compile(ctx context.Context, module io.Reader, out io.Writer) (err error) {
	data, err := readModule(module)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "compile-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cache, err := wazero.NewCompilationCacheWithDir(dir)
	if err != nil {
		return err
	}
	r, err := newRuntime(ctx, cache, maxPages)
	if err != nil {
		return err
	}
	if _, err := r.CompileModule(ctx, data); err != nil {
		return err
	}
	at, err := cacheDir(dir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(at)
	if err != nil {
		return err
	}
	if len(entries) != 1 || !wire.CheckKey(entries[0].Name()) {
		return fmt.Errorf("wazero has made %d files of one module", len(entries))
	}
	compiled, err := os.Open(filepath.Join(at, entries[0].Name()))
	if err != nil {
		return err
	}
	defer compiled.Close()
	if _, err := io.WriteString(out, entries[0].Name()+"\n"); err != nil {
		return err
	}
	_, err = io.Copy(out, compiled)
	return err
}

// maxPages is all that a memory can have.
const maxPages = 1 << 16

// readModule reads a module, and refuses what is none.
func readModule(from io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(from, wire.MaxModule+1))
	if err != nil {
		return nil, err
	}
	if len(data) > wire.MaxModule {
		return nil, fmt.Errorf("it is larger than %d MiB", wire.MaxModule>>20)
	}
	return data, Recognise(data)
}
