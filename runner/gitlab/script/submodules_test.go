package script

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func TestSourcesSubmodules(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	inner := f.repository(t, "inner", "sha1", nil, "deep", "inner ")
	lib := f.repository(t, "lib", "sha1", []submodule{{"inner", "../inner.git", inner}}, "lib.txt", "lib ")
	sha := f.repository(t, "app", "sha1", []submodule{
		{"libs/relative", "../lib.git", lib},
		{"libs/absolute", f.URL + "/group/lib.git", lib},
		{"libs/ssh", "git@forge.example.com:group/lib.git", lib},
	}, "file", "content ")

	https := []spec.Variable{public("GIT_SUBMODULE_FORCE_HTTPS", "true"), public("CI_SERVER_SHELL_SSH_HOST", "forge.example.com")}
	for _, test := range []struct {
		strategy, paths string
		depth           int
		files, missing  []string
		message         string
	}{
		{"normal", "", 0, []string{"libs/relative/lib.txt", "libs/absolute/lib.txt", "libs/ssh/lib.txt"}, []string{"libs/relative/inner/deep"}, "Updating/initializing submodules..."},
		{"recursive", "", 1, []string{"libs/relative/inner/deep", "libs/ssh/inner/deep"}, nil, "Updating/initializing submodules recursively with git depth set to 1..."},
		{"normal", "libs/relative", 1, []string{"libs/relative/lib.txt"}, []string{"libs/absolute/lib.txt"}, "Updating/initializing submodules with git depth set to 1..."},
		{"recursive", ":(exclude)libs/ssh", 0, []string{"libs/absolute/inner/deep"}, []string{"libs/ssh/lib.txt"}, "Updating/initializing submodules recursively..."},
	} {
		r := &checkoutRun{forge: f, sha: sha, depth: test.depth, vars: append(slices.Clip(https),
			public("GIT_SUBMODULE_STRATEGY", test.strategy), public("GIT_SUBMODULE_PATHS", test.paths))}
		for _, again := range []bool{false, true} {
			if again && test.paths != "" {
				break
			}
			if again {
				_ = os.WriteFile(r.dir+"/libs/relative/untracked", nil, 0o644)
				_ = os.WriteFile(r.dir+"/libs/relative/lib.txt", nil, 0o644)
				_ = os.WriteFile(r.dir+"/.git/modules/libs/relative/index.lock", nil, 0o644)
			}
			out, code := r.run(t)
			if code != 0 || !strings.Contains(out, g+test.message+r0) || !strings.Contains(out, "Updated submodules") {
				t.Fatalf("%+v: exit code %d: %s", test, code, out)
			}
			for _, name := range test.files {
				if !strings.HasSuffix(read(t, filepath.Join(r.dir, name)), " 3") {
					t.Errorf("%+v: %s is not the commit's", test, name)
				}
			}
			for _, name := range append(test.missing, "libs/relative/untracked") {
				if _, err := os.Stat(filepath.Join(r.dir, name)); err == nil {
					t.Errorf("%+v: there is %s", test, name)
				}
			}
		}
		if test.depth == 1 {
			if n := strings.TrimSpace(git(t, r.dir+"/libs/relative", "rev-list", "--count", "HEAD")); n != "1" {
				t.Errorf("%+v: %s commits in the submodule", test, n)
			}
		}
		if test.strategy == "recursive" { // git in the job's script has the token for submodules as well
			step := Step(r.v, spec.Step{Name: "script", Script: []string{"cd libs/absolute/inner && git fetch origin main"}}, StepOptions{})
			cmd := exec.Command("bash")
			cmd.Stdin, cmd.Env = strings.NewReader(step), gitEnv(t.TempDir())
			if log, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("git in a submodule in the job's script: %v: %s", err, log)
			}
		}
	}
}

func TestSourcesForceHTTPS(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		vars []spec.Variable
		want []string
	}{
		{nil, []string{"git@h:", "ssh://git@h/", "ssh://git@h:22/"}},
		{[]spec.Variable{public("CI_SERVER_HOST", "web")}, []string{"git@web:", "ssh://git@web/", "ssh://git@web:22/"}},
		{[]spec.Variable{public("CI_SERVER_SHELL_SSH_HOST", "ssh"), public("CI_SERVER_SHELL_SSH_PORT", "2222")}, []string{"ssh://git@ssh:2222/"}},
	} {
		job := spec.Job{Variables: append(test.vars, public("GIT_SUBMODULE_FORCE_HTTPS", "true"))}
		job.GitInfo = spec.GitInfo{RepoURL: "https://u:p@h/g/p.git", SHA: strings.Repeat("a", 40)}
		v, err := NewVariables(job, Runner{})
		if err != nil {
			t.Fatal(err)
		}
		s := sources{SourcesOptions: SourcesOptions{Variables: v, Job: job, Settings: v.Settings(job)}}
		if err := s.check(); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "config")
		_ = os.WriteFile(file, []byte(s.jobConfig()), 0o644)
		got := strings.Fields(git(t, "", "config", "--file", file, "--get-all", "url.https://h/.insteadOf"))
		if !slices.Equal(got, test.want) {
			t.Errorf("%+v: %q, want %q", test.vars, got, test.want)
		}
	}
}
