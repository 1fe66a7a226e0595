package wasm

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/wasm/wasmtest"
)

// example builds a module of examples/wasm.
func example(t *testing.T, name string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), name+".wasm")
	if err := wasmtest.Build("../../examples/wasm/"+name, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// write makes a directory with files.
func write(t *testing.T, files map[string]string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLintExample(t *testing.T) {
	lint := example(t, "lint")
	for _, c := range []struct {
		files  map[string]string
		code   int
		stdout string
	}{
		{map[string]string{"a.go": "package a\n", "b.md": "two blanks  \n", "c.bin": "\x00  \n", ".git/x": "x  \n"}, 0, ""},
		{
			map[string]string{"a.go": "package a \n\n<<<<<<< ours", "d/key": "-----BEGIN RSA PRIVATE KEY-----\n"},
			1,
			"a.go:1: blanks at the end of the line\na.go:3: a conflict that was not resolved\na.go:3: the last line has no end\nd/key:1: a private key\n",
		},
	} {
		f := newFixture(t, nil, sandbox.Module{Dirs: []sandbox.ModuleDir{{Path: write(t, c.files), At: "/workspace", ReadOnly: true}}})
		stdout, stderr, exit := f.runAs(sandbox.Process{}, lint, "/workspace")
		if stdout != c.stdout || exit.Code != c.code {
			t.Errorf("got %q, %q, %v", stdout, stderr, exit)
		}
	}
}

func TestImagePolicyExample(t *testing.T) {
	check := example(t, "imagepolicy")
	dir := write(t, map[string]string{
		"policy.json": `{"max_bytes": 1000, "max_layers": 1, "media_types": ["application/vnd.oci.image.layer.v1.tar+gzip"], "annotations": ["org.opencontainers.image.source"]}`,
		"typo.json":   `{"max_byte": 1000}`,
	})
	f := newFixture(t, nil, sandbox.Module{Dirs: []sandbox.ModuleDir{{Path: dir, At: "/p", ReadOnly: true}}})
	const layer = `{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "sha256:00", "size": 600}`
	manifest := func(layers, rest string) string {
		return `{"schemaVersion": 2, "config": {"digest": "sha256:01", "size": 10}, "layers": [` + layers + `]` + rest + `}`
	}
	for _, c := range []struct {
		policy, manifest string
		code             int
		stdout           string // part
	}{
		{"policy", manifest(layer, `, "annotations": {"org.opencontainers.image.source": "x"}`), 0, ""},
		{"policy", manifest(layer, ""), 1, "the annotation org.opencontainers.image.source is missing"},
		{"policy", manifest(layer+","+layer, ""), 1, "1210 bytes are more than 1000\n2 layers are more than 1"},
		{"policy", manifest(`{"mediaType": "x", "digest": "md5:0", "urls": ["http://elsewhere"]}`, ""), 1, "comes from elsewhere"},
		{"typo", manifest(layer, ""), 2, ""},
		{"policy", "no manifest", 2, ""},
	} {
		stdout, stderr, exit := f.runAs(sandbox.Process{Stdin: strings.NewReader(c.manifest)}, check, "/p/"+c.policy+".json")
		if !strings.Contains(stdout, c.stdout) || c.stdout == "" && stdout != "" || exit.Code != c.code {
			t.Errorf("%s: got %q, %q, %v", c.manifest, stdout, stderr, exit)
		}
	}
}
