package script

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
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

func TestSourcesShallow(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ", "dir/sub", "x")
	r := &checkoutRun{forge: f, sha: sha, depth: 1}
	out, code := r.run(t)
	want := g + "Fetching changes with git depth set to 1..." + r0 + "\n" +
		"Initialized empty Git repository in " + r.dir + "/.git/\n" +
		g + "Created fresh repository." + r0 + "\n" +
		g + "Checking out " + sha[:8] + " as detached HEAD (ref is main)..." + r0 + "\n" +
		g + "Skipping Git submodules setup" + r0 + "\n"
	if code != 0 || out != want {
		t.Fatalf("exit code %d\ngot  %q\nwant %q", code, out, want)
	}
	if read(t, r.dir+"/file") != "content 3" || read(t, r.dir+"/dir/sub") != "x3" {
		t.Error("the files are not the commit's")
	}
	if n := strings.TrimSpace(git(t, r.dir, "rev-list", "--count", "HEAD")); n != "1" {
		t.Errorf("%s commits, want 1", n)
	}
	if url := strings.TrimSpace(git(t, r.dir, "remote", "get-url", "origin")); url != f.URL+"/group/app.git" {
		t.Errorf("origin is %s", url)
	}
	for _, ref := range []string{"refs/pipelines/9", "refs/remotes/origin/main", "HEAD"} {
		if id := strings.TrimSpace(git(t, r.dir, "rev-parse", ref)); id != sha {
			t.Errorf("%s is %s, want %s", ref, id, sha)
		}
	}
	if status := git(t, r.dir, "status", "--porcelain"); status != "" {
		t.Errorf("the work tree is not clean: %s", status)
	}
	git(t, r.dir, "fsck", "--strict")
	if n := f.refused.Load(); n != 0 {
		t.Errorf("%d requests without the token, want 0", n)
	}
	if info, err := os.Stat(r.dir + "/file"); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("file: %v, %v: another user must be able to write it", info.Mode(), err)
	}
	var ours int
	for line := range strings.Lines(r.trace) {
		if strings.Contains(line, "trace: built-in: git fetch") || strings.Contains(line, "trace: built-in: git checkout") {
			ours++
		}
		if strings.Contains(line, "maintenance") || strings.Contains(line, "git config") || strings.Contains(line, "git clean") {
			t.Errorf("a process too many: %s", line)
		}
	}
	if ours != 2 {
		t.Errorf("%d git processes, want fetch and checkout:\n%s", ours, r.trace)
	}

	// In the job's own script git has the token too, from the job's environment.
	job := spec.Job{}
	step := Step(r.v, spec.Step{Name: "script", Script: []string{"git fetch -q --unshallow origin", "git rev-list --count HEAD"}}, StepOptions{Settings: r.v.Settings(job)})
	cmd := exec.Command("sh")
	cmd.Stdin, cmd.Env = strings.NewReader(step), gitEnv(t.TempDir())
	log, err := cmd.CombinedOutput()
	if err != nil || !strings.HasSuffix(string(log), "\n3\n") {
		t.Errorf("git in the job's script: %v: %s", err, log)
	}
	for _, secret := range secrets() {
		if found := grep(t, r.dir, secret); found != "" {
			t.Errorf("the job's git left the token in %s", found)
		}
	}
}

