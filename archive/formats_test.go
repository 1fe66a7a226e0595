package archive

import (
	"archive/zip"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
)

// packAs packs all that there is below a directory, but for itself.
func packAs(t *testing.T, dir string, p Packing, patterns ...string) ([]byte, error) {
	t.Helper()
	found, err := Select(dir, Selection{Patterns: patterns}, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(dir, found.Names); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	_, err = Pack(&out, dir, found.Names, p)
	return out.Bytes(), err
}

// TestZip packs a tree, reads the zip as anybody does, and extracts it.
func TestZip(t *testing.T) {
	root := tree(t, "a/x", strings.Repeat("text ", 10_000), "a/run", "#!/bin/sh\n", "a/l", "->x", "a/abs", "->/etc/passwd", "a/dangling", "->nowhere",
		"empty/", "", "\u00e9", "unicode", "zero", "", "hard", "=a/x")
	for name, mode := range map[string]os.FileMode{"a/run": 0o755, "empty": 0o700, "zero": 0o600} {
		if err := os.Chmod(filepath.Join(root, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Unix(1_500_000_001, 0)
	if err := os.Chtimes(filepath.Join(root, "zero"), at, at); err != nil {
		t.Fatal(err)
	}
	sizes := map[int]int{}
	for _, level := range []int{0, 1, 5, 9} {
		archive, err := packAs(t, root, Packing{Format: Zip, Level: level}, ".")
		if err != nil {
			t.Fatal(err)
		}
		sizes[level] = len(archive)
		z, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, f := range z.File {
			text := f.Name + " " + f.Mode().String()
			if f.Mode().Type() == os.ModeSymlink {
				r, err := f.Open()
				if err != nil {
					t.Fatal(err)
				}
				target, _ := io.ReadAll(r)
				text += "->" + string(target)
			} else if f.Flags&8 == 0 && f.Mode().IsRegular() {
				t.Errorf("%s was not streamed", f.Name)
			}
			all = append(all, text)
		}
		want := "a/ drwxr-xr-x, a/abs Lrwxrwxrwx->/etc/passwd, a/dangling Lrwxrwxrwx->nowhere, a/l Lrwxrwxrwx->x, a/run -rwxr-xr-x, a/x -rw-r--r--, " +
			"empty/ drwx------, hard -rw-r--r--, zero -rw-------, \u00e9 -rw-r--r--"
		if got := strings.Join(all, ", "); got != want {
			t.Errorf("%s", got)
		}
		to := newArena(t)
		sum, err := to.unzip(t, archive, Limits{Bytes: 1 << 20, Entries: 10}, true)
		if err != nil || sum.Files != 8 {
			t.Error(sum, err)
		}
		again, err := packAs(t, to.root, Packing{Format: Zip, Level: level}, ".")
		if err != nil || !bytes.Equal(again, archive) {
			t.Errorf("level %d: what was extracted is another: %v", level, err)
		}
		if fi, err := os.Stat(filepath.Join(to.root, "zero")); err != nil || !fi.ModTime().Equal(at) {
			t.Error(fi.ModTime(), err)
		}
	}
	if sizes[0] < 100_000 || sizes[1] > 10_000 || sizes[9] > sizes[1] {
		t.Error(sizes)
	}
}

func TestGzip(t *testing.T) {
	root := tree(t, "r/one.xml", "<one/>", "r/zwei ä.xml", "<zwei/>", "r/100%", "", "d/", "", "l", "->r/one.xml")
	archive, err := packAs(t, root, Packing{Format: Gzip}, "r/*")
	if err != nil {
		t.Fatal(err)
	}
	members := bytes.NewReader(archive)
	var got []string
	for r, err := gzip.NewReader(members); err == nil; err = r.Reset(members) {
		r.Multistream(false)
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s %s %s", r.Name, r.Comment, text))
	}
	if want := "[e:100%25 e:r%2F100%25  one.xml r/one.xml <one/> e:zwei%20%C3%A4.xml e:r%2Fzwei%20%C3%A4.xml <zwei/>]"; fmt.Sprint(got) != want {
		t.Errorf("%q", got)
	}
	for _, pattern := range []string{"d", "l"} {
		if _, err := packAs(t, root, Packing{Format: Gzip}, pattern); err == nil {
			t.Errorf("%s is no regular file and was packed", pattern)
		}
	}
}

func TestRaw(t *testing.T) {
	root := tree(t, "one", "1", "two", "2", "d/x", "3")
	if archive, err := packAs(t, root, Packing{Format: Raw}, "one"); err != nil || string(archive) != "1" {
		t.Errorf("%q, %v", archive, err)
	}
	for _, patterns := range []string{"one two", "d", "*"} {
		if _, err := packAs(t, root, Packing{Format: Raw}, strings.Fields(patterns)...); err == nil {
			t.Errorf("%s was packed", patterns)
		}
	}
	if _, err := packAs(t, root, Packing{Format: "rar"}, "one"); err == nil {
		t.Error("a rar")
	}
}

// TestCommand speaks to Command as the daemon does.
func TestCommand(t *testing.T) {
	root := tree(t, "a/x", "one", "a/y.log", "two", "b", "three")
	run := func(dir, args, stdin string) (code int, stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		code = Command(dir, strings.Fields(args), strings.NewReader(stdin), &out, &errs)
		return code, out.String(), errs.String()
	}
	code, zipped, said := run(root, "pack 100 10 format=zip level=1 exclude=**/*.log exclude=.. further=stdin -- a ../out none", "b\x00")
	if want := "path 2\npath ! pack ../out: the path is not within the working directory\npath 0\nexclude 1\nexclude ! pack ..: the path is not within the working directory\nfurther 1\nfound 3 0\npack\n2 8 0 0\n"; code != 0 || said != want {
		t.Errorf("%d %q", code, said)
	}
	to := t.TempDir()
	if code, out, said := run(to, "unzip 1000 10", zipped); code != 0 || out != "2 8 0 0\n" {
		t.Errorf("%d %q %q", code, out, said)
	}
	if left, err := filepath.Glob(filepath.Join(to, "*")); err != nil || len(left) != 2 {
		t.Error(left, err)
	}
	code, tarred, said := run(root, "pack 0 0 -- .", "")
	if code != 0 || !strings.HasSuffix(said, "found 5 0\npack\n3 11 0 0\n") {
		t.Errorf("%d %q", code, said)
	}
	if code, out, said := run(t.TempDir(), fmt.Sprintf("extract %d 0", len(tarred)), tarred); code != 0 || out != "3 11 0 0\n" {
		t.Errorf("%d %q %q", code, out, said)
	}
	for _, c := range [][3]string{
		{"", "", "pack BYTES"},
		{"pack 1 1", "", "pack BYTES"},
		{"pack 1 1 .", "", "pack BYTES"},
		{"pack -1 1 -- .", "", "pack BYTES"},
		{"pack 1 x -- .", "", "pack BYTES"},
		{"pack 0 0 level=10 -- .", "", "pack BYTES"},
		{"pack 0 0 colour=red -- .", "", "pack BYTES"},
		{"delete 0 0", "", "pack BYTES"},
		{"pack 0 0 format=rar -- .", "", "not a format"},
		{"pack 0 0 format=raw -- a/x b", "", "only one file"},
		{"pack 10 0 -- .", "", "more than 10 bytes"},
		{"pack 0 4 -- .", "", ""},
		{"pack 0 3 -- .", "", "more than 3 files"},
		{fmt.Sprintf("extract %d 0", len(tarred)), tarred[:len(tarred)-1024], "unexpected EOF"},
		{"unzip 10 0", zipped, "more than 10 bytes"},
		{"unzip 0 0", zipped[:len(zipped)-1], "zip: not a valid zip file"},
		{"unzip 0 0", "", "zip: not a valid zip file"},
	} {
		to := root
		if strings.HasPrefix(c[0], "extract") || strings.HasPrefix(c[0], "unzip") {
			to = t.TempDir()
		}
		code, _, said := run(to, c[0], c[1])
		if c[2] != "" && code == 0 || !strings.Contains(said, c[2]) {
			t.Errorf("%s: %d %q", c[0], code, said)
		}
		if left, _ := os.ReadDir(to); to != root && code != 0 && len(left) > 0 {
			t.Errorf("%s: %v is left", c[0], left)
		}
	}
}
