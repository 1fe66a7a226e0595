//go:build integration

package integration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/sandboxtest"
	"github.com/runnerd/runnerd/scope"
)

// gitForge serves one repository over smart HTTP, to who has the job's token.
type gitForge struct {
	url, repository, sha string
}

const jobToken = "glcbt-64_hush-hush-hush"

// newGitForge serves a repository at an address of the machine.
func newGitForge(t *testing.T, address string) gitForge {
	t.Helper()
	root := t.TempDir()
	bare := filepath.Join(root, "group", "app.git")
	script := `set -e
git init -q -b main work && cd work
git config user.email a@b && git config user.name n
echo hello >file && mkdir dir && echo there >dir/file
git add . && git commit -qm first
git clone -q --bare . "$0" && git -C "$0" config http.receivepack false
git rev-parse HEAD`
	cmd := exec.Command("bash", "-c", script, bare)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "HOME="+root)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	git, err := exec.LookPath("git")
	if err != nil {
		t.Fatal(err)
	}
	backend := &cgi.Handler{Path: git, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root}}
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, ok := r.BasicAuth(); !ok || password != jobToken {
			w.Header().Set("WWW-Authenticate", "Basic")
			http.Error(w, "who are you", http.StatusUnauthorized)
			return
		}
		backend.ServeHTTP(w, r)
	})
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	server := &httptest.Server{Listener: l, Config: &http.Server{Handler: handler}}
	server.Start()
	t.Cleanup(server.Close)
	return gitForge{url: server.URL, repository: strings.Replace(server.URL, "://", "://gitlab-ci-token:"+jobToken+"@", 1) + "/group/app.git", sha: strings.TrimSpace(string(out))}
}

// job is a job of the forge's with a script.
func (f gitForge) job(script ...string) spec.Job {
	return spec.Job{
		ID: 7, Token: jobToken, JobInfo: spec.JobInfo{Name: "test", ProjectFullPath: "group/app", ProjectID: 3},
		GitInfo:    spec.GitInfo{RepoURL: f.repository, Ref: "main", SHA: f.sha, RefType: "branch", Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main"}, Depth: 20},
		RunnerInfo: spec.RunnerInfo{Timeout: 120},
		Variables:  []spec.Variable{{Key: "CI_JOB_TOKEN", Value: jobToken, Masked: true}, {Key: "CI_PROJECT_PATH", Value: "group/app", Public: true}},
		Steps:      []spec.Step{{Name: spec.StepScript, Script: script, Timeout: 120, When: "on_success"}},
		Image:      &spec.Image{Name: debian},
		Features:   spec.JobFeatures{TraceSections: true},
	}
}

// logged is an Output in memory, with the time of each write.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Stream(runner.Stream) io.Writer { return l }

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// ran is what has become of a job.
type ran struct {
	trace string
	exit  sandbox.Exit
	err   error
	step  *gitlabjob.Step
	took  time.Duration // from its assignment
}

func jobConfig() gitlabjob.Config {
	return gitlabjob.Config{
		Version: "test", Revision: "none", Image: debian, Helper: engine, Pull: sandbox.IfNotPresent,
		Limits: func(*sandbox.Limits) error { return nil },
		Asking: func(scope.Scope) map[string]string { return nil }, ServiceTimeout: 5 * time.Second,
	}.Machine()
}

// runJob runs a job as the daemon does. during, if not nil, gets the sandbox when the script runs.
func runJob(t *testing.T, forge string, j spec.Job, change func(*gitlabjob.Config, *gitlabjob.Assigned)) ran {
	t.Helper()
	began := time.Now()
	c, a := jobConfig(), gitlabjob.Assigned{Runner: gitlabjob.Runner{Name: "it", URL: forge}, Job: j}
	if change != nil {
		change(&c, &a)
	}
	prepared, err := gitlabjob.Prepare(t.Context(), c, a)
	if err != nil {
		return ran{err: err}
	}
	drivers := map[sandbox.Kind]sandbox.Driver{sandbox.Container: host.container, sandbox.DinD: host.dind}
	s := sandbox.Spec{ID: prepared.ID, Image: prepared.Image, Pull: prepared.Pull, Env: prepared.Env, Limits: prepared.Limits, EngineArgs: prepared.EngineArgs, Toolbox: prepared.Toolbox, Volumes: map[string]string{gitlabjob.BuildsVolume: gitlabjob.DefaultBuilds}}
	sb, err := sandbox.Open(t.Context(), nil, prepared.Nesting, s, drivers, sandbox.DefaultPolicy())
	for _, other := range prepared.Else {
		if errors.Is(err, sandbox.ErrImage) {
			s.Image, s.Pull = other.Ref, other.Pull
			sb, err = sandbox.Open(t.Context(), nil, prepared.Nesting, s, drivers, sandbox.DefaultPolicy())
		}
	}
	if err != nil {
		return ran{err: err}
	}
	opened := time.Now()
	out := &logged{}
	step := prepared.Steps[0].(*gitlabjob.Step)
	exit, err := step.Run(t.Context(), sb, out)
	r := ran{trace: out.String(), exit: exit, err: err, step: step, took: time.Since(began)}
	ran := time.Now()
	if err := sb.Close(context.Background()); err != nil {
		t.Error(err)
	}
	if left := host.leftovers(prepared.ID); len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
	t.Logf("opened %s, ran %s, closed %s; %s", opened.Sub(began), ran.Sub(opened), time.Since(ran), step.Detail())
	return r
}

var ansi = regexp.MustCompile(`\x1b\[[0-9;]*[mK]`)

// plain is a trace without colours.
func plain(trace string) string { return ansi.ReplaceAllString(trace, "") }

func (r ran) mustSay(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		if !strings.Contains(plain(r.trace), text) {
			t.Errorf("the trace does not say %q:\n%s", text, plain(r.trace))
			return
		}
	}
}

