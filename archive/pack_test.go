package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func stat(fi fs.FileInfo) *syscall.Stat_t { return fi.Sys().(*syscall.Stat_t) }

// tree makes files from "name": contents; a name that ends with a slash is a directory, contents that begin with
// "->" are a link, with "=" a hard link.
func tree(t *testing.T, files ...string) string {
	t.Helper()
	root := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		name, content := filepath.Join(root, files[i]), files[i+1]
		err := os.MkdirAll(filepath.Dir(name), 0o755)
		switch {
		case err != nil:
		case strings.HasSuffix(files[i], "/"):
			err = os.Mkdir(name, 0o755)
		case strings.HasPrefix(content, "->"):
			err = os.Symlink(content[2:], name)
		case strings.HasPrefix(content, "="):
			err = os.Link(filepath.Join(root, content[1:]), name)
		default:
			err = os.WriteFile(name, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// names are those of an archive, links with their targets.
func names(t *testing.T, archive []byte) (all []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		switch h.Typeflag {
		case tar.TypeSymlink:
			name += "->" + h.Linkname
		case tar.TypeLink:
			name += "=" + h.Linkname
		}
		all = append(all, name)
	}
}

// packTar packs what patterns match into a tar.
func packTar(w io.Writer, dir string, patterns []string, limits Limits) (Summary, error) {
	found, err := Select(dir, Selection{Patterns: patterns}, limits)
	for _, m := range found.Patterns {
		err = errors.Join(err, m.Err)
	}
	if err != nil {
		return Summary{}, err
	}
	return Pack(w, dir, found.Names, Packing{Format: Tar, Limits: limits})
}

func TestPack(t *testing.T) {
	root := tree(t, "a/x", "1", "a/y", "22", "a/sub/z", "333", "b.o", "o", "c.o", "o", "deep/er/d.o", "o",
		"link", "->a", "abs", "->/etc/passwd", "one", "1", "two", "=one", "empty/", "", "[x]", "x", "weird\nname", "w")
	for _, c := range []struct{ patterns, want string }{
		{"a", "a/ a/sub/ a/sub/z a/x a/y"},
		{"./a/", "a/ a/sub/ a/sub/z a/x a/y"},
		{root + "/a", "a/ a/sub/ a/sub/z a/x a/y"},
		{"a/x a", "a/ a/sub/ a/sub/z a/x a/y"},
		{"a a", "a/ a/sub/ a/sub/z a/x a/y"},
		{"*.o", "b.o c.o"},
		{"**/*.o", "b.o c.o deep/er/d.o"},
		{"{b,c}.o b.o", "b.o c.o"},
		{"a/*", "a/sub/ a/sub/z a/x a/y"},
		{"none none/at/all a/x/y *.none", ""},
		{"link abs", "abs->/etc/passwd link->a"},
		{"link/x", "link/x"}, // the job's own links lead where they lead, in its own sandbox
		{"one two", "one two=one"},
		{"empty", "empty/"},
		{`\[x\]`, "[x]"},
	} {
		var out bytes.Buffer
		if _, err := packTar(&out, root, strings.Fields(c.patterns), Limits{}); err != nil {
			t.Errorf("%s: %v", c.patterns, err)
			continue
		}
		if got := strings.Join(names(t, out.Bytes()), " "); got != c.want {
			t.Errorf("%s: %s, not %s", c.patterns, got, c.want)
		}
	}
	for _, pattern := range []string{"", "..", "../x", "a/../../x", "/etc", root + "x", "a\x00", "[", "a/[x"} {
		if _, err := packTar(io.Discard, root, []string{pattern}, Limits{}); err == nil {
			t.Errorf("%q was packed", pattern)
		}
	}
}

// TestRoundTrip packs a tree, extracts it, and packs that: the archives are the same.
func TestRoundTrip(t *testing.T) {
	root := tree(t, "a/x", "1", "a/y", strings.Repeat("long", 100_000), "a/"+strings.Repeat("n", 200), "n", "a/l", "->x", "a/h", "=a/x", "a/\u00e9", "u", "e/", "")
	if err := os.Chmod(filepath.Join(root, "a/x"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(root, "a"), time.Time{}, time.Unix(1_000_000_000, 5)); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(root, "a/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = socket.Close() }()
	if err := syscall.Mkfifo(filepath.Join(root, "a/fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	var first, second bytes.Buffer
	sum, err := packTar(&first, root, []string{"."}, Limits{})
	if err != nil || sum.Skipped != 2 || sum.Files != 6 {
		t.Fatal(sum, err)
	}
	to, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = to.Close() }()
	got, err := Extract(to, bytes.NewReader(first.Bytes()), Limits{}, true)
	if err != nil || got.Files != sum.Files || got.Bytes != sum.Bytes {
		t.Fatal(got, err)
	}
	if _, err := packTar(&second, to.Name(), []string{"."}, Limits{}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("%q, then %q", names(t, first.Bytes()), names(t, second.Bytes()))
	}
	if fi, err := to.Stat("a/x"); err != nil || fi.Mode() != 0o755 {
		t.Error(fi.Mode(), err)
	}
}

func TestPackLimits(t *testing.T) {
	root := tree(t, "a/1", "0123456789", "a/2", "0123456789", "a/3", "0123456789")
	for _, c := range []struct {
		limits   Limits
		patterns []string
		ok       bool
	}{
		{Limits{Bytes: 30, Entries: 4}, []string{"a"}, true},
		{Limits{Bytes: 29}, []string{"a"}, false},
		{Limits{Entries: 3}, []string{"a"}, false},
		{Limits{Entries: 2}, []string{"a/*"}, false},
	} {
		_, err := packTar(io.Discard, root, c.patterns, c.limits)
		if (err == nil) != c.ok || !c.ok && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	stuck := errors.New("nobody reads")
	if _, err := packTar(writer{stuck}, root, []string{"a"}, Limits{}); !errors.Is(err, stuck) {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		if err := os.Chmod(filepath.Join(root, "a/2"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := packTar(io.Discard, root, []string{"a"}, Limits{}); !errors.Is(err, fs.ErrPermission) {
			t.Error(err)
		}
	}
}

type writer struct{ err error }

func (w writer) Write([]byte) (int, error) { return 0, w.err }

func TestWithin(t *testing.T) {
	for _, c := range [][3]string{
		{"/w", "a/../b", "b"},
		{"/w", "/w/a", "a"},
		{"/w", "/w", "."},
		{"/w", "/wx", "!"},
		{"/", "/a", "a"},
		{"/w/", "/w/a/", "a"},
		{"/w", "./..", "!"},
		{"/w", "/", "!"},
		{"/w", "/w/../x", "!"},
	} {
		got, err := Within(c[0], c[1])
		if err != nil {
			got = "!"
		}
		if got != c[2] {
			t.Errorf("%q: %q", c, got)
		}
	}
}

// packPipe packs into a pipe, and returns what came out of it.
func packPipe(t *testing.T, pack func(w *os.File) error) []byte {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(&got, r)
		done <- err
	}()
	err = pack(w)
	if err := errors.Join(err, w.Close(), <-done, r.Close()); err != nil {
		t.Fatal(err)
	}
	return got.Bytes()
}

// TestPackIntoPipe holds that what is moved within the kernel is the same archive.
func TestPackIntoPipe(t *testing.T) {
	root := tree(t, "a/small", "1", "a/large", strings.Repeat("long", 500_000), "b/just", strings.Repeat("x", spliceLeast), "b/under", strings.Repeat("x", spliceLeast-1))
	var want bytes.Buffer
	if _, err := packTar(&want, root, []string{"."}, Limits{}); err != nil {
		t.Fatal(err)
	}
	got := packPipe(t, func(w *os.File) error {
		_, err := packTar(w, root, []string{"."}, Limits{})
		return err
	})
	if !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes, not %d", len(got), want.Len())
	}
}

// TestUnspliced copies a file of a kind of which the kernel moves nothing.
func TestUnspliced(t *testing.T) {
	const file = "/proc/self/environ"
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	var moves bool
	got := packPipe(t, func(w *os.File) error {
		s := newSink(w)
		s.from = int(f.Fd())
		_, err := s.Write(make([]byte, len(want)))
		moves = s.pipe != nil
		return errors.Join(err, s.Flush())
	})
	if !bytes.Equal(got, want) || moves {
		t.Errorf("%d bytes, not %d; moved: %t", len(got), len(want), moves)
	}
}

// TestSink holds that a file that has become shorter is an error, whether it is moved or copied.
func TestSink(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, make([]byte, 50_000), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.Copy(io.Discard, r) }()
	defer func() { _ = w.Close() }()
	for _, s := range []*sink{newSink(w), newSink(io.Discard)} {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.copy(s, int(f.Fd()), 50_001); !errors.Is(err, errShorter) {
			t.Errorf("a file that has become shorter: %v", err)
		}
		_ = f.Close()
	}
}
