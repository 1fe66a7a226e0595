package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// TestCopyFile copies from a directory that its owner has filled with traps.
func TestCopyFile(t *testing.T) {
	outside, from := t.TempDir(), t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := errors.Join(
		os.WriteFile(secret, []byte("the machine's"), 0o600),
		os.Mkdir(filepath.Join(from, "dir"), 0o755),
		os.WriteFile(filepath.Join(from, "dir", "good"), []byte("good"), 0o600),
		os.Symlink(secret, filepath.Join(from, "link")),
		os.Symlink(outside, filepath.Join(from, "dirlink")),
		os.Symlink("dir/good", filepath.Join(from, "inner")),
		unix.Mkfifo(filepath.Join(from, "fifo"), 0o600),
		os.WriteFile(filepath.Join(from, "large"), make([]byte, 101), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	volume, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer volume.Close()
	sb := &Sandbox{
		disk: &disk{dir: t.TempDir()}, slot: &slot{base: uint32(os.Getuid())},
		spec: sandbox.Spec{Base: &sandbox.Base{Volume: "v"}},
	}
	for _, name := range []string{"link", "dirlink/secret", "inner", "../" + filepath.Base(outside) + "/secret", secret, "fifo", "large", "dir", "gone"} {
		if n, err := sb.copyFile(volume, name, 100); err == nil || n != 0 {
			t.Errorf("%s was copied", name)
		}
	}
	if n, err := sb.copyFile(volume, "dir/good", 4); n != 4 || err != nil {
		t.Errorf("dir/good: %d bytes, %v", n, err)
	}
	if text, err := os.ReadFile(filepath.Join(sb.disk.dir, "volumes/v/dir/good")); string(text) != "good" {
		t.Errorf("the copy: %q, %v", text, err)
	}
}

// TestPause asks a cgroup that is none to rest.
func TestPause(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		fails string
	}{
		"rests":         {files: map[string]string{"cgroup.freeze": "0", "cgroup.events": "populated 1\nfrozen 1\n"}},
		"there is none": {},
		"does not rest": {files: map[string]string{"cgroup.freeze": "0", "cgroup.events": "populated 1\nfrozen 0\n"}, fails: "gone"},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			g := cgroup{h: hierarchies{unified: true, dirs: map[string]string{"": root}}, path: "/g"}
			for file, text := range c.files {
				if err := errors.Join(os.MkdirAll(g.dir(""), 0o755), os.WriteFile(filepath.Join(g.dir(""), file), []byte(text), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("gone"))
			defer cancel()
			if err := g.pause(ctx); (err != nil) != (c.fails != "") || err != nil && !strings.Contains(err.Error(), c.fails) {
				t.Error(err)
			}
			g.resume()
			if text, _ := os.ReadFile(filepath.Join(g.dir(""), "cgroup.freeze")); c.files != nil && string(text) != "0" {
				t.Errorf("after resume: %s", text)
			}
		})
	}
}