// TestGitLabJob clones from a forge on the machine's loopback and runs a script.
func TestGitLabJob(t *testing.T) {
	f := newGitForge(t, "127.0.0.1:0")
	j := f.job(`echo "in $PWD: $(cat file dir/file | tr '\n' ' ')"`, `id -u; umask`, `for f in /proc/[0-9]*/cmdline; do tr '\0' ' ' <$f; done; cat .git/config`)
	j.Steps = append(j.Steps, spec.Step{Name: spec.StepAfterScript, Script: []string{"echo after $CI_JOB_STATUS"}, When: "always"})
	r := runJob(t, f.url, j, nil)
	if r.err != nil || !r.exit.Success() {
		t.Errorf("got %v, %v", r.exit, r.err)
	}
	r.mustSay(t, "in /builds/group/app: hello there", "after success", "section_start:", ":step_script\r")
	if strings.Contains(r.trace, jobToken) {
		t.Errorf("the token is in an argument or in .git/config:\n%s", r.trace)
	}
}

// TestGitLabJobStages logs how long a trivial job takes when all images are there.
func TestGitLabJobStages(t *testing.T) {
	f := newGitForge(t, "127.0.0.1:0")
	for range 8 {
		if r := runJob(t, f.url, f.job("true"), nil); r.err != nil || !r.exit.Success() {
			t.Errorf("got %v, %v", r.exit, r.err)
		}
	}
}

// pong is a TCP server's command for the image node.
func pong(port string) []string {
	return []string{"node", "-e", `require("net").createServer(c => c.on("error", () => {}).end("pong of " + process.env.WHO + "\n")).listen(` + port + `); console.log("listening")`}
}

const askScript = `ask() { bash -c "exec 3<>/dev/tcp/$1/$2 && cat <&3"; }`