// TestSourcesAgain fetches into a work tree that a job has made a mess of.
func TestSourcesAgain(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ", ".gitignore", "ignored\n#")
	r := &checkoutRun{forge: f, sha: sha}
	if out, code := r.run(t); code != 0 || strings.Contains(out, "depth") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if n := strings.TrimSpace(git(t, r.dir, "rev-list", "--count", "HEAD")); n != "3" {
		t.Errorf("%s commits, want all", n)
	}
	if tag := strings.TrimSpace(git(t, r.dir, "tag")); tag != "v1" {
		t.Errorf("tags: %q", tag)
	}
	mess := func() {
		for _, name := range []string{"file", "untracked", "ignored", ".git/index.lock", ".git/HEAD.lock", ".git/config.lock", ".git/shallow.lock", ".git/refs/heads/x.lock"} {
			if err := os.WriteFile(filepath.Join(r.dir, name), []byte("mess"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		_ = os.MkdirAll(r.dir+"/.git/hooks", 0o755)
		if err := os.WriteFile(r.dir+"/.git/hooks/post-checkout", []byte("#!/bin/sh\ntouch hooked\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		git(t, r.dir, "config", "--file", r.dir+"/.git/runnerd.config", "core.fsmonitor", "touch fsmonitor; false")
	}
	mess()
	out, code := r.run(t)
	if code != 0 || !strings.Contains(out, "Reinitialized existing Git repository") || strings.Contains(out, "Created fresh") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if status := git(t, r.dir, "status", "--porcelain", "--ignored"); status != "" || read(t, r.dir+"/file") != "content 3" {
		t.Errorf("the mess is still there: %s", status)
	}
	mess()
	r.vars = []spec.Variable{public("GIT_CLEAN_FLAGS", "-ffd -e untracked")}
	if out, code := r.run(t); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	if status := git(t, r.dir, "status", "--porcelain", "--ignored"); status != "?? untracked\n!! ignored\n" {
		t.Errorf("after other clean flags: %q", status)
	}
	r.vars = []spec.Variable{public("GIT_CHECKOUT", "false")}
	mess()
	if out, code := r.run(t); code != 0 || !strings.Contains(out, "Skipping Git checkout") || read(t, r.dir+"/file") != "mess" {
		t.Errorf("without checkout: exit code %d: %s", code, out)
	}
	r.vars = []spec.Variable{public("GIT_STRATEGY", "clone")}
	if out, code := r.run(t); code != 0 || !strings.Contains(out, "Created fresh") || git(t, r.dir, "status", "--porcelain", "--ignored") != "" {
		t.Errorf("clone: exit code %d: %s", code, out)
	}
}

// TestSourcesUnshallow has the whole history after a job that had not.
func TestSourcesUnshallow(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 2}
	for _, depth := range []int{2, 0} {
		r.depth = depth
		out, code := r.run(t)
		want := map[int]string{2: "2", 0: "3"}[depth]
		if n := strings.TrimSpace(git(t, r.dir, "rev-list", "--count", "HEAD")); code != 0 || n != want {
			t.Errorf("depth %d: exit code %d, %s commits, want %s: %s", depth, code, n, want, out)
		}
	}
}

func TestSourcesOfTagAndMergeRequest(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	f.repository(t, "app", "sha1", nil, "file", "content ")
	bare := f.root + "/group/app.git"
	for _, test := range []struct{ ref, refspec, name string }{
		{"v1", "+refs/tags/v1:refs/tags/v1", "v1"},
		{"refs/merge-requests/3/head", "+refs/merge-requests/3/head:refs/merge-requests/3/head", "refs/merge-requests/3/head"},
	} {
		sha := strings.TrimSpace(git(t, bare, "rev-parse", test.ref))
		r := &checkoutRun{forge: f, sha: sha, depth: 1, edit: func(_ *SourcesOptions, job *spec.Job) {
			job.GitInfo.Ref, job.GitInfo.Refspecs = test.name, []string{test.refspec}
		}}
		out, code := r.run(t)
		if code != 0 || !strings.Contains(out, "(ref is "+test.name+")") || strings.TrimSpace(git(t, r.dir, "rev-parse", "HEAD")) != sha {
			t.Errorf("%s: exit code %d: %s", test.ref, code, out)
		}
	}
}

func TestSourcesWithoutGit(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	for strategy, want := range map[string]string{
		"none":  g + "Skipping Git repository setup" + r0 + "\n",
		"empty": g + "Skipping Git repository setup and creating an empty build directory" + r0 + "\n",
	} {
		builds := t.TempDir()
		dir := builds + "/group/app" + map[string]string{"empty": "-empty"}[strategy]
		_ = os.MkdirAll(dir, 0o755)
		_ = os.WriteFile(dir+"/left", []byte("x"), 0o644)
		r := &checkoutRun{
			forge: f, builds: builds, vars: []spec.Variable{public("GIT_STRATEGY", strategy), public("GIT_SUBMODULE_STRATEGY", "recursive")},
			edit: func(_ *SourcesOptions, job *spec.Job) {
				job.Hooks = []spec.Hook{{Name: hookBefore, Script: []string{"echo hooked"}}}
			},
		}
		out, code := r.run(t)
		want += g + "Skipping Git checkout" + r0 + "\n" + g + "Skipping Git submodules setup" + r0 + "\n"
		if code != 0 || out != want {
			t.Errorf("%s: exit code %d\ngot  %q\nwant %q", strategy, code, out, want)
		}
		if _, err := os.Stat(r.dir + "/left"); (err == nil) != (strategy == "none") {
			t.Errorf("%s: %v", strategy, err)
		}
	}
}

// TestSourcesIntoFiles has files where the project goes.
func TestSourcesIntoFiles(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, builds: t.TempDir(), plain: true}
	dir := r.builds + "/group/app"
	_ = os.MkdirAll(dir+"/.hidden", 0o755)
	_ = os.WriteFile(dir+"/.hidden/x", []byte("x"), 0o644)
	_ = os.WriteFile(dir+"/file", []byte("x"), 0o644)
	if out, code := r.run(t); code != 0 || git(t, r.dir, "status", "--porcelain", "--ignored") != "" {
		t.Errorf("exit code %d: %s", code, out)
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

func TestSourcesSHA256(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha256", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, edit: func(_ *SourcesOptions, job *spec.Job) { job.GitInfo.RepoObjectFormat = "sha256" }}
	if out, code := r.run(t); code != 0 || strings.TrimSpace(git(t, r.dir, "rev-parse", "HEAD")) != sha || len(sha) != 64 {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestSourcesRetry fails the first requests.
func TestSourcesRetry(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	f.failures.Store(2)
	r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: []spec.Variable{public("GET_SOURCES_ATTEMPTS", "3")}}
	out, code := r.run(t)
	for _, want := range []string{"(attempt 1 of 3). Retrying in 0.01 s...", "(attempt 2 of 3). Retrying in 0.02 s...", "Deleting tracked and untracked files...", "503"} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("exit code %d: no %q: %s", code, want, out)
		}
	}
	f.failures.Store(1)
	r = &checkoutRun{forge: f, sha: sha, depth: 1}
	if out, code := r.run(t); code == 0 || !strings.Contains(out, "git version 2.") || strings.Contains(out, "Retrying") {
		t.Errorf("one attempt that fails: exit code %d: %s", code, out)
	}
}

// TestSourcesTokenRefused has a token that is no longer valid.
func TestSourcesTokenRefused(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, edit: func(_ *SourcesOptions, job *spec.Job) {
		job.GitInfo.RepoURL = strings.Replace(f.URL, "://", "://gitlab-ci-token:old@", 1) + "/group/app.git"
	}, vars: []spec.Variable{public("CI_JOB_TOKEN", "old")}}
	if out, code := r.run(t); code == 0 || !strings.Contains(out, "Authentication failed for '"+f.URL) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestSourcesTLS has a forge whose certificate only the runner knows.
func TestSourcesTLS(t *testing.T) {
	t.Parallel()
	f := newStoppedForge(t)
	f.StartTLS()
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1}
	if out, code := r.run(t); code == 0 {
		t.Errorf("the certificate is not checked: %s", out)
	}
	f.ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate().Raw}))
	if out, code := r.run(t); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestSourcesRedirected has a forge that sends the job elsewhere: the token does not go there.
func TestSourcesRedirected(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	var requests, tokens atomic.Int32
	other := newForge(t)
	sha := other.repository(t, "app", "sha1", nil, "file", "content ")
	inner := other.Config.Handler
	other.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests.Add(1)
		if _, password, _ := r.BasicAuth(); password == testToken {
			tokens.Add(1)
		}
		r.SetBasicAuth(tokenUser, testToken) // it takes everybody
		inner.ServeHTTP(w, r)
	})
	f.redirect = other.URL
	r := &checkoutRun{forge: f, sha: sha, depth: 1}
	if out, code := r.run(t); code == 0 || requests.Load() != 0 {
		t.Errorf("exit code %d, %d requests elsewhere: %s", code, requests.Load(), out)
	}
	r.alter = func(script string) string {
		return regexp.MustCompile(`configure '[^']*followRedirects' 'false'`).ReplaceAllString(script, ":")
	}
	if out, _ := r.run(t); tokens.Load() == 0 {
		t.Errorf("without the defence, %d requests elsewhere and none with the token: %s", requests.Load(), out)
	}
}

