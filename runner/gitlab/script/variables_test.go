package script

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func public(key, value string) spec.Variable {
	return spec.Variable{Key: key, Value: value, Public: true}
}

func TestExpand(t *testing.T) {
	vars := []spec.Variable{
		public("A", "a"),
		public("B", "${A}b"),
		public("C", "$B-$A"),
		{Key: "RAW", Value: "$A$$"},
		public("DOLLAR", "$$A"),
		public("OVER", "first"),
		public("OVER", "last"),
		public("SELF", "$SELF:x"),
		public("LOOP1", "1$LOOP2"),
		public("LOOP2", "2$LOOP1"),
		public("FORWARD", "$LATER"),
		public("LATER", "$A!"),
		{Key: "FILE", Value: "content of $A", File: true},
		public("PATHOF", "at $FILE"),
		public("EMPTY", ""),
		public("LINES", "one\n$A\nthree"),
		public("USESRAW", "<$RAW>"),
	}
	vars[3].Raw = true
	v, err := expand(vars, "/builds/p.tmp")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"A": "a", "B": "ab", "C": "ab-a", "RAW": "$A$$", "DOLLAR": "$A", "OVER": "last", "SELF": "$SELF:x",
		"LOOP1": "12$LOOP1", "FORWARD": "a!", "LATER": "a!", "FILE": "/builds/p.tmp/FILE", "PATHOF": "at /builds/p.tmp/FILE",
		"EMPTY": "", "UNKNOWN": "", "LINES": "one\na\nthree", "USESRAW": "<$A$$>",
	} {
		if got := v.Get(name); got != want {
			t.Errorf("Get(%s) = %q, want %q", name, got, want)
		}
	}
	for text, want := range map[string]string{
		"$A": "a", "${A}": "a", "x$A-${B}y": "xa-aby", "%A%": "%A%", "$$A": "$A", "$": "$", "a$": "a$", "$UNKNOWN.": ".",
		"${UNKNOWN}.": ".", "$1$@$*x": "x", "$FILE": "/builds/p.tmp/FILE", "key-$OVER": "key-last", "a $ b": "a $ b",
		"$A_": "", "ünï$A": "ünïa",
	} {
		if got := v.Expand(text); got != want {
			t.Errorf("Expand(%q) = %q, want %q", text, got, want)
		}
	}
	if got := v.Value("FILE"); got != "content of a" {
		t.Errorf("Value(FILE) = %q", got)
	}
	if got := v.With("CI_JOB_STATUS", "failed").Get("CI_JOB_STATUS"); got != "failed" || v.Get("CI_JOB_STATUS") != "" {
		t.Errorf("With changes the original, or does not change the copy: %q", got)
	}
}

func TestExpandIsBounded(t *testing.T) {
	all := []spec.Variable{public("V", "0123456789abcdef")}
	for range 40 {
		last := all[len(all)-1].Key
		all = append(all, public(last+"V", "$"+last+"$"+last))
	}
	if _, err := expand(all, ""); err == nil || !strings.Contains(err.Error(), "16 MiB") {
		t.Errorf("expand of 16 TiB: %v", err)
	}
}

