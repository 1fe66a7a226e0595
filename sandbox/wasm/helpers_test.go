package wasm

import (
	"crypto/sha256"
	"os"
	"testing"

	initwire "github.com/runnerd/runnerd/sandbox/initd/wire"
)

func sha(data []byte) [32]byte { return sha256.Sum256(data) }

// sealed is a memory file as a runtime sends modules in.
func sealed(t *testing.T, data []byte) *os.File {
	t.Helper()
	file, err := initwire.Memfile(data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}