// TestGitLabServices has services that answer, that end, that have no image, and that want one port.
func TestGitLabServices(t *testing.T) {
	f := newGitForge(t, "127.0.0.1:0")
	t.Run("answers", func(t *testing.T) {
		j := f.job(askScript, "ask db 4000; ask the-db 4000; ask node 4000; ask localhost 4001", "id -u; ls -ld /builds/group/app")
		j.Variables = append(j.Variables, spec.Variable{Key: "NAME", Value: "db", Public: true}, spec.Variable{Key: "CI_DEBUG_SERVICES", Value: "true"})
		j.Services = []spec.Image{
			{Name: "node:20", Alias: "$NAME the-db", Entrypoint: pong("4000"), Variables: []spec.Variable{{Key: "WHO", Value: "the $NAME"}, {Key: "HEALTHCHECK_TCP_PORT", Value: "4000"}}},
			{Name: "docker.io/library/node:20", Alias: "second", Entrypoint: []string{""}, Command: pong("4001"), Variables: []spec.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: "4001"}}, ExecutorOpts: []byte(`{"docker":{"user":"1000"}}`)},
		}
		r := runJob(t, f.url, j, nil)
		if r.err != nil || !r.exit.Success() {
			t.Errorf("got %v, %v", r.exit, r.err)
		}
		r.mustSay(t, "pong of the db\npong of the db\npong of the db\npong of undefined\n", "[service:db] listening", "Starting service node:20")
		if strings.Contains(r.trace, "didn't start properly") {
			t.Error(plain(r.trace))
		}
	})
	t.Run("does not answer", func(t *testing.T) {
		j := f.job("echo went on")
		j.Services = []spec.Image{{Name: debian, Alias: "broken", Command: []string{"sh", "-c", "echo is broken; exit 3"}, Variables: []spec.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: "1"}}}}
		r := runJob(t, f.url, j, nil)
		if r.err != nil || !r.exit.Success() {
			t.Errorf("got %v, %v", r.exit, r.err)
		}
		r.mustSay(t, "*** WARNING: Service broken probably didn't start properly.", "it has ended: exit code 3", "is broken", "went on")
	})
	t.Run("no image", func(t *testing.T) {
		j := f.job("echo went on")
		j.Services = []spec.Image{{Name: "no-such-service:1"}}
		r := runJob(t, f.url, j, nil)
		var failed *gitlabjob.Failure
		if !errors.As(r.err, &failed) || failed.Reason != spec.ImagePullFailure || strings.Contains(r.trace, "went on") {
			t.Errorf("got %v, %v: %s", r.exit, r.err, plain(r.trace))
		}
	})
	t.Run("one port", func(t *testing.T) {
		j := f.job("true")
		port := []spec.Variable{{Key: "HEALTHCHECK_TCP_PORT", Value: "4000"}}
		j.Services = []spec.Image{{Name: "node:20", Alias: "a", Entrypoint: pong("4000"), Variables: port}, {Name: "node:20", Alias: "b", Entrypoint: pong("4000"), Variables: port}}
		r := runJob(t, f.url, j, nil)
		r.mustSay(t, "Services a and b both expose port 4000")
	})
}

// TestGitLabEngine has docker:dind as a service, and does what users do with it.
func TestGitLabEngine(t *testing.T) {
	f := newGitForge(t, "127.0.0.1:0")
	j := f.job(
		`docker version -f 'socket {{.Server.Os}}'`,
		`DOCKER_HOST=tcp://docker:2375 docker version -f 'plain {{.Server.Os}}'`,
		`export DOCKER_HOST=tcp://docker:2376 DOCKER_TLS_VERIFY=1 DOCKER_CERT_PATH="$DOCKER_TLS_CERTDIR/client"`,
		`docker version -f 'tls {{.Server.Os}}'`,
		`echo through the engine | docker run -i --rm debian:bookworm-slim cat`,
		`docker run --rm -v "$PWD:/src" debian:bookworm-slim cat /src/file`,
		`DOCKER_HOST=tcp://my-docker:2376 docker version -f 'alias {{.Server.Os}}'`,
		`! DOCKER_CERT_PATH=/nowhere docker version >/dev/null 2>&1 && echo refused`,
		`id; ls -l /certs/client`,
		`docker run -d -p 8080:4000 --name web node:20 node -e 'require("net").createServer(c => c.on("error", () => {}).end("published\n")).listen(4000)' >/dev/null`,
		`for i in $(seq 50); do bash -c 'exec 3<>/dev/tcp/docker/8080 && cat <&3' 2>/dev/null && break; sleep 0.1; done`,
	)
	j.Image = &spec.Image{Name: "docker:27.3.1-cli"}
	j.Services = []spec.Image{{Name: "registry.example.com/mirror/docker:27.3.1-dind", Alias: "my-docker", Command: []string{"--tls=false", "--mtu=1400", "--insecure-registry=registry.local:5000"}}}
	j.Variables = append(j.Variables, spec.Variable{Key: "DOCKER_TLS_CERTDIR", Value: "/certs", Public: true})
	r := runJob(t, f.url, j, nil)
	if r.err != nil || !r.exit.Success() {
		t.Errorf("got %v, %v", r.exit, r.err)
	}
	r.mustSay(t, "socket linux", "plain linux", "tls linux", "through the engine", "hello", "alias linux", "refused", "published", "ca.pem", "cert.pem", "key.pem",
		"The image docker:27.3.1-cli cannot be had", "this sandbox's own Docker Engine", "--mtu=1400 is not used")
}

