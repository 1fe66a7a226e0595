//go:build integration && bench

package integration

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// stamp is a line of a script that writes the time down, in ns since the epoch.
const stamp = `echo "stamp $(date +%s%N)"`

// stamped finds a stamp, in a trace with a time before each line or without.
var stamped = regexp.MustCompile(`\bstamp (\d{19})\b`)

// stamps are the times that a trace has.
func stamps(t *testing.T, trace string) (times []time.Time) {
	t.Helper()
	for _, m := range stamped.FindAllStringSubmatch(trace, -1) {
		ns, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		times = append(times, time.Unix(0, ns))
	}
	return times
}

// distribution prints the quantiles of what was measured, and whether the median keeps its bound; 0: it has none.
func distribution(what string, times []time.Duration, goal time.Duration) {
	aim := ""
	if goal > 0 {
		aim = "<= " + fmt.Sprint(goal.Milliseconds()) + " ms"
	}
	absolute(what+", p50", millis(measure.Median(times)), aim, measure.Median(times) <= goal)
	fmt.Printf("%-52s p10 %s, p90 %s, p99 %s, max %s (n=%d)\n", "", millis(measure.Quantile(times, 0.1)), millis(measure.Quantile(times, 0.9)),
		millis(measure.Quantile(times, 0.99)), millis(measure.Quantile(times, 1)), len(times))
}

// benchGitLab measures the jobs of a GitLab, with the double's clock: offered, script runs, first output, final state.
func benchGitLab(t *testing.T) {
	t.Run("trivial", benchGitLabTrivial)
	for _, concurrent := range []int{4, 8, 20} {
		t.Run(fmt.Sprint(concurrent, " at once"), func(t *testing.T) { benchGitLabThroughput(t, concurrent) })
	}
	t.Run("dind", benchGitLabDinD)
	t.Run("memory", benchGitLabMemory)
}

