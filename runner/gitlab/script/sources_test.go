package script

import (
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

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

func TestSourcesHooks(t *testing.T) {
	t.Parallel()
	f := newForge(t)
	sha := f.repository(t, "app", "sha1", nil, "file", "content ")
	r := &checkoutRun{forge: f, sha: sha, depth: 1, vars: []spec.Variable{
		public("GIT_CONFIG_COUNT", "1"), public("GIT_CONFIG_KEY_0", "alias.hello"), public("GIT_CONFIG_VALUE_0", "!echo hello"),
	}, edit: func(o *SourcesOptions, job *spec.Job) {
		o.Scripts = Scripts{PreGetSources: "echo registered", PostGetSources: "pwd"}
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
