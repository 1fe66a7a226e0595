package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab"
)

func TestImportGitLabRunner(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	file := filepath.Join(t.TempDir(), "config.toml")
	text := `concurrent = 3
[[runners]]
  name = "one"
  url = "` + f.URL + `"
  token = "` + ownToken + `"
  executor = "docker"
  environment = ["PASSWORD=sesame"]
  [runners.docker]
    image = "alpine"
    privileged = true
[[runners]]
  name = "legacy"
  url = "` + f.URL + `"
  token = "legacy-own-token-7"
  executor = "docker"
  [runners.docker]
    allowed_images = ["alpine:*"]
[[runners]]
  name = "shell"
  url = "` + f.URL + `"
  token = "` + ownToken + `"
  executor = "shell"
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f.tokens["legacy-own-token-7"] = 7

	code, out, errs := runnerd(t, "/nowhere", "", "import", "gitlab-runner", file, "--dry-run")
	expect(t, "dry run", code, 0, out+errs, "10    1       runners.docker.privileged", "not needed", "runner 1, one, can be taken over", "only with --widen", "runner 3, shell, cannot be taken over")
	if strings.Contains(out, "sesame") || strings.Contains(out, ownToken) || len(f.calls) > 0 {
		t.Errorf("a dry run says secrets, or does something: %s %v", out, f.calls)
	}
	code, out, errs = runnerd(t, s.Socket, "", "import", "gitlab-runner", file)
	expect(t, "import", code, 1, out+errs, "runner 1 is taken over as one", "runner 2, legacy, is not taken over: restrictions would be lost", "runner 3, shell, is not taken over")
	r, err := rs.Enrolment.Runners.Get("one")
	if err != nil || r.ID != 42 || r.Concurrent != 3 || r.Env[0] != "PASSWORD=sesame" || r.Image != "alpine" {
		t.Errorf("%+v %v", r, err)
	}
	code, out, errs = runnerd(t, s.Socket, "", "import", "gitlab-runner", file, "--widen", "--json")
	var got imported
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || len(got.Results) != 3 || got.Results[0].Taken || !got.Results[1].Taken || len(got.Findings) < 14 {
		t.Errorf("%d %v: %s%s", code, err, out, errs)
	}
	if strings.Contains(out, "sesame") || strings.Contains(out, ownToken) {
		t.Error("JSON says secrets")
	}
	legacy, err := rs.Enrolment.Runners.Get("legacy")
	if err != nil || legacy.Token != "legacy-own-token-7" || gitlab.IsAuthenticationToken(legacy.Token) || len(f.register) != 0 {
		t.Errorf("%+v %v", legacy, err)
	}
	code, _, errs = runnerd(t, s.Socket, "", "import", "gitlab-runner", filepath.Join(t.TempDir(), "config.toml"))
	expect(t, "no file", code, 2, errs, "no such file")
	if err := os.WriteFile(file, []byte("[[runners]]\nname ="), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs = runnerd(t, s.Socket, "", "import", "gitlab-runner", file)
	expect(t, "broken", code, 2, errs, "config.toml: line 2")
}