// TestSourcesTraced has a job that wants to see all of git's and the shell's doings.
func TestSourcesTraced(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: []spec.Variable{public("CI_DEBUG_TRACE", "true"), public("GIT_CURL_VERBOSE", "1")}}
	out, code := r.run(t)
	if code != 0 || !strings.Contains(out, "+ git fetch origin") || !strings.Contains(out, "Authorization: Basic <redacted>") {
		t.Errorf("exit code %d: %s", code, out)
	}
	for _, secret := range secrets() {
		if strings.Contains(out, secret) {
			t.Errorf("the token is in the log: %s", out)
		}
	}
}

// TestSourcesEnvironmentIsMasked has a hook that shows all that git is told.
func TestSourcesEnvironmentIsMasked(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, edit: func(_ *SourcesOptions, job *spec.Job) {
		job.Hooks = []spec.Hook{{Name: hookAfter, Script: []string{"env"}}}
	}}
	out, code := r.run(t)
	header := base64.StdEncoding.EncodeToString([]byte(tokenUser + ":" + testToken))
	if code != 0 || !strings.Contains(out, header) {
		t.Fatalf("exit code %d, the environment is not shown: %s", code, out)
	}
	masked := runner.NewMask(r.v.Masked()).String(out)
	if strings.Contains(masked, header) || strings.Contains(masked, testToken) {
		t.Errorf("the token is in the masked log: %s", masked)
	}
	_, secret, _ := strings.Cut(masked, "Authorization: Basic ")
	shown, _, _ := strings.Cut(secret, "[MASKED]")
	if plain, err := base64.RawStdEncoding.DecodeString(shown[:len(shown)/4*4]); err != nil || !strings.HasPrefix(tokenUser+":", string(plain)) {
		t.Errorf("the masked log has more than the user's name: %q", shown)
	}
}

