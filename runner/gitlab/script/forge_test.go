package script

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

const testToken = "glcbt-64_s3cr3t/+="

// forge serves repositories over HTTP to whoever has the token.
type forge struct {
	*httptest.Server
	root     string
	ca       string       // its certificate, PEM; empty without TLS
	redirect string       // where to send everybody on to
	refused  atomic.Int32 // requests without the token
	failures atomic.Int32 // how many requests to fail
}

func newForge(t testing.TB) *forge {
	t.Helper()
	f := newStoppedForge(t)
	f.Start()
	return f
}

func newStoppedForge(t testing.TB) *forge {
	t.Helper()
	exe := strings.TrimSpace(git(t, "", "--exec-path"))
	f := &forge{root: t.TempDir()}
	backend := &cgi.Handler{
		Path:       exe + "/git-http-backend",
		Env:        []string{"GIT_PROJECT_ROOT=" + f.root, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=uploadpack.allowAnySHA1InWant", "GIT_CONFIG_VALUE_0=true"},
		InheritEnv: []string{"PATH"},
	}
	f.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f.redirect != "" {
			http.Redirect(w, r, f.redirect+r.URL.RequestURI(), http.StatusFound)
			return
		}
		if user, password, _ := r.BasicAuth(); user != tokenUser || password != testToken {
			f.refused.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="GitLab"`)
			http.Error(w, "HTTP Basic: Access denied", http.StatusUnauthorized)
			return
		}
		if f.failures.Add(-1) >= 0 {
			http.Error(w, "try again", http.StatusServiceUnavailable)
			return
		}
		backend.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

// git runs git, in dir if that is not empty, without this machine's configuration.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = gitEnv("/nonexistent")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %q: %v: %s", args, err, out)
	}
	return string(out)
}

func gitEnv(home string) []string {
	return []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@example.com",
		"GIT_COMMITTER_NAME=c", "GIT_COMMITTER_EMAIL=c@example.com", "LC_ALL=C",
	}
}

// repository makes group/name with three commits on main, the second of which is the tag v1. Files are given as name,
// content, to which the commit's number is appended; the last commit has the submodules. It returns that commit's id.
func (f *forge) repository(t testing.TB, name, format string, submodules []submodule, files ...string) string {
	t.Helper()
	var in strings.Builder
	file := func(name, content string) {
		fmt.Fprintf(&in, "M 100644 inline %s\ndata %d\n%s\n", name, len(content), content)
	}
	for n := 1; n <= 3; n++ {
		fmt.Fprintf(&in, "commit refs/heads/main\nmark :%d\ncommitter c <c@example.com> 1700000000 +0000\ndata 1\n%[1]d\n", n)
		for i := 0; i < len(files); i += 2 {
			file(files[i], files[i+1]+strconv.Itoa(n))
		}
	}
	if len(submodules) > 0 {
		var modules string
		for _, m := range submodules {
			modules += fmt.Sprintf("[submodule %q]\n\tpath = %[1]s\n\turl = %s\n", m.path, m.url)
			fmt.Fprintf(&in, "M 160000 %s %s\n", m.sha, m.path)
		}
		file(".gitmodules", modules)
	}
	in.WriteString("reset refs/tags/v1\nfrom :2\nreset refs/pipelines/9\nfrom :3\nreset refs/merge-requests/3/head\nfrom :3\nget-mark :3\n")

	bare := filepath.Join(f.root, "group", name+".git")
	git(t, "", "init", "-q", "--bare", "--object-format="+format, "-b", "main", bare)
	cmd := exec.Command("git", "-C", bare, "fast-import", "--quiet")
	cmd.Stdin, cmd.Env = strings.NewReader(in.String()), gitEnv("/nonexistent")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git fast-import: %v: %s", err, in.String())
	}
	return strings.TrimSpace(string(out))
}

// submodule is one at a path of a repository's work tree.
type submodule struct{ path, url, sha string }

// checkoutRun gets sources.
type checkoutRun struct {
	forge *forge
	sha   string
	depth int
	vars  []spec.Variable
	edit  func(o *SourcesOptions, job *spec.Job)
	alter func(script string) string
	plain bool // have Bash read its standard input itself

	builds string // made if empty
	dir    string // of the project, after run
	trace  string // what git started, after run
	v      *Variables
}

// run returns the log and the exit code.
func (r *checkoutRun) run(t *testing.T) (string, int) {
	t.Helper()
	if r.builds == "" {
		r.builds = t.TempDir()
	}
	home, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	job := spec.Job{
		Token: testToken, AllowGitFetch: true,
		GitInfo: spec.GitInfo{
			RepoURL: strings.Replace(r.forge.URL, "://", "://gitlab-ci-token:"+testURLToken()+"@", 1) + "/group/app.git",
			SHA:     r.sha, Ref: "main", Depth: r.depth,
			Refspecs: []string{"+refs/pipelines/9:refs/pipelines/9", "+refs/heads/main:refs/remotes/origin/main"},
		},
		Variables: append([]spec.Variable{
			{Key: "CI_JOB_TOKEN", Value: testToken, Masked: true}, {Key: "GIT_TRACE", Value: trace}, public("LC_ALL", "C"),
		}, r.vars...),
	}
	v, err := NewVariables(job, Runner{BuildsDir: r.builds, CAChain: r.forge.ca})
	if err != nil {
		t.Fatal(err)
	}
	r.v, r.dir = v, v.ProjectDir
	o := SourcesOptions{Variables: v, Job: job, Settings: v.Settings(job), ServerURL: r.forge.URL, Backoff: 10 * time.Millisecond}
	if r.edit != nil {
		r.edit(&o, &o.Job)
	}
	text, err := Sources(o)
	if err != nil {
		t.Fatal(err)
	}
	if r.alter != nil {
		text = r.alter(text)
	}
	command := SourcesCommand()
	if r.plain {
		command = []string{"bash"}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin = strings.NewReader(text)
	cmd.Env = gitEnv(home)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run()
	traced, _ := os.ReadFile(trace)
	r.trace = string(traced)
	for _, secret := range secrets() {
		if strings.Contains(r.trace, secret) {
			t.Errorf("the token is in a command line: %s", r.trace)
		}
		if left := grep(t, r.dir, secret) + grep(t, home, secret); left != "" {
			t.Errorf("the token is left in %s", left)
		}
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// testURLToken is the token as it is in a URL.
func testURLToken() string {
	return strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(testToken)
}

// secrets are the forms that the token may take.
func secrets() []string {
	return []string{testToken, testURLToken(), base64.StdEncoding.EncodeToString([]byte(tokenUser + ":" + testToken))}
}

// grep names the files under dir that contain text.
func grep(t testing.TB, dir, text string) string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(text)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Join(found, " ")
}

func read(t testing.TB, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Error(err)
	}
	return string(content)
}
