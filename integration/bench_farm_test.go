//go:build integration && bench

package integration

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// farmTargets are the 20 images: those of examples/farm that do not fail on purpose, and those of testdata/farm.
var farmTargets = []string{
	"service-api", "service-worker", "service-gateway", "service-api-debug", "service-worker-debug",
	"web", "web-test", "wordcount", "toolbox", "docs",
	"platform-ingest", "platform-query", "platform-test", "storefront", "site", "site-server", "squeeze", "report", "backup", "certs",
}

const (
	// coldRounds is how often the farm is built where that takes minutes.
	coldRounds = 2
	// dindJobs is how many privileged jobs run at once: two for each of the two processors, since they wait
	// for the network half of the time.
	dindJobs = 4
)

// farmFiles are the bake files of newFarm.
var farmFiles = []string{"docker-bake.hcl", "more.hcl"}

// newFarm copies the farm together into one directory. Its images are called name/…: they belong to who pushes them first.
func newFarm(t *testing.T, name string) string {
	farm := filepath.Join(scratchDir(t), name)
	for _, args := range [][]string{
		{"cp", "-r", "../examples/farm", farm},
		{"cp", "-r", "testdata/farm/.", farm},
		// The peers have no registry that holds the frontend image; the built-in one is the same.
		{"sed", "-i", "/^# syntax=/d", filepath.Join(farm, "services/Dockerfile")},
		{"sed", "-i", "s#/farm/#/" + name + "/#", filepath.Join(farm, farmFiles[0]), filepath.Join(farm, farmFiles[1])},
	} {
		timed(t, exec.Command(args[0], args[1:]...))
	}
	return farm
}

// benchFarm builds 20 real images and pushes them, in four ways: (a) each target as a job of ours, in a scope that
// has built them before; (b) by hand with buildx on one buildkitd that has built them before; (c) each in a privileged
// Docker Engine that a job starts and throws away, as CI users do today; (d) as (a) in a new scope, whose worker
// has to be started too; and as that in the first untrusted scope of the project, which stands on what the project trusts.
// The time between the rounds is longer than an idle worker lives. Base images are in a registry on the machine for all; packages come over the network.
func benchFarm(t *testing.T) {
	d := startDaemon(t, "builder: {idle: 1m}\n")
	registry := fmt.Sprintf("127.0.0.1:%d", host.port)
	build := func(project, farm string, flags ...string) time.Duration {
		args := append([]string{"build", "--push", "--progress", "quiet", "--project", project, "--var", "VERSION=bench", farm}, flags...)
		for _, file := range farmFiles {
			args = append(args, "--file", filepath.Join(farm, file))
		}
		return timed(t, d.command(append(args, farmTargets...)...))
	}
	newScope := func(round int) time.Duration {
		name := fmt.Sprintf("farm-%d", round)
		return build(name, newFarm(t, name))
	}
	farm, proposal := newFarm(t, "farm"), newFarm(t, "proposal")
	warm := func() time.Duration { return build("farm", farm) }
	// The daemon is not new where the scope is: it has unpacked the builder's image.
	timed(t, d.command("build", "--progress", "quiet", files(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")))
	cold := []time.Duration{warm()}
	compareFarmBuildx(t, farm, registry, warm)

	engines := startOnlineDockerd(t)
	engines.load(engine)
	var again, untrusted, privileged []time.Duration
	for round := range coldRounds {
		if round > 0 {
			cold = append(cold, newScope(round))
		}
		again = append(again, warm())
		untrusted = append(untrusted, build("farm", proposal, "--untrusted"))
		privileged = append(privileged, engines.farmJobs(farm))
	}
	printPairs("the farm: warm scope / privileged dind, 4 jobs at once", again, privileged, 1.0/10)
	printPairs("the farm: new scope / privileged dind, 4 jobs at once", cold, privileged, 1.0/5)
	printPairs("the farm: new untrusted scope of a warm project / privileged dind", untrusted, privileged, 1.0/5)
	printPairs("the farm: new scope / warm scope", cold, again, 0)
}

// compareFarmBuildx is (a) and (b).
func compareFarmBuildx(t *testing.T, farm, registry string, warm measurement) {
	b, _ := startBuildkitd(t, registry)
	defer b.stop()
	buildx := func(args ...string) *exec.Cmd {
		cmd := exec.Command(engineBinary(t, "docker-buildx"), args...)
		cmd.Dir = farm
		cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=" + b.dir, "BUILDX_CONFIG=" + b.dir + "/buildx", "REGISTRY=" + registry, "VERSION=bench"}
		return cmd
	}
	timed(t, buildx("create", "--name", "bench", "--driver", "remote", b.address()))
	peer := func() time.Duration { return timed(t, buildx(bakeArgs("--builder", "bench")...)) }
	peer()
	compare(t, "the farm of 20, warm, pushed: buildx / itself (A/A)", 10, peer, peer, 0)
	compare(t, "the farm of 20, warm, pushed: runnerd / buildx", pairs, warm, peer, 1.05)
}

// bakeArgs are buildx's, for all targets.
func bakeArgs(args ...string) []string {
	args = append([]string{"bake", "--push", "--progress", "quiet", "--provenance=false", "--sbom=false"}, args...)
	for _, file := range farmFiles {
		args = append(args, "--file", file)
	}
	return append(args, farmTargets...)
}

// farmJob is what a job's script does where CI gives it nothing but privileges.
const farmJob = `dockerd --log-level=warn --config-file=/dev/null --userland-proxy=false "${@:2}" >/dockerd.log 2>&1 &
until docker version >/dev/null 2>&1; do
	kill -0 $! || { cat /dockerd.log >&2; exit 1; }
	sleep 0.1
done
cd /farm
docker buildx bake --push --progress quiet --provenance=false --sbom=false FILES "$1"`

// farmJobs builds each target in a container of its own.
func (d *bareDockerd) farmJobs(farm string) time.Duration {
	d.t.Helper()
	targets := make(chan string, len(farmTargets))
	for _, target := range farmTargets {
		targets <- target
	}
	script := strings.ReplaceAll(farmJob, "FILES", "--file "+strings.Join(farmFiles, " --file "))
	return inParallel(d.t, dindJobs, len(farmTargets), func() error {
		target := <-targets
		args := append([]string{
			"run", "--rm", "--privileged", "--volume", "/var/lib/docker", "--volume", farm + ":/farm:ro",
			"--env", "REGISTRY=" + benchRegistry(), "--env", "VERSION=bench",
			engine, "bash", "-euc", script, "job", target, fmt.Sprintf("--mtu=%d", host.container.MTU()),
		}, mirrorArgs()...)
		if out, err := d.docker(args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", target, err, out[max(0, len(out)-2000):])
		}
		return nil
	})
}
