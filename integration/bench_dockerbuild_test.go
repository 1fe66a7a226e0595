//go:build integration && bench

package integration

import (
	"context"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/measure"
)

const (
	// buildJobs is how many jobs with an engine are compared, and buildsInJob how many builds each does, of which
	// the median counts.
	buildJobs   = 10
	buildsInJob = 5
)

// timedBuilds builds an image once, and then as often as $1 says, and prints how long each of these took, in ns.
const timedBuilds = `mkdir -p "$2" && cd "$2" && cat >Dockerfile
docker build --quiet --tag bench:1 . >/dev/null
i=0
while [ $i -lt $1 ]; do
	began=$(date +%s%N)
	docker build --quiet --tag bench:1 . >/dev/null
	ended=$(date +%s%N)
	echo $((ended - began))
	i=$((i + 1))
done
docker run --rm bench:1 test -e /made`

// benchDockerBuild is about "docker build" in a job that has a Docker Engine, whoever builds it there, with the
// engine started and the image built before: all of it is cached.
func benchDockerBuild(t *testing.T) {
	d := startDaemon(t, "")
	bare := startOnlineDockerd(t)
	bare.load(debian)
	for _, c := range []struct{ what, dockerfile string }{
		{"docker build in a job, cached, small image", "FROM debian:bookworm-slim\nRUN echo made >/made\nRUN echo more >/more\n"},
		{"docker build in a job, cached, 150 MB", "FROM debian:bookworm-slim\nRUN head -c 150000000 /dev/urandom >/made\nRUN echo more >/more\n"},
	} {
		ours := func() time.Duration {
			script := "cat <<'END' | sh -euc '" + timedBuilds + "' job " + strconv.Itoa(buildsInJob) + " /workspace/image\n" + c.dockerfile + "END\n"
			return medianOf(t, d.command("run", "--sandbox", "container/dind", "--memory", "2GiB", "--", "sh", "-euc", script))
		}
		peer := func() time.Duration {
			cmd := exec.CommandContext(context.Background(), "sh", "-euc", timedBuilds, "job", strconv.Itoa(buildsInJob), bare.dir+"/image")
			cmd.Env = append(bare.docker().Env, "DOCKER_HOST=unix://"+bare.socket())
			cmd.Env[0] = "PATH=" + engineBinary(t, ".") + ":/usr/bin:/bin"
			cmd.Stdin = strings.NewReader(c.dockerfile)
			return medianOf(t, cmd)
		}
		compare(t, c.what+" / bare engine", buildJobs, ours, peer, 1.2)
	}
}

// medianOf runs timedBuilds and returns the median of what it prints.
func medianOf(t *testing.T, cmd *exec.Cmd) time.Duration {
	t.Helper()
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err, errs.String())
	}
	var times []time.Duration
	for _, field := range strings.Fields(string(out)) {
		ns, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			t.Fatalf("%q is no time: %s", out, errs.String())
		}
		times = append(times, time.Duration(ns))
	}
	if len(times) != buildsInJob {
		t.Fatalf("%d times, want %d: %s", len(times), buildsInJob, errs.String())
	}
	return measure.Median(times)
}
