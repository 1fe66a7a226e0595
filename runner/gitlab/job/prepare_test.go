package job

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// TestPrepare looks at what becomes of a job.
func TestPrepare(t *testing.T) {
	b := newBench(t)
	yes := true
	b.in.Job.GitInfo.Protected = &yes
	b.in.Job.Credentials = []spec.Credential{{Type: "registry", URL: "registry.example.com", Username: "u", Password: "from-gitlab"}}
	b.in.Job.Image = &spec.Image{Name: "$REGISTRY/app:$TAG", PullPolicies: []string{"always", "if-not-present"}}
	b.set("REGISTRY", "registry.example.com")
	b.set("TAG", "1")
	j := b.prepare()
	want := scope.Scope{Forge: "gitlab.example.com", Project: "group/app", Trust: scope.Trusted}
	if !strings.HasPrefix(j.ID, "gitlab-42-") || len(j.ID) != len("gitlab-42-abcd") || j.Name != "test" || j.Kind != Kind || j.Scope != want || j.Timeout != runner.Duration(time.Hour) {
		t.Errorf("got %+v", j.Request)
	}
	if j.Image != "registry.example.com/app:1" || j.Pull.Policy != sandbox.Always || j.Pull.Username != "u" || j.Pull.Password != "from-gitlab" || j.Pull.Asking["as"] != want.ID() {
		t.Errorf("image %s, %+v", j.Image, j.Pull)
	}
	if len(j.Else) != 1 || j.Else[0].Ref != j.Image || j.Else[0].Pull.Policy != sandbox.IfNotPresent || j.Else[0].Pull.Password != "from-gitlab" {
		t.Errorf("else: %+v", j.Else)
	}
	if j.Nesting.String() != "container" || j.Volumes != nil {
		t.Errorf("sandbox %s, volumes %v", j.Nesting, j.Volumes)
	}
	for _, secret := range []string{"job-token-1", "from-gitlab"} {
		if !slices.Contains(j.Secrets, secret) {
			t.Errorf("%q is not hidden: %q", secret, j.Secrets)
		}
		if strings.Contains(string(j.Payload), secret) {
			t.Errorf("%q is in the payload: %s", secret, j.Payload)
		}
	}
}

// TestScopes holds that merge requests and refs that are not protected are not trusted.
func TestScopes(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		ref       string
		protected *bool
		want      scope.Trust
	}{
		{"main", &yes, scope.Trusted},
		{"main", &no, scope.Untrusted},
		{"main", nil, scope.Untrusted},
		{"refs/merge-requests/3/head", &yes, scope.Untrusted},
	} {
		b := newBench(t)
		b.in.Job.GitInfo.Ref, b.in.Job.GitInfo.Protected = c.ref, c.protected
		if j := b.prepare(); j.Scope.Trust != c.want {
			t.Errorf("%+v: %s", c, j.Scope)
		}
	}
}

// TestRefused has jobs that cannot be run, and asserts that it is said why.
func TestRefused(t *testing.T) {
	for want, change := range map[string]func(*bench){
		"run:":                    func(b *bench) { b.in.Job.Run = "[{}]" },
		"secrets:":                func(b *bench) { b.in.Job.Secrets = map[string]any{"A": nil} },
		"has no script":           func(b *bench) { b.in.Job.Steps = nil },
		"correct its name":        func(b *bench) { b.in.Job.Image.Name = "Not An Image" },
		"pull policy":             func(b *bench) { b.in.Job.Image.PullPolicies = []string{"maybe"} },
		"linux/riscv64":           func(b *bench) { b.in.Job.Image.ExecutorOpts = []byte(`{"docker":{"platform":"linux/riscv64"}}`) },
		"executor_opts":           func(b *bench) { b.in.Job.Image.ExecutorOpts = []byte(`[]`) },
		"too much":                func(b *bench) { b.config.Limits = func(*sandbox.Limits) error { return errors.New("too much") } },
		"has 33 services":         func(b *bench) { b.in.Job.Services = make([]spec.Image, 33) },
		"is not in /builds":       func(b *bench) { b.set("GIT_CLONE_PATH", "/etc") },
		"Service \"Bad Service\"": func(b *bench) { b.in.Job.Services = []spec.Image{{Name: "Bad Service"}} },
	} {
		b := newBench(t)
		change(b)
		_, err := Prepare(t.Context(), b.config, b.in)
		var failed *Failure
		if !errors.As(err, &failed) || failed.Reason != spec.ConfigurationError || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", want, err)
		}
	}
}

