package engine

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// engines writes files and a manifest of them, all of version v9.0.0, and returns the directory.
func engines(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	manifest := "# inputs 1234\n"
	for _, name := range names {
		content := []byte("the program " + name)
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
		manifest += fmt.Sprintf("%s v9.0.0 %x\n", name, sha256.Sum256(content))
	}
	write(t, dir, manifest)
	return dir
}

func write(t *testing.T, dir, manifest string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
}

func load(t *testing.T, dir string) Set {
	t.Helper()
	s, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLoad(t *testing.T) {
	dir := engines(t, "runc", "containerd")
	s := load(t, dir)
	if got := s.Engines(); len(got) != 2 || got[0].Name != "containerd" || got[1].Version != "v9.0.0" {
		t.Errorf("engines: %v", got)
	}
	if path, err := s.Path("runc"); err != nil || path != filepath.Join(dir, "runc") {
		t.Errorf("Path: %q, %v", path, err)
	}
	if _, err := s.Path("crun"); err == nil || !strings.Contains(err.Error(), "make engines") {
		t.Errorf("Path of an unknown engine: %v", err)
	}
	if err := s.Verify(t.Context()); err != nil {
		t.Errorf("Verify: %v", err)
	}
}

func TestZeroSetHasNothing(t *testing.T) {
	if _, err := (Set{}).Path("runc"); err == nil {
		t.Error("the zero Set has runc")
	}
}

func TestLoadRefuses(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for _, c := range []struct{ what, manifest, want string }{
		{"nothing", "", "names none"},
		{"comments alone", "# inputs 12\n\n", "names none"},
		{"two words", "runc v1.5.2\n", ":1: "},
		{"four words", "runc v1.5.2 " + digest + " x\n", ":1: "},
		{"binary garbage", "# x\n\x00\xff\x01\n", ":2: "},
		{"version without v", "runc 1.5.2 " + digest + "\n", "not a version"},
		{"no version", "runc unknown " + digest + "\n", "not a version"},
		{"short digest", "runc v1.5.2 abcd\n", "not a SHA-256"},
		{"digest in capitals", "runc v1.5.2 " + strings.ToUpper(digest) + "\n", "not a SHA-256"},
		{"a path", "../runc v1.5.2 " + digest + "\n", "name of a file"},
		{"a dot", ".. v1.5.2 " + digest + "\n", "name of a file"},
		{"twice", "runc v1.5.2 " + digest + "\nrunc v1.1.0 " + digest + "\n", "twice"},
		{"a very long line", "runc v1.5.2 " + strings.Repeat("a", 1<<20) + "\n", "too long"},
	} {
		t.Run(c.what, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, c.manifest)
			s, err := Load(dir)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "make engines") {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
			if len(s.Engines()) > 0 {
				t.Error("engines from a bad manifest")
			}
		})
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "make engines") {
		t.Errorf("no manifest: %v", err)
	}
}