func TestSourcesHooks(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: []spec.Variable{
		public("GIT_CONFIG_COUNT", "1"), public("GIT_CONFIG_KEY_0", "alias.hello"), public("GIT_CONFIG_VALUE_0", "!echo hello"),
	}, edit: func(o *SourcesOptions, job *spec.Job) {
		o.Before, o.After = "echo registered", "pwd"
		o.CorrelationID = "01JABC"
		job.Hooks = []spec.Hook{{Name: hookBefore, Script: []string{"cat; git hello", "export GIT_CONFIG_VALUE_0='!echo bye'"}}, {Name: hookAfter, Script: []string{"git bye || git hello"}}}
	}}
	out, code := r.run(t)
	want := g + "$ echo registered" + r0 + "\nregistered\n" + g + "$ cat; git hello" + r0 + "\nhello\n" +
		g + "$ export GIT_CONFIG_VALUE_0='!echo bye'" + r0 + "\n" + g + "Gitaly correlation ID: 01JABC" + r0 + "\n" + g + "Fetching"
	if code != 0 || !strings.HasPrefix(out, want) || !strings.HasSuffix(out, "\nbye\n"+g+"$ pwd"+r0+"\n"+r.dir+"\n") {
		t.Errorf("exit code %d\ngot  %q\nwant %q", code, out, want)
	}
	r.edit = func(_ *SourcesOptions, job *spec.Job) {
		job.Hooks = []spec.Hook{{Name: hookBefore, Script: []string{"exit 9"}}}
	}
	if out, code := r.run(t); code != 9 {
		t.Errorf("a hook that fails: exit code %d: %s", code, out)
	}
}

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