// TestNotes holds that what is not honoured is said in the log.
func TestNotes(t *testing.T) {
	b := newBench(t)
	b.in.Job.Image.ExecutorOpts = []byte(`{"kubernetes":{"user":"1000"}}`)
	b.in.Job.Image.Ports = []spec.Port{{Number: 80}}
	b.set("FF_NEW_IDEA", "true")
	b.set("FF_OLD_IDEA", "false")
	b.set("FF_NETWORK_PER_BUILD", "1")
	b.set("KUBERNETES_CPU_LIMIT", "2")
	b.set(authVariable, "{")
	b.set("GET_SOURCES_ATTEMPTS", "many")
	if _, err := b.run(t.Context()); err != nil {
		t.Fatal(err)
	}
	b.wants([]string{sources, script1, after}, "FF_NEW_IDEA is not honoured", "kubernetes options are not used", "ports are not used",
		"KUBERNETES_CPU_LIMIT is not used", "DOCKER_AUTH_CONFIG is not used", "GET_SOURCES_ATTEMPTS: expected int")
	for _, not := range []string{"FF_OLD_IDEA", "FF_NETWORK"} {
		if strings.Contains(b.out.String(), not) {
			t.Errorf("the log speaks of %s:\n%s", not, b.out)
		}
	}
}

