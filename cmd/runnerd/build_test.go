package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/sandbox"
)

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func sent(t *testing.T, dir string, files ...string) []string {
	t.Helper()
	var b bytes.Buffer
	if err := writeContext(t.Context(), &b, dir, files); err != nil {
		t.Fatal(err)
	}
	var names []string
	for r := tar.NewReader(&b); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir {
			names = append(names, h.Name)
		}
	}
	slices.Sort(names)
	return names
}

func TestContextOfADockerfile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"Dockerfile": "FROM x", ".dockerignore": "# no\n*.log\nsecret/\n!secret/keep\nDockerfile\n**/tmp\n", "a.log": "", "src/a.go": "", "src/tmp/x": "",
		"secret/drop": "", "secret/keep": "", ".git/config": "", "Dockerfile.prod": "FROM y", "Dockerfile.prod.dockerignore": "src\n",
	})
	if err := os.Symlink("src/a.go", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(sent(t, dir), " ")
	if want := ".dockerignore Dockerfile Dockerfile.prod Dockerfile.prod.dockerignore link secret/keep src/a.go"; got != want {
		t.Errorf("\n%s\n%s", got, want)
	}
	got = strings.Join(sent(t, dir, "Dockerfile.prod"), " ")
	if want := ".dockerignore Dockerfile Dockerfile.prod Dockerfile.prod.dockerignore a.log link secret/drop secret/keep"; got != want {
		t.Errorf("\n%s\n%s", got, want)
	}
	write(t, dir, map[string]string{".dockerignore": "!.git\n"})
	if !slices.Contains(sent(t, dir), ".git/config") {
		t.Error(".git was not sent although .dockerignore says so")
	}
}

func TestContextOfABakeFile(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"docker-bake.hcl": `target "default" {}`, ".dockerignore": "*\n", "top.txt": "",
		"web/Dockerfile": "FROM x", "web/index.js": "", "web/.dockerignore": "node_modules\n", "web/node_modules/x/index.js": "", "web/deep/er/f": "",
		"lib/no/context/f": "",
	})
	got := strings.Join(sent(t, dir), " ")
	if want := ".dockerignore docker-bake.hcl web/.dockerignore web/Dockerfile web/deep/er/f web/index.js"; got != want {
		t.Errorf("\n%s\n%s", got, want)
	}
}

// farm is a daemon whose builds are made up.
func farm(t *testing.T, built func(api.Build, string)) *apitest.Server {
	return apitest.Start(t, func(c *api.Config, b *apitest.Backend) {
		c.Builder = planFunc(func(ctx context.Context, dir string, b api.Build) ([]api.Target, error) {
			built(b, dir)
			if _, err := os.Stat(filepath.Join(dir, "broken")); err == nil {
				return nil, fileError(dir, "docker-bake.hcl:3,7-9: Unsupported block type; Blocks of type \"tarte\" are not expected here")
			}
			var targets []api.Target
			for _, name := range b.Targets {
				targets = append(targets, api.Target{Request: runner.Request{Name: name, Nesting: sandbox.Nesting{sandbox.Container, sandbox.BuildKit}}})
			}
			return targets, nil
		})
		b.Run = func(ctx context.Context, r runner.Request, _ []string, log func(runner.Stream, string)) runner.Result {
			log(runner.Notice, "waiting for a builder\n")
			log(runner.Progress, fmt.Sprintf(`{"vertexes":[{"digest":%q,"name":"[1/1] RUN make","started":"2026-01-01T00:00:00Z","completed":"2026-01-01T00:00:01Z"}]}`,
				digest.FromString(r.Name)))
			detail, _ := json.Marshal(buildkit.Result{Digest: "sha256:" + r.Name, Steps: 4, Cached: 3})
			res := runner.Result{Outcome: runner.Succeeded, Detail: detail, Usage: sandbox.Usage{MemoryPeak: 100 << 20}}
			if strings.HasPrefix(r.Name, "bad") {
				res.Outcome, res.ExitCode, res.Message = runner.Failed, 3, "step build bad: exit code 3"
			}
			return res
		}
	})
}

type planFunc func(ctx context.Context, dir string, b api.Build) ([]api.Target, error)