func TestNewVariables(t *testing.T) {
	job := spec.Job{
		ID: 7, Token: "job-token", Image: &spec.Image{Name: "golang:$GO"},
		JobInfo:    spec.JobInfo{ProjectID: 12},
		GitInfo:    spec.GitInfo{RepoURL: "https://gitlab-ci-token:repo-token@gitlab.example.com/group/sub/app.git"},
		RunnerInfo: spec.RunnerInfo{Timeout: 3600},
		Variables: []spec.Variable{
			public("GO", "1.26"),
			public("GOPATH", "$CI_PROJECT_DIR/.go"),
			public("FROM_RUNNER", "mine"),
			public("CI_SERVER", "job"),
			public("CI_DISPOSABLE_ENVIRONMENT", "no"),
			{Key: "SECRET", Value: "s3cret\nof two lines", Masked: true},
		},
		Dependencies: []spec.Dependency{{Token: "dep-token"}},
		Credentials:  []spec.Credential{{Password: "registry-password"}},
	}
	r := Runner{
		ConcurrentID: 3, ConcurrentProjectID: 1, Version: "1.2.3", Revision: "abc", ShortToken: "t1_abcde",
		Environment: []string{"FROM_RUNNER=runner", "PLAIN=$GO"}, CAChain: "PEM",
	}
	v, err := NewVariables(job, r)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"CI_BUILDS_DIR": "/builds", "CI_PROJECT_DIR": "/builds/group/sub/app", "GOPATH": "/builds/group/sub/app/.go",
		"CI_CONCURRENT_ID": "3", "CI_CONCURRENT_PROJECT_ID": "1", "CI_SERVER": "job", "CI_JOB_STATUS": "running",
		"CI_JOB_TIMEOUT": "3600", "CI_DISPOSABLE_ENVIRONMENT": "true", "CI_RUNNER_VERSION": "1.2.3", "CI_RUNNER_REVISION": "abc",
		"CI_RUNNER_EXECUTABLE_ARCH": runtime.GOOS + "/" + runtime.GOARCH, "CI_JOB_IMAGE": "golang:1.26", "CI_RUNNER_SHORT_TOKEN": "t1_abcde",
		"FROM_RUNNER": "mine", "PLAIN": "1.26", "RUNNER_TEMP_PROJECT_DIR": "/builds/group/sub/app.tmp",
		"GITLAB_ENV": "/builds/group/sub/app.tmp/gitlab_runner_env", "CI_SERVER_TLS_CA_FILE": "/builds/group/sub/app.tmp/CI_SERVER_TLS_CA_FILE",
	} {
		if got := v.Get(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	want := []string{"dep-token", "job-token", "registry-password", "repo-token", "s3cret\nof two lines"}
	if got := v.Masked(); !slices.Equal(got, want) {
		t.Errorf("Masked() = %q, want %q", got, want)
	}
	if got := v.Files(); len(got) != 1 || got[0].Content != "PEM" || got[0].Path != v.Get(CAVariable) {
		t.Errorf("Files() = %+v", got)
	}
	if env := v.Env(); !slices.Contains(env, "SECRET=s3cret\nof two lines") || !slices.Contains(env, "CI_SERVER_TLS_CA_FILE="+v.Get(CAVariable)) {
		t.Errorf("Env() = %q", env)
	}
	service := v.ServiceEnv([]spec.Variable{{Key: "PASSWORD", Value: "$SECRET"}, {Key: "DB", Value: "db-$GO"}, {Key: "RAW", Value: "$GO", Raw: true}, {Key: "URL", Value: "//$DB"}})
	for _, e := range []string{"GO=1.26", "PASSWORD=s3cret\nof two lines", "DB=db-1.26", "RAW=$GO", "URL=//db-$GO"} {
		if !slices.Contains(service, e) {
			t.Errorf("a service's environment has no %q: %q", e, service)
		}
	}
	if slices.ContainsFunc(service, func(e string) bool { return strings.HasPrefix(e, "SECRET=") }) {
		t.Error("a service gets a variable that is not public")
	}
}

func TestProjectDir(t *testing.T) {
	for _, test := range []struct {
		url, clonePath, strategy, want, err string
	}{
		{url: "https://h/g/p.git", want: "/builds/g/p"},
		{url: "https://h/relative/root/g/p.git", want: "/builds/relative/root/g/p"},
		{url: "https://h/g/p.git", strategy: "empty", want: "/builds/g/p-empty"},
		{url: "https://h/../../etc.git", want: "/builds/etc"},
		{url: "::", want: "/builds/project-5"},
		{url: "/local/path", want: "/builds/project-5"},
		{url: "https://h/g/p.git", clonePath: "$CI_BUILDS_DIR/go/src/$CI_CONCURRENT_ID", want: "/builds/go/src/0"},
		{url: "https://h/g/p.git", clonePath: "$CI_BUILDS_DIR/../etc", err: "is not in /builds"},
		{url: "https://h/g/p.git", clonePath: "/buildsx", err: "is not in /builds"},
		{url: "https://h/g/p.git", clonePath: "/builds", err: "is not in /builds"},
	} {
		job := spec.Job{JobInfo: spec.JobInfo{ProjectID: 5}, GitInfo: spec.GitInfo{RepoURL: test.url}}
		job.Variables = []spec.Variable{public("GIT_CLONE_PATH", test.clonePath), public("GIT_STRATEGY", test.strategy)}
		v, err := NewVariables(job, Runner{})
		switch {
		case test.err != "":
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%+v: %v", test, err)
			}
		case err != nil:
			t.Errorf("%+v: %v", test, err)
		case v.ProjectDir != test.want || v.Get("CI_PROJECT_DIR") != test.want:
			t.Errorf("%+v: %s", test, v.ProjectDir)
		}
	}
}