func TestVerifyTellsEveryBadEngine(t *testing.T) {
	dir := engines(t, "buildkitd", "containerd", "dockerd", "runc", "shim")
	s := load(t, dir)
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(
		os.WriteFile(at("runc"), []byte("the program runq"), 0o755),
		os.Remove(at("dockerd")),
		os.Chmod(at("containerd"), 0o644),
		os.Remove(at("shim")), os.Mkdir(at("shim"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	err := s.Verify(t.Context())
	if err == nil {
		t.Fatal("nothing found")
	}
	for _, want := range []string{"engine runc: ", "engine dockerd: ", "engine containerd: ", "engine shim: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not told in:\n%v", want, err)
		}
	}
	if strings.Contains(err.Error(), "buildkitd") || strings.Count(err.Error(), "make engines") != 4 {
		t.Errorf("got:\n%v", err)
	}
}

func TestVerifyEndsWithItsContext(t *testing.T) {
	s := load(t, engines(t, "runc"))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Verify(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestAdvisories(t *testing.T) {
	for _, c := range []struct {
		engine, version string
		want            []string // the first identifier of each finding
	}{
		{"runc", "v1.0.0-rc6", []string{"CVE-2019-5736", "CVE-2021-30465", "CVE-2023-27561", "CVE-2024-21626", "CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.1.5", []string{"CVE-2024-21626", "CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.1.12", []string{"CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.1.99", []string{"CVE-2025-31133", "CVE-2026-41579"}}, // a branch without a fix
		{"runc", "v1.2.7", []string{"CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.2.8", []string{"CVE-2026-41579"}},
		{"runc", "v1.3.2", []string{"CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.3.3", []string{"CVE-2026-41579"}},
		{"runc", "v1.3.6", nil},
		{"runc", "v1.4.0-rc.2", []string{"CVE-2025-31133", "CVE-2026-41579"}},
		{"runc", "v1.4.0-rc.3", []string{"CVE-2026-41579"}},
		{"runc", "v1.4.2", []string{"CVE-2026-41579"}},
		{"runc", "v1.4.3", nil},
		{"runc", "v1.5.0-rc.2", []string{"CVE-2026-41579"}},
		{"runc", "v1.5.0-rc.3", nil},
		{"runc", "v1.5.2", nil},
		{"runc", "v2.0.0", nil},
		{"containerd", "v1.6.0", []string{"CVE-2022-23648", "CVE-2024-40635", "CVE-2026-53488"}},
		{"containerd", "v1.6.39", []string{"CVE-2026-53488"}}, // a branch without a fix
		{"containerd", "v1.7.33", nil},
		{"containerd", "v2.0.9", []string{"CVE-2026-53488"}},
		{"containerd", "v2.0.10", nil}, // older than what restores checkpoints
		{"containerd", "v2.1.8", []string{"CVE-2026-53488", "CVE-2026-50195"}},
		{"containerd", "v2.3.2", nil},
		{"containerd", "v2.4.2", nil},
		{"buildkitd", "v0.12.4", []string{"CVE-2024-23651", "CVE-2026-33747", "GHSA-7236-3392-c5c6", "CVE-2026-15791", "CVE-2026-93320", "GHSA-w26x-xg27-7qjc"}},
		{"buildkitd", "v0.31.1", []string{"CVE-2026-15791", "CVE-2026-93320", "GHSA-w26x-xg27-7qjc"}},
		{"buildkitd", "v0.31.2", []string{"CVE-2026-93320", "GHSA-w26x-xg27-7qjc"}},
		{"buildkitd", "v0.34.2", nil},
		{"dockerd", "v2.0.0-beta.7", []string{"CVE-2026-34040", "CVE-2026-41567", "GHSA-7236-3392-c5c6", "CVE-2026-93320"}},
		{"dockerd", "v2.0.0-beta.13", []string{"CVE-2026-41567", "GHSA-7236-3392-c5c6", "CVE-2026-93320"}},
		{"dockerd", "v2.0.0-beta.18", []string{"GHSA-7236-3392-c5c6", "CVE-2026-93320"}},
		{"dockerd", "v2.0.0-beta.24", nil},
		{"dockerd", "v2.0.0", nil},
		{"docker", "v29.9.3", nil}, // a client
		{"unheard-of", "v0.0.1", nil},
	} {
		dir := t.TempDir()
		write(t, dir, c.engine+" "+c.version+" "+strings.Repeat("0", 64)+"\n")
		var got []string
		for _, f := range load(t, dir).Advisories() {
			first, _, _ := strings.Cut(f.ID, ",")
			got = append(got, first)
			for _, want := range []string{c.engine, c.version, f.ID, "fixed in " + f.Fixed[0], "make engines"} {
				if !strings.Contains(f.Error(), want) {
					t.Errorf("%q is not in the message %q", want, f)
				}
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s %s: got %v, want %v", c.engine, c.version, got, c.want)
		}
	}
}
