package container

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLinkTree holds that a tree of links is like the one it was made of.
func TestLinkTree(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "to")
	then := time.Unix(1e9, 5)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.Mkdir(to, 0o755))
	do(os.MkdirAll(filepath.Join(from, "dir/inner"), 0o755))
	do(os.WriteFile(filepath.Join(from, "dir/file"), []byte("x"), 0o640))
	do(os.Symlink("nowhere", filepath.Join(from, "dir/inner/link")))
	do(os.Chmod(filepath.Join(from, "dir"), 0o711|os.ModeSticky))
	do(unix.Lsetxattr(filepath.Join(from, "dir"), "user.overlay.opaque", []byte("y"), 0))
	for _, dir := range []string{"dir/inner", "dir", "."} {
		do(os.Chtimes(filepath.Join(from, dir), then, then))
	}
	do(linkTree(from, to))
	for _, path := range []string{".", "dir", "dir/inner"} {
		want, err := os.Lstat(filepath.Join(from, path))
		do(err)
		got, err := os.Lstat(filepath.Join(to, path))
		do(err)
		if got.Mode() != want.Mode() || !got.ModTime().Equal(want.ModTime()) || os.SameFile(got, want) {
			t.Errorf("%s: %v %v, want %v %v", path, got.Mode(), got.ModTime(), want.Mode(), want.ModTime())
		}
	}
	for _, path := range []string{"dir/file", "dir/inner/link"} {
		info, err := os.Lstat(filepath.Join(to, path))
		do(err)
		if n := info.Sys().(*syscall.Stat_t).Nlink; n != 2 {
			t.Errorf("%s has %d links", path, n)
		}
	}
	value := make([]byte, 1)
	if _, err := unix.Lgetxattr(filepath.Join(to, "dir"), "user.overlay.opaque", value); err != nil || value[0] != 'y' {
		t.Errorf("opaque: %q, %v", value, err)
	}
	if err := linkTree(from, to); err == nil {
		t.Error("linked over what is there")
	}
}