// benchGitLabTrivial offers one job after the other, with and without a repository to fetch, and with and without the
// time to replace the last job's sandbox.
func benchGitLabTrivial(t *testing.T) {
	d := startDaemon(t, "spare: {size: 2}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 50 * time.Second})
	d.register(server)
	repository := files(t, ".gitlab-ci.yml", "job:\n  image: "+debian+"\n  script:\n    - '"+stamp+"'\n")
	trivial := func() int64 { return server.Offer(script(debian, stamp)).ID }
	clone := func() int64 {
		p, err := server.Run(t.Context(), gitlabtest.RunOptions{Dir: repository})
		if err != nil {
			t.Fatal(err)
		}
		return p.Jobs[0]
	}
	for _, kind := range []struct {
		what          string
		offer         func() int64
		pause         time.Duration
		script, final time.Duration // the goals
	}{
		{"trivial job", trivial, time.Second, 120 * time.Millisecond, 300 * time.Millisecond},
		{"job with a clone", clone, time.Second, 0, 0},
		{"trivial job after another", trivial, 0, 0, 0},
	} {
		var begun, output, final []time.Duration
		for i := range pairs + 1 {
			time.Sleep(kind.pause)
			j := ended(t, server, kind.offer())
			trace := gitlabTrace(t, server, j.ID)
			at := stamps(t, trace)
			if j.Status != gitlabtest.Success || len(at) != 1 {
				t.Fatalf("%s %s\n%s", j.Status, j.FailureReason, trace)
			}
			if i == 0 { // the image is unpacked
				continue
			}
			begun = append(begun, at[0].Sub(j.Clock.Offered))
			output = append(output, j.Clock.FirstOutput.Sub(j.Clock.Offered))
			final = append(final, j.Clock.Finished.Sub(j.Clock.Offered))
		}
		distribution(kind.what+": offered to script", begun, kind.script)
		distribution(kind.what+": offered to first output", output, 0)
		distribution(kind.what+": offered to final state", final, kind.final)
	}
}

// benchGitLabThroughput offers 200 trivial jobs together to a runner that runs so many at once.
func benchGitLabThroughput(t *testing.T, concurrent int) {
	const jobs = 200
	d := startDaemon(t, "capacity: {cpu: 40}\nspare: {size: 4}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 50 * time.Second})
	d.register(server, "--concurrent", fmt.Sprint(concurrent))
	ended(t, server, server.Offer(script(debian, "true")).ID)
	start := time.Now()
	var ids []int64
	for range jobs {
		ids = append(ids, server.Offer(script(debian, "true")).ID)
	}
	for _, id := range ids {
		if j := ended(t, server, id); j.Status != gitlabtest.Success {
			t.Fatalf("%s %s\n%s", j.Status, j.FailureReason, gitlabTrace(t, server, id))
		}
	}
	rate := jobs / time.Since(start).Seconds()
	absolute(fmt.Sprintf("%d trivial jobs, %d at once", jobs, concurrent), fmt.Sprintf("%.1f /s", rate), ">= 12 /s", rate >= 12)
}

// benchGitLabDinD builds an image of three steps with docker:dind, in a scope that has built it before and in new ones.
func benchGitLabDinD(t *testing.T) {
	d := startDaemon(t, "spare: {size: 1}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 50 * time.Second})
	d.register(server)
	build := func(project string) (ready, built, final time.Duration) {
		t.Helper()
		j := script("docker:27",
			"docker version >/dev/null", stamp,
			`printf 'FROM `+debian+`\nRUN echo one >/one\nRUN echo two >/two\nRUN cat /one /two >/three\n' >Dockerfile`,
			"docker build -q -t built .", "docker image inspect built >/dev/null", stamp)
		j.JobInfo.ProjectFullPath = project
		j.Services = []spec.Image{{Name: "docker:27-dind", Alias: "docker"}}
		yes := true
		j.GitInfo.Protected = &yes
		end := ended(t, server, server.Offer(j).ID)
		trace := gitlabTrace(t, server, end.ID)
		at := stamps(t, trace)
		if end.Status != gitlabtest.Success || len(at) != 2 {
			t.Fatalf("%s %s\n%s", end.Status, end.FailureReason, trace)
		}
		return at[0].Sub(end.Clock.Offered), at[1].Sub(end.Clock.Offered), end.Clock.Finished.Sub(end.Clock.Offered)
	}
	build("warm/project")
	var ready, warm, cold, final []time.Duration
	for i := range 10 {
		time.Sleep(2 * time.Second)
		_, built, _ := build(fmt.Sprint("cold/project-", i))
		cold = append(cold, built)
	}
	for range pairs {
		time.Sleep(2 * time.Second) // not beside its own refill
		r, w, f := build("warm/project")
		ready, warm, final = append(ready, r), append(warm, w), append(final, f)
	}
	distribution("docker:dind: offered to docker version", ready, 0)
	distribution("docker:dind: offered to built, cold scope", cold, time.Second)
	distribution("docker:dind: offered to built, warm scope", warm, 600*time.Millisecond)
	distribution("docker:dind: offered to final state, warm scope", final, 0)
}

// benchGitLabMemory is what the daemon itself has in memory with jobs that only sleep.
func benchGitLabMemory(t *testing.T) {
	d := startDaemon(t, "capacity: {cpu: 200, memory: 200GiB, jobs: 200}\nspare: {keep: 0s}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 50 * time.Second})
	d.register(server, "--cpu", "100m", "--memory", "64MiB")
	offered := 0
	for _, live := range []int{0, 8, 100} {
		for ; offered < live; offered++ {
			server.Offer(script(debian, "sleep 4280"))
		}
		for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			running := 0
			for _, j := range server.Jobs() {
				if trace, err := server.Trace(j.ID); err == nil && strings.Contains(string(trace), "$ sleep") {
					running++
				}
			}
			if running >= live {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d of %d jobs run", running, live)
			}
		}
		rss := float64(procField(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid), "VmRSS:")) / 1024
		goal := ""
		if live == 100 {
			goal = "<= 60 MB"
		}
		absolute(fmt.Sprintf("memory of the daemon, %d live jobs", live), fmt.Sprintf("%.1f MiB", rss), goal, rss*1.048576 <= 60)
	}
}
