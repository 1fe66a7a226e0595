//go:build integration

package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// script runs a shell script in a container/dind job.
func (d *daemon) script(args []string, script string) (stdout, stderr string, code int) {
	d.t.Helper()
	all := append([]string{"run", "--sandbox", "container/dind", "--memory", "2GiB", "--cpu", "2"}, args...)
	return d.run(append(all, "--", "sh", "-ec", script)...)
}

const warmBuild = `mkdir -p /workspace/c && cd /workspace/c
printf 'FROM debian:bookworm-slim AS one\nRUN head -c 20 /dev/urandom | sha256sum >/one\nFROM debian:bookworm-slim\nCOPY --from=one /one /two\nCOPY f /f\nCMD cat /two /f\n' >Dockerfile
echo hello >f
docker buildx ls >&2
docker build --progress plain -t it . >&2
docker run --rm it`

// TestDockerBuildIsWarm builds in one job what another builds after it.
func TestDockerBuildIsWarm(t *testing.T) {
	d := startDaemon(t, "")
	first, stderr, code := d.script([]string{"--project", "a"}, warmBuild)
	if code != 0 || !strings.HasSuffix(first, "hello\n") {
		t.Fatalf("exit code %d: %q\n%s", code, first, stderr)
	}
	if !strings.Contains(stderr, "runnerd*") {
		t.Errorf("runnerd is not the current builder:\n%s", stderr)
	}
	second, stderr, code := d.script([]string{"--project", "a"}, warmBuild)
	if code != 0 || second != first {
		t.Errorf("the second job got %q, the first %q, exit code %d\n%s", second, first, code, stderr)
	}
	for _, step := range []string{"[one 2/2] RUN", "[stage-1 2/3] COPY", "[stage-1 3/3] COPY"} {
		if !cached(stderr, step) {
			t.Errorf("%s was not cached in the second job\n%s", step, stderr)
		}
	}
	other, stderr, code := d.script([]string{"--project", "b"}, warmBuild)
	if code != 0 || other == first || cached(stderr, "[one 2/2] RUN") {
		t.Errorf("another project got %q, exit code %d\n%s", other, code, stderr)
	}
	inner, stderr, code := d.script([]string{"--project", "a"}, strings.ReplaceAll(warmBuild, "docker build ", "docker build --builder default "))
	if code != 0 || inner == first || cached(stderr, "[one 2/2] RUN") {
		t.Errorf("the engine's own builder gave %q, exit code %d\n%s", inner, code, stderr)
	}
}

// cached tells from plain progress whether a step was taken from the cache.
func cached(progress, step string) bool {
	for line := range strings.Lines(progress) {
		number, rest, ok := strings.Cut(line, " ")
		if ok && strings.HasPrefix(rest, step) {
			return strings.Contains(progress, "\n"+number+" CACHED\n")
		}
	}
	return false
}