func TestSettings(t *testing.T) {
	read := func(job spec.Job, vars map[string]string) Settings {
		for _, key := range slices.Sorted(maps.Keys(vars)) {
			job.Variables = append(job.Variables, public(key, vars[key]))
		}
		v, err := NewVariables(job, Runner{})
		if err != nil {
			t.Fatal(err)
		}
		return v.Settings(job)
	}
	s := read(spec.Job{GitInfo: spec.GitInfo{Depth: 20}}, nil)
	if s.Strategy != GitClone || !s.Checkout || s.SubmoduleStrategy != "none" || s.SubmoduleDepth != 20 || s.GetSourcesAttempts != 1 ||
		!slices.Equal(s.CleanFlags, []string{"-ffdx"}) || !slices.Equal(s.FetchFlags, []string{"--prune", "--quiet"}) ||
		!s.AfterScriptIgnoreErrors || s.AfterScriptTimeout != defaultAfterScriptTimeout || len(s.Warnings) != 0 {
		t.Errorf("defaults: %+v", s)
	}
	if s := read(spec.Job{AllowGitFetch: true}, nil); s.Strategy != GitFetch {
		t.Errorf("with allow_git_fetch: %s", s.Strategy)
	}
	s = read(spec.Job{}, map[string]string{
		"GIT_STRATEGY": "none", "GIT_SUBMODULE_STRATEGY": "recursive", "GIT_CLEAN_FLAGS": "none", "GIT_FETCH_EXTRA_FLAGS": "--prune  --no-tags",
		"GET_SOURCES_ATTEMPTS": "99", "RUNNER_SCRIPT_TIMEOUT": "1h", "RUNNER_AFTER_SCRIPT_TIMEOUT": "soon", "CI_DEBUG_TRACE": "true",
	})
	if s.Strategy != GitNone || s.Checkout || s.SubmoduleStrategy != "none" || len(s.CleanFlags) != 0 || len(s.FetchFlags) != 2 ||
		s.GetSourcesAttempts != 10 || s.ScriptTimeout.Hours() != 1 || s.AfterScriptTimeout != defaultAfterScriptTimeout || !s.DebugTrace || len(s.Warnings) != 2 {
		t.Errorf("%+v", s)
	}
	s = read(spec.Job{}, map[string]string{"GIT_STRATEGY": "copy", "GIT_CHECKOUT": "perhaps"})
	want := []string{
		`GIT_STRATEGY: expected either 'clone', 'fetch', 'none' or 'empty' got "copy", using default value 'clone'`,
		`GIT_CHECKOUT: expected bool got "perhaps", using default value: true`,
	}
	if !slices.Equal(s.Warnings, want) || s.Strategy != GitClone || !s.Checkout {
		t.Errorf("%q", s.Warnings)
	}
}

// FuzzQuote has values go through each shell and out again, as an environment variable, in a file, and through eval.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{
		"", "plain", "it's", "''", `\`, `\'`, `"`, "$HOME `id` $(id) ${x}", "a\nb\n", "\n\n", "\r\n", "\t", " lead and trail ",
		"!!", "~", "-n", "-e \\n", "%s%d", "héllo ☃ \U0001F600", "\xff\xfe\x80", "\x01\x02\x7f\x81\x82\x88", "#c", "a;b&c|d<e>f", "*?[a]", "\x00a\x00",
	} {
		f.Add(s)
	}
	shells := shells(f)
	f.Fuzz(func(t *testing.T, value string) {
		want := strings.ReplaceAll(value, "\x00", "")
		script := "export V=" + Quote(value) + "\neval " + Quote("eval "+Quote("W="+Quote(value))) + "\n" +
			`printf '%s|' "$V" "$W"; printenv V` + "\n"
		for _, shell := range shells {
			cmd := exec.Command(shell[0], shell[1:]...)
			cmd.Stdin = strings.NewReader(script)
			cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v: %s", shell, err, out)
			}
			if got := string(out); got != want+"|"+want+"|"+want+"\n" {
				t.Errorf("%s: %q came out as %q", shell, value, got)
			}
		}
	})
}

// shells are those that scripts must run in. Busybox's is tried where there is one.
func shells(t testing.TB) [][]string {
	t.Helper()
	all := [][]string{{"bash"}, {"sh"}}
	if _, err := exec.LookPath("busybox"); err == nil {
		all = append(all, []string{"busybox", "sh"})
	}
	for _, s := range all {
		if _, err := exec.LookPath(s[0]); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func shellName(shell []string) string { return filepath.Base(strings.Join(shell, " ")) }