func (f planFunc) Plan(ctx context.Context, dir string, b api.Build) ([]api.Target, error) {
	return f(ctx, dir, b)
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"docker-bake.hcl": "variable \"TAG\" {}\n", "sub/Dockerfile": "FROM x", "s": "from a file"})
	t.Setenv("TAG", "v7")
	t.Setenv("TOKEN", "from the environment")
	var got api.Build
	var files []string
	s := farm(t, func(b api.Build, dir string) {
		got, files = b, nil
		_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, _ error) error {
			if rel, _ := filepath.Rel(dir, p); !d.IsDir() {
				files = append(files, rel)
			}
			return nil
		})
	})
	code, out, errs := runnerd(t, s.Socket, "", "build", dir, "--secret", "id=s,src="+filepath.Join(dir, "s"), "--secret", "id=t,env=TOKEN", "--build-arg", "TOKEN", "--build-arg", "A=1=2",
		"--push", "--no-cache", "--platform", "linux/amd64,linux/arm64", "--label", "l=1", "--set", "*.args.X=1", "one", "bad", "three")
	expect(t, "build", code, 1, out+errs, "TARGET", "OUTCOME", "one", "sha256:one", "3/4", "100 MiB", "failed", "bad: failed: step build bad", "[one 1/1] RUN make", "waiting for a builder")
	if len(files) != 3 || !slices.Equal(got.Targets, []string{"one", "bad", "three"}) || !got.Push || !got.NoCache || len(got.Platforms) != 2 ||
		got.Vars["TAG"] != "v7" || string(got.Secrets["s"]) != "from a file" || string(got.Secrets["t"]) != "from the environment" ||
		!maps.Equal(got.BuildArgs, map[string]string{"TOKEN": "from the environment", "A": "1=2"}) {
		t.Errorf("%+v %v", got, files)
	}
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "one", "-f", "sub/Dockerfile", "--progress", "quiet")
	if expect(t, "one", code, 0, out+errs); out != "sha256:one\n" || errs != "" || !slices.Equal(got.Files, []string{"sub/Dockerfile"}) {
		t.Errorf("%q %q %v", out, errs, got.Files)
	}
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "one", "two", "--json", "--progress", "rawjson")
	var jobs []api.Job
	if err := json.Unmarshal([]byte(out), &jobs); err != nil || len(jobs) != 2 || code != 0 || !strings.Contains(errs, `"name":"[one 1/1] RUN make"`) {
		t.Errorf("%v %q %q", err, out, errs)
	}
	code, out, _ = runnerd(t, s.Socket, "", "logs", jobs[0].ID)
	expect(t, "logs", code, 0, out, "[1/1] RUN make", "waiting for a builder")
	code, out, errs = runnerd(t, s.Socket, "", "build", dir, "-d", "one", "two")
	expect(t, "detach", code, 0, errs)
	if strings.Count(out, "\n") != 2 {
		t.Error(out)
	}
}

func TestBuildMistakes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{"docker-bake.hcl": "", "broken": ""})
	s := farm(t, func(api.Build, string) {})
	for what, x := range map[string]struct {
		args []string
		code int
		text string
	}{
		"bake does not parse": {[]string{dir}, 2, "docker-bake.hcl:3:7: Unsupported block type"},
		"no such file":        {[]string{dir, "-f", "nothing.hcl"}, 2, "nothing.hcl does not exist: name another with -f"},
		"file outside":        {[]string{dir, "-f", "/etc/passwd"}, 2, "outside of the context"},
		"no such context":     {[]string{"./no/such/dir"}, 2, "no directory"},
		"no such secret":      {[]string{dir, "--secret", "id=x,src=/no/such"}, 2, "no such file"},
		"no id":               {[]string{dir, "--secret", "src=/etc/hostname"}, 2, "id is missing"},
		"no environment":      {[]string{dir, "--secret", "id=x,env=NO_SUCH_THING"}, 2, "the environment has no NO_SUCH_THING"},
		"label":               {[]string{dir, "--label", "x"}, 2, "KEY=VALUE"},
		"stage and target":    {[]string{dir, "--target", "x", "y"}, 2, "--target names a stage"},
	} {
		code, out, errs := runnerd(t, s.Socket, "", append([]string{"build"}, x.args...)...)
		expect(t, what, code, x.code, out+errs, x.text)
	}
	if left, _ := os.ReadDir(s.Workspaces); len(left) != 0 {
		t.Error("a workspace was left")
	}
}
