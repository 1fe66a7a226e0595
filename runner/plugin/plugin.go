package plugin

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm"
	"github.com/runnerd/runnerd/sandbox/wasm/wire"
)

// memory is what one run of a plugin may have, in bytes.
const memory = 128 << 20

// module is a plugin's file, and the process that runs it. It is safe for concurrent use.
type module struct {
	path  string
	limit sandbox.Module
	cfg   wasm.Config

	mu    sync.Mutex
	layer sandbox.Sandbox // nil before the first use
	info  os.FileInfo     // of the file that data is of
	data  []byte
	name  string // what data is called: it has its digest
}

func newModule(program, path string, limit sandbox.Module, log *slog.Logger) *module {
	limit.Memory = memory
	m := &module{path: path, limit: limit}
	m.cfg = wasm.Config{Program: program, Artifact: m.artifact, Log: log}
	return m
}

// Check reports whether there is a module in the file.
func Check(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	start := make([]byte, 8)
	if _, err := io.ReadFull(file, start); err != nil || !bytes.Equal(start, []byte("\x00asm\x01\x00\x00\x00")) {
		return fmt.Errorf("%s is no WebAssembly module: build it with GOOS=wasip1 GOARCH=wasm", path)
	}
	return nil
}

// run runs the module that is in the file now.
func (m *module) run(ctx context.Context, stdin io.Reader, stdout, stderr io.Writer) (sandbox.Exit, error) {
	layer, name, err := m.current(ctx)
	if err != nil {
		return sandbox.Exit{}, err
	}
	return layer.Exec(ctx, sandbox.Process{Args: []string{"oci:" + name}, Env: []string{}, Dir: "/", Stdin: stdin, Stdout: stdout, Stderr: stderr})
}

// current looks at the file, and starts the process if there is none.
func (m *module) current(ctx context.Context) (sandbox.Sandbox, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	info, err := os.Stat(m.path)
	if err != nil {
		return nil, "", err
	}
	if m.info == nil || !os.SameFile(info, m.info) || info.Size() != m.info.Size() || !info.ModTime().Equal(m.info.ModTime()) {
		if info.Size() > wire.MaxModule {
			return nil, "", fmt.Errorf("%s is larger than %d MiB", m.path, wire.MaxModule>>20)
		}
		data, err := os.ReadFile(m.path)
		if err != nil {
			return nil, "", err
		}
		sum := sha256.Sum256(data)
		m.data, m.name, m.info = data, m.path+"@"+hex.EncodeToString(sum[:]), info
		if time.Since(info.ModTime()) < time.Second { // it may be being written
			m.info = nil
		}
	}
	if m.layer == nil {
		if m.layer, err = wasm.New(m.cfg).Start(context.WithoutCancel(ctx), host{m.cfg.Program}, sandbox.Spec{ID: "plugins", Module: m.limit}); err != nil {
			return nil, "", err
		}
	}
	return m.layer, m.name, nil
}

// artifact is the file as it is known.
func (m *module) artifact(_ context.Context, name string, _ sandbox.Pull) (wasm.Artifact, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if name != m.name {
		return wasm.Artifact{}, fmt.Errorf("the plugin %s was replaced meanwhile", m.path)
	}
	data := m.data
	return wasm.Artifact{
		Digest: name[strings.LastIndex(name, "@")+1:],
		Open:   func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
	}, nil
}

// Close ends the process.
func (m *module) Close(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.layer == nil {
		return nil
	}
	return m.layer.Close(ctx)
}