// TestGitLabImage has entrypoints, users and platforms.
func TestGitLabImage(t *testing.T) {
	f := newGitForge(t, "127.0.0.1:0")
	for name, c := range map[string]struct {
		image  spec.Image
		script []string
		says   []string
		code   int
		err    string
	}{
		"entrypoint": {image: spec.Image{Name: debian, Entrypoint: []string{"env", "WRAPPED=yes"}}, script: []string{"echo wrapped $WRAPPED"}, says: []string{"wrapped yes"}},
		"user": {
			image:  spec.Image{Name: debian, ExecutorOpts: []byte(`{"docker":{"user":"1000:1000"}}`)},
			script: []string{"id -u", "echo mine >file && mkdir sub && ls -n file"}, says: []string{"1000\n"},
		},
		"kubernetes":      {image: spec.Image{Name: debian, ExecutorOpts: []byte(`{"kubernetes":{"user":"1000"}}`)}, script: []string{"id -u"}, says: []string{"kubernetes options are not used", "\n0\n"}},
		"platform":        {image: spec.Image{Name: debian, ExecutorOpts: []byte(`{"docker":{"platform":"linux/s390x"}}`)}, err: "linux/s390x"},
		"second policy":   {image: spec.Image{Name: debian, PullPolicies: []string{"always", "if-not-present"}}, script: []string{"echo there"}, says: []string{"\nthere\n"}},
		"unknown policy":  {image: spec.Image{Name: debian, PullPolicies: []string{"sometimes"}}, err: "sometimes"},
		"no image":        {image: spec.Image{Name: "no-such-image:1"}, err: "image not found"},
		"fails":           {image: spec.Image{Name: debian}, script: []string{"exit 7"}, code: 7},
		"entrypoint dies": {image: spec.Image{Name: debian, Entrypoint: []string{"false"}}, script: []string{"echo no"}, code: 1},
	} {
		t.Run(name, func(t *testing.T) {
			j := f.job(c.script...)
			j.Image = &c.image
			r := runJob(t, f.url, j, nil)
			if c.err != "" {
				if r.err == nil || !strings.Contains(r.err.Error(), c.err) {
					t.Errorf("got %v, want %q", r.err, c.err)
				}
				return
			}
			if r.err != nil || r.exit.Code != c.code {
				t.Errorf("got %v, %v", r.exit, r.err)
			}
			r.mustSay(t, c.says...)
		})
	}
}

