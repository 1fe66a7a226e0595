package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/archive"
	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
)

func tarOf(t *testing.T, headers ...tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Typeflag, h.Size = tar.TypeReg, 4
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			_, _ = io.WriteString(w, "evil")
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// TestExtractGit holds that nothing gets into the .git directory of the checkout that it is extracted into, which
// without the refusal it does.
func TestExtractGit(t *testing.T) {
	hook := tar.Header{Name: ".git/hooks/post-checkout", Mode: 0o755}
	for name, headers := range map[string][]tar.Header{
		"hook":         {hook},
		"dir":          {{Name: "./.git/", Typeflag: tar.TypeDir}, hook},
		"other case":   {{Name: ".GIT/hooks/post-checkout"}},
		"in a package": {{Name: "sub/.git/config"}},
		"file":         {{Name: "sub/.git"}},
		"link":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".git"}, {Name: "l/hooks/post-checkout"}},
		"links":        {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "b"}, {Name: "b", Typeflag: tar.TypeSymlink, Linkname: "./.git/hooks"}, {Name: "a/post-checkout"}},
		"hard link":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: ".git/config"}},
	} {
		for _, allowed := range []bool{false, true} {
			dir := t.TempDir()
			write(t, dir, map[string]string{".git/config": "good", ".git/hooks/sample": "good", "kept": "good"})
			before := below(t, dir, ".git")
			root := openRoot(t, dir)
			err := extract(root, tarOf(t, headers...), allowed)
			_ = root.Close()
			switch {
			case allowed && err != nil:
				t.Errorf("%s: without the refusal: %v", name, err)
			case !allowed && (!errors.Is(err, archive.ErrGit) || !strings.Contains(err.Error(), "--allow-git")):
				t.Errorf("%s: %v", name, err)
			}
			if after := below(t, dir, ".git"); slices.Equal(after, before) == allowed && name != "hard link" {
				t.Errorf("%s: allowed %v, there is now %v", name, allowed, after)
			}
		}
	}
	dir := t.TempDir()
	root := openRoot(t, dir)
	defer func() { _ = root.Close() }()
	if err := extract(root, tarOf(t, tar.Header{Name: ".gitignore"}, tar.Header{Name: ".github/x"}, tar.Header{Name: "x.git"}), false); err != nil {
		t.Error(err)
	}
}

// below lists the paths below dir that have an element of a name, in whatever case.
func below(t *testing.T, dir, name string) (all []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if strings.Contains(strings.ToLower(path), "/"+name) {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestExtract holds that a tar writes nowhere but into its directory, and that a second one replaces the first.
func TestExtract(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"target": "good"})
	for name, headers := range map[string][]tar.Header{
		"dots":            {{Name: "../target"}},
		"dots inside":     {{Name: "a/../../target"}},
		"absolute":        {{Name: filepath.Join(outside, "target")}},
		"symlink":         {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/target"}},
		"symlink up":      {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/target"}},
		"symlink dir":     {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "l/new/", Typeflag: tar.TypeDir}},
		"hard link":       {{Name: "h", Typeflag: tar.TypeLink, Linkname: filepath.Join(outside, "target")}, {Name: "h"}},
		"hard link up":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../target"}},
		"hard link in it": {{Name: "l", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/target"}},
	} {
		dir := filepath.Join(outside, "in")
		root := openRoot(t, dir)
		if err := extract(root, tarOf(t, headers...), false); err == nil {
			t.Errorf("%s: it was extracted", name)
		}
		_ = root.Close()
		if text, _ := os.ReadFile(filepath.Join(outside, "target")); string(text) != "good" {
			t.Fatalf("%s: the file outside is %q", name, text)
		}
		_ = os.RemoveAll(dir)
	}
	if left, _ := os.ReadDir(outside); len(left) != 1 {
		t.Errorf("left outside: %v", left)
	}
	dir := filepath.Join(t.TempDir(), "in")
	root := openRoot(t, dir)
	defer root.Close()
	for range 2 {
		// A link to elsewhere is made as it is, and replaced, not followed.
		err := extract(root, tarOf(t,
			tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o700}, tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o555}, tar.Header{Name: "d/f", Mode: 0o4755},
			tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "d/f"}, tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(outside, "target")},
			tar.Header{Name: "null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}, tar.Header{Name: "again", Typeflag: tar.TypeSymlink, Linkname: filepath.Join(outside, "target")},
			tar.Header{Name: "again"}), false)
		if err != nil {
			t.Fatal(err)
		}
	}
	if fi, err := os.Stat(filepath.Join(dir, "d/f")); err != nil || fi.Mode() != 0o755 {
		t.Error(fi.Mode(), err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "h")); string(text) != "evil" {
		t.Error(text, err)
	}
	if text, _ := os.ReadFile(filepath.Join(outside, "target")); string(text) != "good" {
		t.Errorf("the file outside is %q", text)
	}
	if _, err := os.Lstat(filepath.Join(dir, "null")); err == nil {
		t.Error("a device was made")
	}
}