// TestDockerBuild does with the project's builder what jobs do with docker, and what they may not.
func TestDockerBuild(t *testing.T) {
	d := startDaemon(t, "")
	const prepare = "mkdir -p /tmp/c && cd /tmp/c && printf 'FROM debian:bookworm-slim\nRUN echo built >/b\nCMD [\"cat\", \"/b\"]\n' >Dockerfile\n"
	for _, c := range []struct {
		name, script string
		flags        []string
		code         int
		stdout       string // its last line
		stderr       string // part of it
	}{
		{name: "quiet, id file and metadata", script: prepare + `id=$(docker build -q --iidfile id --metadata-file meta -t it .)
			test "$id" = "$(cat id)"; grep -q containerimage.digest meta; grep -q buildx.build.provenance meta; docker run --rm "$id"`, stdout: "built"},
		{name: "as another user", flags: []string{"--user", "1000:1000", "--env", "HOME=/tmp"}, script: prepare + `docker build -t it . && docker run --rm it`, stdout: "built"},
		{name: "syntax line", script: prepare + `sed -i '1i # syntax=docker/dockerfile:1' Dockerfile; docker build -t it . && docker run --rm it`, stdout: "built"},
		{name: "syntax argument", script: prepare + `docker build --build-arg BUILDKIT_SYNTAX=docker/dockerfile:1 -t it . && docker run --rm it`, stdout: "built"},
		{name: "bake", script: prepare + `printf 'FROM base\nRUN echo more >>/b\n' >Second
			printf 'group "default" { targets = ["one", "two"] }\ntarget "one" { tags = ["one"] }\ntarget "two" {\n dockerfile = "Second"\n contexts = { base = "target:one" }\n tags = ["two"]\n}\n' >docker-bake.hcl
			docker buildx bake && docker run --rm one >&2 && docker run --rm two`, stdout: "more"},
		{name: "secret", script: prepare + `printf 'FROM debian:bookworm-slim\nRUN --mount=type=secret,id=s sha256sum </run/secrets/s >/b\nCMD ["cat", "/b"]\n' >Dockerfile
			printf hush >/tmp/s; docker build --secret id=s,src=/tmp/s -t it . && docker run --rm it`, stdout: "dc8331bcb2283e89d275a1c2fe66f7bf5ac3163ec1967f149dd7e27906365f0c  -"},
		{name: "local output", script: prepare + `docker build --output type=local,dest=out . && cat out/b`, stdout: "built"},
		{name: "push", script: prepare + `tag=$(docker info -f '{{range .RegistryConfig.IndexConfigs}}{{println .Name}}{{end}}' | grep registry.runnerd)/it/pushed:1
			docker build --push -t $tag . && docker run --rm $tag`, stdout: "built"},
		{name: "failing step", script: prepare + `sed -i '2s/.*/RUN echo the reason; exit 7/' Dockerfile; docker build --progress plain .`, code: 1, stderr: "the reason"},
		{name: "one builder's socket", script: `find / -xdev -type s -name '*build*' | wc -l`, stdout: "1"},

		{name: "foreign syntax line", script: prepare + `sed -i '1i # syntax=evil/frontend:1' Dockerfile; docker build .`, code: 1, stderr: `foreign frontend "evil/frontend:1"`},
		{name: "foreign syntax argument", script: prepare + `docker build --build-arg BUILDKIT_SYNTAX=evil/frontend .`, code: 1, stderr: `foreign frontend "evil/frontend"`},
		{name: "entitlement", script: prepare + `docker buildx build --allow security.insecure .`, code: 1, stderr: `entitlement "security.insecure"`},
		{name: "insecure step", script: prepare + `sed -i 's/^RUN/RUN --security=insecure/' Dockerfile; docker build .`, code: 1, stderr: "security mode INSECURE"},
		{name: "host's network", script: prepare + `docker build --network host .`, code: 1, stderr: "network.host"},
		{name: "cgroup", script: prepare + `docker buildx build --cgroup-parent /x .`, code: 1, stderr: `cgroup "/x"`},
		{name: "usage", script: `buildctl --addr unix:///run/runnerd/buildkit.sock du`, code: 1, stderr: "may not call"},
		{name: "prune", script: `buildctl --addr unix:///run/runnerd/buildkit.sock prune`, code: 1, stderr: "may not call"},
		{name: "history of others", script: `all=$(buildctl --addr unix:///run/runnerd/buildkit.sock debug histories); echo "$all" | grep -c ^COMPLETE || true`, stdout: "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := d.script(c.flags, c.script)
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			if code != c.code || lines[len(lines)-1] != c.stdout || !strings.Contains(stderr, c.stderr) {
				t.Errorf("got exit code %d, want %d\nstdout: %.500q, want %q\nstderr, want %q:\n%.4000s", code, c.code, stdout, c.stdout, c.stderr, stderr)
			}
		})
	}
	// Whoever has the worker's own socket may do what was refused.
	for _, c := range [][]string{{"debug", "histories"}, {"du"}, {"prune"}} {
		args := append([]string{"--addr", "unix://" + d.workerSocket()}, c...)
		out, err := exec.Command("../bin/engines/buildctl", args...).CombinedOutput()
		if err != nil || c[0] == "debug" && !strings.Contains(string(out), "\nCOMPLETE") {
			t.Errorf("%v, on the worker's own socket: %v: %s", c, err, out)
		}
	}
}

// workerSocket is the socket of the daemon's only worker, as the machine sees it.
func (d *daemon) workerSocket() string {
	d.t.Helper()
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		text, _ := os.ReadFile(p)
		groups, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cgroup"))
		if strings.HasPrefix(string(text), "buildkitd\x00") && strings.Contains(string(groups), "/"+d.instance()+"/builder-") {
			return filepath.Join(filepath.Dir(p), "root/run/buildkit/buildkitd.sock")
		}
	}
	d.t.Fatal("there is no worker")
	return ""
}

// TestDockerBuildEnds cancels a job that builds: its build ends, and the worker goes on.
func TestDockerBuildEnds(t *testing.T) {
	d := startDaemon(t, "")
	const script = "mkdir -p /tmp/c && cd /tmp/c && printf 'FROM debian:bookworm-slim\nRUN sleep 4270\n' >Dockerfile && docker build ."
	stdout, stderr, code := d.run("run", "--sandbox", "container/dind", "--name", "builds", "--detach", "--", "sh", "-ec", script)
	if code != 0 {
		t.Fatal(stderr)
	}
	d.awaitProcess("sleep\x004270\x00", true)
	if _, stderr, code := d.run("cancel", strings.TrimSpace(stdout)); code != 0 {
		t.Error(stderr)
	}
	d.await("builds", "finished")
	d.awaitProcess("sleep\x004270\x00", false)
	d.workerSocket()
}

// awaitProcess waits until a command runs in the daemon's sandboxes, or until none does.
func (d *daemon) awaitProcess(cmdline string, runs bool) {
	d.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		found := false
		processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, p := range processes {
			text, _ := os.ReadFile(p)
			groups, _ := os.ReadFile(filepath.Join(filepath.Dir(p), "cgroup"))
			found = found || string(text) == cmdline && strings.Contains(string(groups), d.instance())
		}
		if found == runs {
			return
		}
	}
	d.t.Errorf("%q runs: not %v within a minute", cmdline, runs)
}

// TestDockerBuildWithoutBuilder has a policy that allows no builder.
func TestDockerBuildWithoutBuilder(t *testing.T) {
	d := startDaemon(t, "policy: {max_depth: 2, may: {machine: [container], container: [dind]}}\n")
	_, stderr, code := d.script(nil, "mkdir -p /tmp/c && cd /tmp/c && printf 'FROM scratch\nLABEL a=b\n' >Dockerfile; docker build --builder default . && docker build .")
	if code == 0 || !strings.Contains(stderr, "builder cannot be had") || !strings.Contains(stderr, "denied") || !strings.Contains(stderr, "--builder default") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}
