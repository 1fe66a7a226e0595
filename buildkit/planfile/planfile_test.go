package planfile

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"github.com/runnerd/runnerd/buildkit"
)

// TestRead reads the files of each archive in testdata/bake. The lines before them are what is asked for
// ("targets:", "vars:", "set:", "link: NAME -> TARGET") and what errors say ("error:"); want.json is the plan.
func TestRead(t *testing.T) {
	t.Setenv("HOME", "/home/of/the/daemon") // must be seen by no file
	archives, err := filepath.Glob("testdata/bake/*.txtar")
	if err != nil || len(archives) == 0 {
		t.Fatal(err, archives)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			in := buildkit.Input{Dir: t.TempDir(), Vars: map[string]string{}}
			var want string
			for _, f := range archive.Files {
				if f.Name == "want.json" {
					want = string(f.Data)
					continue
				}
				writeFile(t, in.Dir, f.Name, string(f.Data))
			}
			var errs []string
			for line := range strings.Lines(string(archive.Comment)) {
				key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
				switch key {
				case "targets":
					in.Targets = strings.Fields(value)
				case "set":
					in.Set = append(in.Set, value)
				case "vars":
					k, v, _ := strings.Cut(value, "=")
					in.Vars[k] = v
				case "error":
					errs = append(errs, value)
				case "link":
					link, to, _ := strings.Cut(value, " -> ")
					if err := os.Symlink(to, filepath.Join(in.Dir, link)); err != nil {
						t.Fatal(err)
					}
				}
			}
			plan, err := Read(t.Context(), in)
			if len(errs) > 0 {
				for _, e := range errs {
					if err == nil || !strings.Contains(err.Error(), e) {
						t.Errorf("got error %v, want %q", err, e)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var wanted buildkit.Plan
			if err := json.Unmarshal([]byte(want), &wanted); err != nil {
				t.Fatal(err)
			}
			if got := mustJSON(t, plan); got != mustJSON(t, wanted) {
				t.Errorf("got  %s\nwant %s", got, mustJSON(t, wanted))
			}
		})
	}
}

func writeFile(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// TestReadHermetic holds that no bake file sees the process's environment.
func TestReadHermetic(t *testing.T) {
	t.Setenv("RUNNERD_TEST_CANARY", "canary")
	for name, text := range map[string]string{
		"docker-bake.hcl": `variable "RUNNERD_TEST_CANARY" { default = "none" }
target "default" { args = { A = RUNNERD_TEST_CANARY } }`,
		"compose.yaml": "services:\n  default:\n    build:\n      context: .\n      args: [\"A=${RUNNERD_TEST_CANARY:-none}\", RUNNERD_TEST_CANARY]\n",
	} {
		dir := t.TempDir()
		writeFile(t, dir, name, text)
		writeFile(t, dir, "Dockerfile", "FROM scratch")
		plan, err := Read(t.Context(), buildkit.Input{Dir: dir})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if text := mustJSON(t, plan); strings.Contains(text, "canary") || !strings.Contains(text, `"A":"none"`) {
			t.Errorf("%s: got %s", name, text)
		}
	}
}

func TestReadLimits(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "docker-bake.hcl", strings.Repeat("#\n", maxFile/2+1))
	if _, err := Read(t.Context(), buildkit.Input{Dir: dir}); err == nil || !strings.Contains(err.Error(), "docker-bake.hcl: 1048578 bytes: at most 1048576 are read") {
		t.Errorf("large bake file: %v", err)
	}
	writeFile(t, dir, "Dockerfile", strings.Repeat("#\n", maxFile/2+1))
	if _, err := Read(t.Context(), buildkit.Input{Dir: dir, Files: []string{"Dockerfile"}}); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Errorf("large Dockerfile: %v", err)
	}
	if _, err := Read(t.Context(), buildkit.Input{Dir: dir, Files: []string{"other.hcl"}}); err == nil || !strings.Contains(err.Error(), "other.hcl does not exist") {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Read(t.Context(), buildkit.Input{Dir: dir, Files: []string{"/etc/passwd"}}); err == nil {
		t.Error("a file outside was read")
	}
}

func TestFrontends(t *testing.T) {
	text := "# syntax=registry.test:5000/ours:1@sha256:" + strings.Repeat("0", 64) + "\nFROM scratch\n"
	if _, err := checkDockerfile("Dockerfile", []byte(text), "", nil, nil); err == nil {
		t.Error("an unlisted frontend was accepted")
	}
	if _, err := checkDockerfile("Dockerfile", []byte(text), "", nil, []string{"registry.test:5000/ours"}); err != nil {
		t.Error(err)
	}
}

func TestRegistries(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, dir, "docker-bake.hcl", `
target "default" {
  args       = { TAG = "9" }
  contexts   = { more = "docker-image://context.test/x", base = "." }
  tags       = ["push.test/app:1"]
  cache-from = ["type=registry,ref=cache.test:5000/app"]
  dockerfile-inline = <<EOT
ARG HOST=from.test
ARG TAG=1
FROM $HOST/a:$TAG AS build
RUN --mount=from=mount.test/b,target=/b true
FROM build
COPY --from=copy.test/c /c /
COPY --from=base /d /
COPY --from=0 /e /
FROM debian
EOT
}`)
	plan, err := Read(t.Context(), buildkit.Input{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"cache.test:5000", "context.test", "copy.test", "docker.io", "from.test", "mount.test"}
	if got := plan.Registries(false); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := plan.Registries(true); len(got) != len(want)+1 || got[6] != "push.test" {
		t.Errorf("pushed: %v", got)
	}
}