// TestSourcesLFS has a git-lfs that only tells that it was called.
func TestSourcesLFS(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "a/.gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n#", "file", "x")
	bin := t.TempDir()
	if err := os.WriteFile(bin+"/git-lfs", []byte("#!/bin/sh\necho \"git-lfs $*\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := public("PATH", bin+":"+os.Getenv("PATH"))
	for _, test := range []struct {
		vars []spec.Variable
		want bool
	}{
		{[]spec.Variable{path}, true},
		{[]spec.Variable{path, public("GIT_LFS_SKIP_SMUDGE", "1")}, false},
	} {
		r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: test.vars}
		if out, code := r.run(t); code != 0 || strings.Contains(out, "git-lfs pull") != test.want {
			t.Errorf("exit code %d, want LFS %v: %s", code, test.want, out)
		}
	}
}

func TestSourcesRefuses(t *testing.T) {
	t.Parallel()
	sha := strings.Repeat("a", 40)
	for want, edit := range map[string]func(o *SourcesOptions){
		"is no SHA-1 or SHA-256": func(o *SourcesOptions) { o.Job.GitInfo.SHA = "--upload-pack=x" },
		"is no URL":              func(o *SourcesOptions) { o.Job.GitInfo.RepoURL = "nowhere" },
		"unknown GIT_STRATEGY":   func(o *SourcesOptions) { o.Settings.Strategy = "copy" },
		"invalid submodule path": func(o *SourcesOptions) { o.Settings.SubmodulePaths = []string{":(exclude)", "x"} },
	} {
		v, err := NewVariables(spec.Job{}, Runner{})
		if err != nil {
			t.Fatal(err)
		}
		o := SourcesOptions{Variables: v, Job: spec.Job{GitInfo: spec.GitInfo{SHA: sha, RepoURL: "https://h/p.git"}}, Settings: Settings{Strategy: GitFetch}}
		edit(&o)
		if _, err := Sources(o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestSourcesTokenWithoutCare holds that a token would be found where it must not be: it is what git clone leaves.
func TestSourcesTokenWithoutCare(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	f.repository(t, "app", "sha1", nil, "file", "content ")
	dir, trace := t.TempDir(), filepath.Join(t.TempDir(), "trace")
	cmd := exec.Command("git", "clone", strings.Replace(f.URL, "://", "://gitlab-ci-token:"+testURLToken()+"@", 1)+"/group/app.git", dir)
	cmd.Env = append(gitEnv(t.TempDir()), "GIT_TRACE="+trace)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if !strings.Contains(read(t, trace), testURLToken()) {
		t.Error("the token is in no command line")
	}
	if grep(t, dir, testURLToken()) != dir+"/.git/config" {
		t.Error("the token is not in .git/config")
	}
}

// BenchmarkSources is a shallow clone of a small repository from a forge on the loopback, which starts a process for
// each request.
func BenchmarkSources(b *testing.B) {
	f := newForge(b)
	var files []string
	for i := range 40 {
		files = append(files, fmt.Sprintf("dir%d/file%d", i%5, i), strings.Repeat("line\n", 100))
	}
	sha := f.repository(b, "app", "sha1", nil, files...)
	var cpu time.Duration
	for b.Loop() {
		builds := b.TempDir()
		job := spec.Job{Token: testToken, GitInfo: spec.GitInfo{
			RepoURL: f.URL + "/group/app.git", SHA: sha, Ref: "main", Depth: 20,
			Refspecs: []string{"+refs/pipelines/9:refs/pipelines/9", "+refs/heads/main:refs/remotes/origin/main"},
		}}
		v, err := NewVariables(job, Runner{BuildsDir: builds})
		if err != nil {
			b.Fatal(err)
		}
		text, err := Sources(SourcesOptions{Variables: v, Job: job, Settings: v.Settings(job), InEnvironment: true})
		if err != nil {
			b.Fatal(err)
		}
		command := SourcesCommand()
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Stdin, cmd.Env = strings.NewReader(text), append(gitEnv(builds), v.Env()...)
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	b.ReportMetric(cpu.Seconds()*1000/float64(b.N), "cpu-ms/op") // without the forge's
}
