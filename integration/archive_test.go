//go:build integration

package integration

import (
	"archive/zip"
	"bytes"
	"io/fs"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// TestArchiveInSandbox packs what a job leaves into a zip and extracts it as another user, in a sandbox; and what leads
// out of the directory changes nothing, though it comes as root.
func TestArchiveInSandbox(t *testing.T) {
	const id = "it-archive"
	sb, err := host.container.Start(t.Context(), nil, sandbox.Spec{ID: id, Image: debian, Volumes: map[string]string{"work": "/work"}})
	if err != nil {
		t.Fatal(err)
	}
	run := func(p sandbox.Process) (code int, stdout, stderr string) {
		t.Helper()
		var out, errs bytes.Buffer
		p.Stdout, p.Stderr = &out, &errs
		exit, err := sb.Exec(t.Context(), p)
		if err != nil {
			t.Fatal(err)
		}
		return exit.Code, out.String(), errs.String()
	}
	script := func(text string) string {
		t.Helper()
		code, out, errs := run(sandbox.Process{Args: []string{"sh", "-c", text}})
		if code != 0 {
			t.Fatal(text, errs)
		}
		return strings.TrimSpace(out)
	}
	archive := func(dir, user, stdin string, args ...string) (code int, stdout, stderr string) {
		return run(sandbox.Process{Args: append([]string{container.InitPath, "archive"}, args...), Env: []string{}, Dir: dir, User: user, Stdin: strings.NewReader(stdin)})
	}
	const look = `find . -mindepth 1 -printf '%p %M %l %TY-%Tm-%Td\n' | sort; find . -type f -exec cat {} +`
	script(`mkdir -p /work/from/dist/sub /work/to && cd /work/from && echo one >dist/a && head -c 3000000 /dev/zero >dist/sub/zeros && ln -s a dist/l && chmod 755 dist/a &&
		echo log >x.log && mkfifo dist/fifo && touch -d 2001-02-03 dist/a && chown 1000 /work/to`)
	code, zipped, said := archive("/work/from", "0:0", "x.log\x00", "pack", "10000000", "100", "format=zip", "level=5", "exclude=dist/sub", "further=stdin", "beneath=yes", "--", "dist/", "../../etc/passwd")
	if code != 0 || !strings.Contains(said, "path 5\n") || !strings.Contains(said, "further 1\nfound 6 0\npack\n4 3000008 1 0\n") || len(zipped) > 10_000 {
		t.Fatalf("%d %q, %d bytes", code, said, len(zipped))
	}
	if code, out, said := archive("/work/to", "1000:1000", zipped, "unzip", "10000000", "100"); code != 0 || out != "4 3000008 0 0\n" {
		t.Errorf("%d %q %q", code, out, said)
	}
	script("rm /work/from/dist/fifo; touch -d 2001-02-03 /work/*/dist /work/*/dist/sub /work/*/dist/l -h")
	if from, to := script("cd /work/from; "+look), script("cd /work/to; "+look); from != to {
		t.Errorf("%.500s\nbecomes\n%.500s", from, to)
	}
	if got := script("stat -c %u /work/to/dist/a"); got != "1000" {
		t.Errorf("a file is of the user %s", got)
	}

	// Without times: a directory in which something was made and removed again has a new one.
	const listed = `cat /etc/passwd; find /etc /work / -maxdepth 1 -printf '%p %M %U %s %l\n' | sort`
	before := script(listed)
	for name, files := range map[string][][3]string{
		"up":       {{"../../etc/passwd", "", "x"}},
		"absolute": {{"/etc/passwd", "", "x"}},
		"link":     {{"l", "/etc", ""}, {"l/passwd", "", "x"}},
		"link up":  {{"l", "../..", ""}, {"l/new", "", "x"}},
	} {
		var out bytes.Buffer
		w := zip.NewWriter(&out)
		for _, f := range files {
			h := &zip.FileHeader{Name: f[0]}
			h.SetMode(0o644)
			if f[1] != "" {
				h.SetMode(0o777 | fs.ModeSymlink)
			}
			body, err := w.CreateHeader(h)
			if err == nil {
				_, err = body.Write([]byte(f[1] + f[2]))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if code, _, said := archive("/work/to", "0:0", out.String(), "unzip", "1000", "100"); code == 0 {
			t.Errorf("%s: %q", name, said)
		}
	}
	if after := script(listed); after != before {
		t.Errorf("there is now\n%s\nand there was\n%s", after, before)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if left := host.leftovers(id); len(left) > 0 {
		t.Error(left)
	}
}
