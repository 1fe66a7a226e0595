package main

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"
	"golang.org/x/sys/unix"
)

// put writes a file below dir, with the directories above it.
func put(t *testing.T, dir, name, content string, mode os.FileMode) {
	t.Helper()
	file := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// upper makes what a RUN line could have made.
func upper(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	put(t, dir, "etc/b", "b", 0o600)
	put(t, dir, "etc/a", "a", 0o644)
	put(t, dir, "usr/bin/tool", "tool", 0o755)
	if err := errors.Join(
		os.Link(filepath.Join(dir, "etc/a"), filepath.Join(dir, "usr/hard")),
		os.Symlink("../etc/a", filepath.Join(dir, "usr/soft")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}

func makeImage(t *testing.T, out, ref, dockerfile, dir string, flags ...string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "Dockerfile")
	if err := os.WriteFile(file, []byte(dockerfile), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"build", "-layout", out, "-ref", ref, "-inputs", "1", "-epoch", "1000", "-dockerfile", file, "-upper", dir}
	if err := run(append(args, flags...)); err != nil {
		t.Fatal(err)
	}
}

// entries reads the n-th layer of ref.
func entries(t *testing.T, out, ref string, n int) []*tar.Header {
	t.Helper()
	img, err := find(layout.Path(out), ref)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	content, err := layers[n].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	var hs []*tar.Header
	for r := tar.NewReader(content); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return hs
		}
		if err != nil {
			t.Fatal(err)
		}
		hs = append(hs, h)
	}
}

func names(hs []*tar.Header) []string {
	var ns []string
	for _, h := range hs {
		ns = append(ns, h.Name)
	}
	return ns
}

const base = "FROM scratch\nADD rootfs.tar /\nENV PATH=/bin A=1\nCMD [\"bash\"]\n"

func TestImage(t *testing.T) {
	out := filepath.Join(t.TempDir(), "images")
	makeImage(t, out, "base:1", base, upper(t))

	tools := t.TempDir()
	put(t, tools, "bin/go", "go", 0o755)
	put(t, tools, "doc/x", "x", 0o644)
	makeImage(t, out, "go:1", `FROM base:1
RUN --mount=type=bind,target=/images one && \
    two
COPY --from=tools --exclude=doc . /usr/local/go/
COPY --from=tools bin/go /opt/
ENV A=2
WORKDIR /go
`, upper(t), "-context", "tools="+tools, "-env", "B=3")

	hs := entries(t, out, "base:1", 0)
	if want := []string{"etc/", "etc/a", "etc/b", "usr/", "usr/bin/", "usr/bin/tool", "usr/hard", "usr/soft"}; !slices.Equal(names(hs), want) {
		t.Errorf("got %v, want %v", names(hs), want)
	}
	for _, h := range hs {
		if !h.ModTime.Equal(time.Unix(1000, 0)) {
			t.Errorf("%s has the time %s", h.Name, h.ModTime)
		}
	}
	if hard := hs[6]; hard.Typeflag != tar.TypeLink || hard.Linkname != "etc/a" {
		t.Errorf("hard link: %+v", hard)
	}
	if want := []string{"usr/", "usr/local/", "usr/local/go/", "usr/local/go/bin/", "usr/local/go/bin/go"}; !slices.Equal(names(entries(t, out, "go:1", 2)), want) {
		t.Errorf("got %v, want %v", names(entries(t, out, "go:1", 2)), want)
	}
	if want := []string{"opt/", "opt/go"}; !slices.Equal(names(entries(t, out, "go:1", 3)), want) {
		t.Errorf("got %v, want %v", names(entries(t, out, "go:1", 3)), want)
	}

	img, err := find(layout.Path(out), "go:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(img); err != nil {
		t.Error(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(c.Config.Env, " "); got != "PATH=/bin A=2 B=3" || c.Config.WorkingDir != "/go" || c.Config.Cmd[0] != "bash" {
		t.Errorf("config: %+v", c.Config)
	}
}

func TestSameContentSameDigest(t *testing.T) {
	var digests []string
	for range 2 {
		out := filepath.Join(t.TempDir(), "images")
		makeImage(t, out, "base:1", base, upper(t))
		d, err := descriptor(layout.Path(out), "base:1")
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d.Digest.String())
	}
	if digests[0] != digests[1] {
		t.Errorf("%v", digests)
	}
}

func TestWhiteouts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("making a whiteout needs root")
	}
	dir := upper(t)
	if err := errors.Join(
		unix.Mknod(filepath.Join(dir, "etc/gone"), unix.S_IFCHR, 0),
		unix.Lsetxattr(filepath.Join(dir, "usr"), "trusted.overlay.opaque", []byte("y"), 0),
	); err != nil {
		t.Skip(err)
	}
	out := filepath.Join(t.TempDir(), "images")
	makeImage(t, out, "base:1", base, dir)
	got := names(entries(t, out, "base:1", 0))
	if !slices.Contains(got, "etc/.wh.gone") || !slices.Contains(got, "usr/.wh..wh..opq") || slices.Contains(got, "etc/gone") {
		t.Errorf("got %v", got)
	}
}

func TestCurrentAndSweep(t *testing.T) {
	out := filepath.Join(t.TempDir(), "images")
	dir := upper(t)
	makeImage(t, out, "base:1", base, dir)
	if err := current(out, "base:1", "1"); err != nil {
		t.Error(err)
	}
	if current(out, "base:1", "2") == nil || current(out, "base:2", "1") == nil {
		t.Error("current with other inputs or another name")
	}
	old, err := layerFiles(out, "base:1")
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "etc/new", "new", 0o644)
	makeImage(t, out, "base:1", base, dir)
	put(t, out, ".layer-left", "", 0o600)
	if err := sweep(out); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{old[0], filepath.Join(out, ".layer-left")} {
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is still there: %v", file, err)
		}
	}
	files, err := layerFiles(out, "base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], 5); err != nil {
		t.Fatal(err)
	}
	if current(out, "base:1", "1") == nil {
		t.Error("current with a layer cut short")
	}
}

func TestRecipeRefusesWhatItWouldLeaveOut(t *testing.T) {
	for _, c := range []struct{ dockerfile, want string }{
		{"FROM a\nFROM b\n", "one FROM"},
		{"FROM a AS b\n", "one FROM"},
		{"FROM --platform=linux/arm64 a\n", "--platform"},
		{"FROM a\nUSER 1\n", "USER is not supported"},
		{"FROM a\nCOPY x /y/\n", "--from"},
		{"FROM a\nCOPY --from=c --chown=1 x /y/\n", "--chown"},
		{"FROM a\nCOPY --from=c x /y\n", "slash"},
		{"FROM a\nCMD bash\n", "list"},
		{"FROM a\nRUN\n", ""},
	} {
		file := filepath.Join(t.TempDir(), "Dockerfile")
		if err := os.WriteFile(file, []byte(c.dockerfile), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readRecipe(file); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want an error with %q", c.dockerfile, err, c.want)
		}
	}
}

func TestDockerfilesOfTheImages(t *testing.T) {
	for _, image := range []string{"debian", "sandbox", "golang", "node"} {
		r, err := readRecipe(filepath.Join("..", image, "Dockerfile"))
		if err != nil {
			t.Error(err)
			continue
		}
		if (r.from == "") != (image == "debian") {
			t.Errorf("%s is from %q", image, r.from)
		}
		if image != "debian" && r.runs[0] != "/images/install.sh "+image {
			t.Errorf("%s: the first RUN line is %q", image, r.runs[0])
		}
	}
}
