// Package wasmtest is what tests of modules share.
package wasmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// Probe is a module that does one thing of those that modules do; see testdata/probe.
func Probe(t testing.TB) []byte {
	t.Helper()
	module, err := probe()
	if err != nil {
		t.Fatal(err)
	}
	return module
}

var probe = sync.OnceValues(func() ([]byte, error) {
	_, here, _, _ := runtime.Caller(0)
	dir, err := os.MkdirTemp("", "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	out := filepath.Join(dir, "probe.wasm")
	if err := Build(filepath.Join(filepath.Dir(here), "testdata/probe"), out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
})

// Build compiles the Go program in a directory to a module.
func Build(dir, out string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, ".")
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
