//go:build integration

package integration

import (
	"strings"
	"testing"
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