// TestCredentials looks at whose are taken for which image.
func TestCredentials(t *testing.T) {
	const config = `{"auths": {
		"https://index.docker.io/v1/": {"auth": "aHViOnB3"},
		"registry.example.com": {"auth": "d2hvbGU6cHcx"},
		"registry.example.com/group": {"auth": "Z3JvdXA6cHcy"},
		"other.example.com:5000": {"identitytoken": "tok"}}}`
	sent := []spec.Credential{{Type: "registry", URL: "gitlab.example.com:5050", Username: "gitlab-ci-token", Password: "pw3"}, {Type: "other", URL: "docker.io", Password: "no"}}
	a, err := readAuths(config, sent, func(host string) (string, string, bool) {
		return "operator", "pw4", host == "own.example.com"
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"debian": "hub:pw", "registry.example.com/app": "whole:pw1", "registry.example.com/group/app": "group:pw2", "registry.example.com/groups/app": "whole:pw1",
		"other.example.com:5000/a": ":tok", "other.example.com/a": ":", "gitlab.example.com:5050/a/b": "gitlab-ci-token:pw3", "own.example.com/a": "operator:pw4",
	} {
		p := &plan{auths: a, pull: sandbox.IfNotPresent}
		p.vars = newBench(t).vars()
		i, err := p.image("Image", spec.Image{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		if got := i.tries[0].Pull.Username + ":" + i.tries[0].Pull.Password; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, secret := range []string{"pw", "pw1", "tok", "pw3"} {
		if !slices.Contains(a.secrets(), secret) {
			t.Errorf("%q is not hidden", secret)
		}
	}
}

// TestServiceNames holds the names against those of gitlab-runner.
func TestServiceNames(t *testing.T) {
	for name, want := range map[string]string{
		"postgres:16":                              "postgres",
		"tutum/wordpress:latest":                   "tutum__wordpress tutum-wordpress",
		"registry.example.com:5000/group/name:1.0": "registry.example.com__group__name registry.example.com-group-name group__name group-name",
		"redis@sha256:" + strings.Repeat("a", 64):  "redis",
	} {
		if got := strings.Join(serviceNames(name), " "); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}

// TestEngine has services that are a Docker Engine, and some that look like one.
func TestEngine(t *testing.T) {
	for name, want := range map[string]bool{
		"docker:dind": true, "docker:27.3.1-dind-rootless": true, "registry.example.com/proxy/docker:24-dind": true, "mycorp/docker-dind:1": true, "dind": true,
		"docker:27": false, "postgres": false, "dindle": false, "mydocker:dind": false,
	} {
		if got := isEngine(name, spec.Image{}); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if !isEngine("docker:27", spec.Image{Command: []string{"dockerd", "--tls=false"}}) {
		t.Error("docker:27 that runs dockerd is none")
	}
	b := newBench(t)
	b.in.Job.Image = &spec.Image{Name: "docker:27"}
	b.in.Job.Services = []spec.Image{{Name: "docker:27-dind", Alias: "dockerd", Command: []string{"--registry-mirror=https://mirror", "--mtu=1400", "--tls=false", "--storage-driver=vfs"}}}
	b.set(certsVariable, "/certs")
	b.on.does["mkdir -p \"$0\""] = func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
		if p.Args[3] != "/certs/client" || p.User != rootUser {
			t.Errorf("certificates are written by %v as %s", p.Args, p.User)
		}
		return sandbox.Exit{}, nil
	}
	j := b.prepare()
	if j.Nesting.String() != "container/dind" || !slices.Equal(j.EngineArgs, []string{"--registry-mirror=https://mirror"}) || !slices.Contains(j.EngineAt, "tcp://dockerd:2376") {
		t.Errorf("sandbox %s, arguments %v, at %v", j.Nesting, j.EngineArgs, j.EngineAt)
	}
	if len(j.Else) != 1 || j.Else[0].Ref != helperImage {
		t.Errorf("else: %+v", j.Else)
	}
	b.on.image.Reference = helperImage
	if exit, err := b.step.Run(t.Context(), b.on, b.out); err != nil || !exit.Success() {
		t.Error(exit, err)
	}
	b.wants([]string{"mkdir -p \"$0\"", sources, script1, after}, "The image docker:27 cannot be had.", "Service docker:27-dind is this sandbox's own Docker Engine",
		"--mtu=1400 is not used", "--storage-driver=vfs is not used")
	if strings.Contains(b.out.String(), "--tls=false") {
		t.Error("the log speaks of what is done")
	}
	if b.on.hosts["docker"] != loopback || b.on.hosts["dockerd"] != loopback || len(b.on.added) != 0 {
		t.Errorf("hosts %v, companions %v", b.on.hosts, b.on.added)
	}
	if !slices.Equal(b.on.listened, []string{"127.0.0.1:2375", "127.0.0.1:2376"}) {
		t.Errorf("listened at %v", b.on.listened)
	}
}

// TestReach looks at what a job may reach of the machine: a forge on it, and nothing that only the forge says.
func TestReach(t *testing.T) {
	own := func() ([]net.Addr, error) {
		return []net.Addr{&net.IPNet{IP: net.IPv4(192, 0, 2, 7), Mask: net.CIDRMask(24, 32)}}, nil
	}
	for name, c := range map[string]struct {
		url, clone, repository string
		files, resolver        names
		listened               string
		reached                string
		host                   string // that the sandbox gets
	}{
		"elsewhere":            {url: "https://gitlab.example.com", resolver: names{"gitlab.example.com": "198.51.100.1"}},
		"loopback":             {url: "http://127.0.0.1:8080", listened: "127.0.0.1:8080"},
		"localhost":            {url: "http://localhost:8080", listened: "127.0.0.1:8080"},
		"in /etc/hosts":        {url: "https://gitlab.lan", files: names{"gitlab.lan": "127.0.0.1"}, listened: "127.0.0.1:443", host: "gitlab.lan"},
		"own address":          {url: "http://192.0.2.7", reached: "192.0.2.7:80"},
		"own by name":          {url: "https://gitlab.lan", resolver: names{"gitlab.lan": "192.0.2.7"}, reached: "192.0.2.7:443", host: "gitlab.lan"},
		"clone_url":            {url: "https://gitlab.example.com", clone: "http://192.0.2.7:8080", reached: "192.0.2.7:8080"},
		"repository's port":    {url: "http://127.0.0.1:8080", repository: "http://127.0.0.1:8081/a.git", listened: "127.0.0.1:8080 127.0.0.1:8081"},
		"repository's host":    {url: "https://gitlab.example.com", repository: "http://127.0.0.1:6379/a.git"},
		"a name that rebinds":  {url: "https://gitlab.example.com", resolver: names{"gitlab.example.com": "127.0.0.1"}},
		"a port of a rebinder": {url: "https://gitlab.lan", repository: "http://gitlab.lan:6379/a.git", resolver: names{"gitlab.lan": "192.0.2.7"}, reached: "192.0.2.7:443", host: "gitlab.lan"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.in.Runner.URL, b.in.Runner.CloneURL = c.url, c.clone
			if c.repository != "" {
				b.in.Job.GitInfo.RepoURL = c.repository
			}
			b.config.Addresses, b.config.Files, b.config.Resolver = own, c.files, c.resolver
			if _, err := b.run(t.Context()); err != nil {
				t.Error(err)
			}
			if got := strings.Join(b.on.listened, " "); got != c.listened {
				t.Errorf("listened at %q, want %q", got, c.listened)
			}
			reached := ""
			for _, r := range b.on.reached {
				reached += r.String()
			}
			if reached != c.reached {
				t.Errorf("reached %q, want %q", reached, c.reached)
			}
			if _, ok := b.on.hosts[c.host]; c.host != "" && !ok || c.host == "" && len(b.on.hosts) > 0 {
				t.Errorf("hosts %v, want %q", b.on.hosts, c.host)
			}
		})
	}
}

// TestFilesResolver holds that it asks no name server.
func TestFilesResolver(t *testing.T) {
	if got, err := FilesResolver().LookupNetIP(t.Context(), "ip", "gitlab.example.com"); err == nil {
		t.Errorf("got %v", got)
	}
	if got, err := FilesResolver().LookupNetIP(t.Context(), "ip4", "localhost"); err != nil || len(got) == 0 || got[0].Unmap() != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("got %v, %v", got, err)
	}
}