func openRoot(t *testing.T, dir string) *os.Root {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func TestFetchable(t *testing.T) {
	target := func(outputs ...string) buildkit.Plan {
		parsed, err := outputsOf(outputs)
		if err != nil {
			t.Fatal(err)
		}
		return buildkit.Plan{Targets: map[string]buildkit.Target{"a": {Outputs: parsed}}, Build: []string{"a"}}
	}
	two := target("type=oci,dest=x")
	two.Targets["b"], two.Build = two.Targets["a"], []string{"a", "b"}
	for name, c := range map[string]struct {
		plan buildkit.Plan
		line []string
		want string
	}{
		"file":            {target("type=oci,dest=out/x.tar"), nil, ""},
		"directory":       {target("dir"), nil, ""},
		"stdout":          {target("-"), nil, ""},
		"registry":        {target("type=registry"), nil, ""},
		"two to stdout":   {target("type=oci", "-"), nil, "2 outputs go to the standard output"},
		"outside":         {target("type=oci,dest=../x"), nil, "outside of the context"},
		"absolute":        {target("/x"), nil, "outside of the context"},
		"by the user":     {target("/x"), []string{"/x"}, ""},
		"many":            {two, []string{"type=oci,dest=x"}, "name one target"},
		"many of a bake":  {two, nil, ""},
		"docker":          {target("type=docker"), nil, "needs dest=FILE"},
		"local to stdout": {target("type=local,dest=-"), nil, "needs dest=DIR"},
	} {
		err := fetchable(c.plan, api.Build{Outputs: c.line})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFetch fetches outputs from a daemon that does its worst.
func TestFetch(t *testing.T) {
	outside := t.TempDir()
	write(t, outside, map[string]string{"target": "good"})
	var store *api.Outputs
	s := apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		var err error
		if store, err = api.NewOutputs(filepath.Join(t.TempDir(), "outputs"), 1<<20, time.Hour); err != nil {
			t.Fatal(err)
		}
		c.Outputs = store
		c.Builder = planFunc(func(context.Context, string, api.Build) ([]api.Target, error) {
			return []api.Target{{Request: runner.Request{Name: "default"}}}, nil
		})
		b.Run = func(_ context.Context, r runner.Request, _ []string, _ func(runner.Stream, string)) runner.Result {
			w, err := store.Create(r.ID, "default-0.tar.tar")
			if err != nil {
				return runner.Result{Outcome: runner.Errored, Message: err.Error()}
			}
			_, _ = io.WriteString(w, "a tar")
			_ = w.Close()
			detail, _ := json.Marshal(buildkit.Result{Outputs: []*buildkit.Output{{Name: "default-0.tar.tar", Type: "tar", Dest: filepath.Join(outside, "target"), Size: 5}}})
			return runner.Result{Outcome: runner.Succeeded, Detail: detail}
		}
	})
	dir := t.TempDir()
	code, out, errs := runnerd(t, s.Socket, "", "build", dir, "--progress", "quiet")
	expect(t, "outside", code, 125, out+errs, "escapes", "runnerd outputs ")
	if text, _ := os.ReadFile(filepath.Join(outside, "target")); string(text) != "good" {
		t.Fatalf("the file outside is %q", text)
	}
	file := filepath.Join(dir, "x.tar")
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "--progress", "quiet", "-o", "type=tar,dest="+file)
	expect(t, "file", code, 0, out+errs)
	if text, err := os.ReadFile(file); string(text) != "a tar" {
		t.Error(text, err)
	}
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "--progress", "quiet", "-o", "-")
	if expect(t, "stdout", code, 0, errs); out != "a tar" {
		t.Errorf("%q", out)
	}
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "--json", "-o", "-")
	expect(t, "json", code, 2, out+errs, "give the output a dest")
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "--progress", "quiet", "-o", "type=tar,dest=a", "-o", "b")
	expect(t, "too few", code, 125, out+errs, "2 outputs were asked for, and there are 1")
}