// TestGitLabForgeReach has a forge at an address of the machine, which one sandbox is let reach: that address and that
// port, as long as it lives.
func TestGitLabForgeReach(t *testing.T) {
	address := ownAddress(t).Addr().String()
	f := newGitForge(t, address+":0")
	other, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	hidden, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hidden.Close()
	tries := func(at net.Addr) string {
		host, port, _ := net.SplitHostPort(at.String())
		return fmt.Sprintf(`timeout 1 bash -c 'exec 3<>/dev/tcp/%s/%s' 2>/dev/null && echo reached %[2]s || echo refused %[2]s`, host, port)
	}
	port := func(at net.Addr) string { _, p, _ := net.SplitHostPort(at.String()); return p }
	forge, err := net.ResolveTCPAddr("tcp", strings.TrimPrefix(f.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	r := runJob(t, f.url, f.job("cat file", tries(forge), tries(other.Addr()), tries(hidden.Addr())), nil)
	if r.err != nil || !r.exit.Success() {
		t.Errorf("got %v, %v", r.exit, r.err)
	}
	r.mustSay(t, "\nhello\n", "reached "+port(forge), "refused "+port(other.Addr()), "refused "+port(hidden.Addr()))

	// Whoever is not let: a job of another forge, which says that its repository is here.
	stranger := f.job(tries(forge))
	stranger.Variables = append(stranger.Variables, spec.Variable{Key: "GIT_STRATEGY", Value: "none"})
	for _, url := range []string{"https://gitlab.example.com", "http://" + address + ":1"} {
		r := runJob(t, url, stranger, nil)
		if url == "http://"+address+":1" { // the same host is the operator's: the forge may have its git at another port
			r.mustSay(t, "reached "+port(forge))
			continue
		}
		r.mustSay(t, "refused "+port(forge))
	}
	// What was allowed was taken back.
	if set, err := exec.Command("nft", "list", "set", "inet", host.name, "reached").CombinedOutput(); err != nil || strings.Contains(string(set), "elements") {
		t.Errorf("left: %s %v", set, err)
	}
}

// TestPoolWithGit has sandboxes ready with what jobs of GitLab use, git and a place for repositories that all users may
// write, and kills their daemon.
func TestPoolWithGit(t *testing.T) {
	d := startDaemon(t, "pool: [{sandbox: container, size: 2, git: true}]\n")
	const script = "stat -c %A /builds; touch /builds/mine; ls -d /dev/.runnerd-toolbox/usr/bin/git 2>/dev/null || true"
	for range 2 {
		got := ""
		// Until the pool is ready a job gets a sandbox that was made for it, and this one needs no git.
		for deadline := time.Now().Add(time.Minute); got != "drwxrwxrwx\n/dev/.runnerd-toolbox/usr/bin/git\n"; got = d.want(0, "", "run", "--user", "1000", "--", "sh", "-c", script) {
			if time.Now().After(deadline) {
				t.Fatalf("a job sees %q", got)
			}
		}
		d.stop(syscall.SIGKILL)
		d.start()
	}
}

// TestToolbox runs the programs of an image in the container of another.
func TestToolbox(t *testing.T) {
	spec := sandbox.Spec{
		ID: "toolbox", Image: debian, Toolbox: &sandbox.Toolbox{Image: engine}, Volumes: map[string]string{"v": "/somewhere/v"},
		Hosts: map[string]string{"some-host": "192.0.2.1"},
	}
	sb, err := host.container.Start(t.Context(), nil, spec)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sb.Close(context.Background()); err != nil {
			t.Error(err)
		}
		if left := host.leftovers("toolbox"); len(left) > 0 {
			t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
	}()
	boxed, ok := sandbox.As[sandbox.Toolboxed](sb)
	if !ok {
		t.Fatal("it has none")
	}
	tools, _ := boxed.Toolbox()
	in := func(on sandbox.Host, dir string, args ...string) (string, int) {
		var out bytes.Buffer
		exit, err := on.Exec(t.Context(), sandbox.Process{Args: args, Dir: dir, Stdout: &out, Stderr: &out})
		if err != nil {
			t.Errorf("%q: %v", args, err)
		}
		return out.String(), exit.Code
	}
	for _, c := range []struct {
		on   sandbox.Host
		dir  string
		args []string
		code int
		says string
	}{
		{sb, "", []string{"git", "--version"}, 127, "not found"},
		{tools, "", []string{"git", "--version"}, 0, "git version"},
		{tools, "/somewhere/v", []string{"sh", "-c", "pwd >file; echo >/dev/null; head -c 1 /dev/urandom | wc -c; getent hosts some-host"}, 0, "1\n192.0.2.1"},
		{sb, "", []string{"cat", "/somewhere/v/file"}, 0, "/somewhere/v"},
		{tools, "/new", []string{"pwd"}, 0, "/new"},
		{tools, "", []string{"no-such-command"}, 127, "not found"},
		{tools, "", []string{"/etc/passwd"}, 126, "permission denied"},
		{tools, "", []string{"sh", "-c", "exit 9"}, 9, ""},
		{tools, "", []string{"sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '"}, 0, "/dev/.runnerd-init"},
		// What is masked of the container is masked of its tools, which its processes see too.
		{sb, "", []string{"bash", "-c", "for r in '' /dev/.runnerd-toolbox; do echo x >$r/proc/sys/kernel/hostname; done 2>&1 | grep -c Read-only"}, 0, "2"},
		{sb, "", []string{"sh", "-c", "cd /dev/.runnerd-toolbox; cat /proc/interrupts proc/interrupts /proc/timer_list proc/timer_list /proc/keys proc/keys | wc -c; ls /sys/firmware | wc -l"}, 0, "0\n0\n"},
	} {
		if out, code := in(c.on, c.dir, c.args...); code != c.code || !strings.Contains(out, c.says) {
			t.Errorf("%q: got exit code %d, want %d, and %q, want %q", c.args, code, c.code, out, c.says)
		}
	}
}

// TestContainerWithToolbox holds that a toolbox changes nothing of a sandbox, and is gone with it.
func TestContainerWithToolbox(t *testing.T) {
	sandboxtest.Run(t, func(ctx context.Context, id string) (sandbox.Sandbox, error) {
		return host.container.Start(ctx, nil, sandbox.Spec{ID: id, Image: debian, Toolbox: &sandbox.Toolbox{Image: engine}})
	}, host.leftovers)
}
