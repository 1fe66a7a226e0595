//go:build integration

package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// startGitLab starts the double of a GitLab. At the end no runner may have breached the protocol.
func startGitLab(t *testing.T, o gitlabtest.Options) *gitlabtest.Server {
	t.Helper()
	server, err := gitlabtest.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, v := range server.Violations() {
			t.Errorf("breach of the protocol: %s", v)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// register makes the daemon a runner of server, as a user does.
func (d *daemon) register(server *gitlabtest.Server, args ...string) {
	d.t.Helper()
	file := filepath.Join(d.t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(server.AddRunner()+"\n"), 0o600); err != nil {
		d.t.Fatal(err)
	}
	args = append([]string{"register", "gitlab", "--url", server.URL, "--token-file", file}, args...)
	if _, stderr, code := d.run(args...); code != 0 {
		d.t.Fatalf("register: exit code %d: %s", code, stderr)
	}
	// The daemon is stopped before the server is closed, so that no request meets a server that is gone.
	d.t.Cleanup(func() { d.stop(syscall.SIGTERM) })
}

// script is a job with one step and nothing to fetch.
func script(image string, lines ...string) spec.Job {
	return spec.Job{
		JobInfo:   spec.JobInfo{Name: "job", Stage: "test", ProjectFullPath: "group/project", ProjectID: 1, PipelineID: 1},
		GitInfo:   spec.GitInfo{Ref: "main", RefType: "branch"},
		Variables: []spec.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}},
		Image:     &spec.Image{Name: image},
		Steps:     []spec.Step{{Name: spec.StepScript, Script: lines, When: "on_success", Timeout: 600}},
		Features:  spec.JobFeatures{TraceSections: true},
	}
}

// ended waits for a job's final state.
func ended(t *testing.T, server *gitlabtest.Server, id int64) gitlabtest.Job {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	j, err := server.Wait(ctx, id, gitlabtest.Success, gitlabtest.Failed, gitlabtest.Canceled, gitlabtest.Skipped)
	if err != nil {
		trace, _ := server.Trace(id)
		t.Fatalf("job %d: %v\n%s", id, err, trace)
	}
	return j
}

func gitlabTrace(t *testing.T, server *gitlabtest.Server, id int64) string {
	t.Helper()
	trace, err := server.Trace(id)
	if err != nil {
		t.Fatal(err)
	}
	return string(trace)
}

// TestGitLabTraces has 100 jobs write, 20 at once, and compares what arrived, byte by byte.
func TestGitLabTraces(t *testing.T) {
	const jobs = 100
	d := startDaemon(t, "capacity: {cpu: 40}\nspare: {size: 4}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 5 * time.Second})
	d.register(server, "--concurrent", "20")
	ids := make([]int64, jobs)
	for i := range ids {
		j := script(debian, fmt.Sprintf(`for i in $(seq 1000); do echo "%d.$i $PASSWORD $(( i * %d ))"; done; echo end`, i, i+1))
		j.Variables = append(j.Variables, spec.Variable{Key: "PASSWORD", Value: fmt.Sprintf("hidden-%d-word", i), Masked: true})
		ids[i] = server.Offer(j).ID
	}
	for i, id := range ids {
		if j := ended(t, server, id); j.Status != gitlabtest.Success || j.Acceptances != 1 {
			t.Fatalf("job %d: %s %s, accepted %d times\n%s", i, j.Status, j.FailureReason, j.Acceptances, gitlabTrace(t, server, id))
		}
		want := sha256.New()
		for n := range 1000 {
			fmt.Fprintf(want, "%d.%d [MASKED] %d\n", i, n+1, (n+1)*(i+1))
		}
		trace := gitlabTrace(t, server, id)
		at := strings.Index(trace, fmt.Sprintf("\n%d.1 ", i))
		end := strings.LastIndex(trace, "\nend\n")
		if at < 0 || end < at {
			t.Fatalf("job %d: its output is not in the trace:\n%.2000s", i, trace)
		}
		if got := sha256.Sum256([]byte(trace[at+1 : end+1])); string(got[:]) != string(want.Sum(nil)) {
			t.Errorf("job %d: the trace is not what the script wrote", i)
		}
	}
}

// TestGitLabKilled kills the daemon at 40 moments of jobs' lives. No job is lost, and none is run twice.
func TestGitLabKilled(t *testing.T) {
	const kills = 40
	d := startDaemon(t, "capacity: {cpu: 8}\nspare: {keep: 0s}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second, AckTimeout: 5 * time.Second, StuckTimeout: time.Minute})
	d.register(server, "--concurrent", "2")
	offer := func() int64 {
		return server.Offer(script(debian, "echo begun-$CI_JOB_ID", "sleep 0.3", "echo done-$CI_JOB_ID")).ID
	}
	kill := func() {
		d.stop(syscall.SIGKILL)
		server.Restarted() // the last answers may have been on their way
		d.start()
	}
	var life time.Duration // of the first job after a start; before the first start the image is unpacked
	for range 2 {
		j := ended(t, server, offer())
		life = j.Clock.Finished.Sub(j.Clock.Offered)
		kill()
	}
	var ids []int64
	interrupted := 0
	for i := range kills {
		id := offer()
		ids = append(ids, id)
		time.Sleep(life * 3 / 2 * time.Duration(i) / kills) // from before it is assigned to after its end
		kill()
	}
	for _, id := range ids {
		j, trace := ended(t, server, id), gitlabTrace(t, server, id)
		begun := strings.Count(trace, "\nbegun-")
		switch {
		case j.Acceptances > 1 || begun > 1:
			t.Errorf("job %d was accepted %d times and begun %d times:\n%s", id, j.Acceptances, begun, trace)
		case j.Status == gitlabtest.Success && strings.Count(trace, "\ndone-") == 1:
		case j.Status == gitlabtest.Failed && j.FailureReason == spec.RunnerSystemFailure:
			interrupted++
		default:
			t.Errorf("job %d ended as %s %s:\n%s", id, j.Status, j.FailureReason, trace)
		}
	}
	t.Logf("%d of %d jobs were interrupted, and told to be", interrupted, kills)
	if interrupted == 0 || interrupted == kills {
		t.Errorf("the kills hit %d of %d jobs: the test does not try what it should", interrupted, kills)
	}
}

// TestGitLabOutage has the server go away while a job runs, and while it ends.
func TestGitLabOutage(t *testing.T) {
	d := startDaemon(t, "")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second})
	d.register(server)
	id := server.Offer(script(debian, "echo before", "sleep 4", "echo after")).ID
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := server.Wait(ctx, id, gitlabtest.Running); err != nil {
		t.Fatal(err)
	}
	if err := server.Faults(gitlabtest.Plan{Faults: []gitlabtest.Fault{
		{For: gitlabtest.Duration(6 * time.Second), Status: 503},
		{After: gitlabtest.Duration(6 * time.Second), For: gitlabtest.Duration(4 * time.Second), Drop: gitlabtest.After},
	}}); err != nil {
		t.Fatal(err)
	}
	j := ended(t, server, id)
	if trace := gitlabTrace(t, server, id); j.Status != gitlabtest.Success || !strings.Contains(trace, "\nbefore\n") || !strings.Contains(trace, "\nafter\n") {
		t.Errorf("%s %s\n%s", j.Status, j.FailureReason, trace)
	}
}

// TestGitLabCancel cancels a job that runs: its script ends, its after_script is run, and nothing of it is left.
func TestGitLabCancel(t *testing.T) {
	d := startDaemon(t, "")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second, UpdateInterval: time.Second})
	d.register(server)
	j := script(debian, "echo begun", "sleep 4270")
	j.Steps = append(j.Steps, spec.Step{Name: spec.StepAfterScript, Script: []string{"echo the status is $CI_JOB_STATUS"}, When: "always", Timeout: 60, AllowFailure: true})
	id := server.Offer(j).ID
	for deadline := time.Now().Add(30 * time.Second); !strings.Contains(gitlabTrace(t, server, id), "\nbegun\n"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the job does not begin:\n" + gitlabTrace(t, server, id))
		}
	}
	if err := server.Cancel(id); err != nil {
		t.Fatal(err)
	}
	end := ended(t, server, id)
	if trace := gitlabTrace(t, server, id); end.Status != gitlabtest.Canceled || !strings.Contains(trace, "the status is canceled") {
		t.Errorf("%s %s\n%s", end.Status, end.FailureReason, trace)
	}
}

// TestGitLabSeveral registers one daemon at two forges, with the jobs of both at once, and unregisters one.
func TestGitLabSeveral(t *testing.T) {
	d := startDaemon(t, "capacity: {cpu: 8}\n")
	servers := []*gitlabtest.Server{
		startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second}), startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second}),
	}
	for i, server := range servers {
		d.register(server, "--name", fmt.Sprint("forge-", i))
	}
	var all sync.WaitGroup
	for _, server := range servers {
		for range 5 {
			id := server.Offer(script(debian, "echo here")).ID
			all.Go(func() {
				if j := ended(t, server, id); j.Status != gitlabtest.Success {
					t.Errorf("%s %s\n%s", j.Status, j.FailureReason, gitlabTrace(t, server, id))
				}
			})
		}
	}
	all.Wait()
	stdout, stderr, code := d.run("runners")
	if code != 0 || !strings.Contains(stdout, "forge-0") || !strings.Contains(stdout, "forge-1") {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if _, stderr, code := d.run("unregister", "forge-1"); code != 0 {
		t.Error(stderr)
	}
	if stdout, _, _ := d.run("runners"); strings.Contains(stdout, "forge-1") {
		t.Errorf("still registered:\n%s", stdout)
	}
}

// TestGitLabRunnersScripts registers a runner with commands of its own, and with a limit of its jobs' logs.
func TestGitLabRunnersScripts(t *testing.T) {
	d := startDaemon(t, "")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 5 * time.Second})
	d.register(server, "--output-limit", "8KiB", "--pre-get-sources-script", "echo own 1", "--post-get-sources-script", "echo own 2 $(ls .gitlab-ci.yml)",
		"--pre-build-script", "echo own 3", "--post-build-script", "echo own 5")
	repository := files(t, ".gitlab-ci.yml", "job:\n  image: "+debian+"\n  script: [echo own 4]\n  after_script: [echo own 6]\n")
	p, err := server.Run(t.Context(), gitlabtest.RunOptions{Dir: repository})
	if err != nil {
		t.Fatal(err)
	}
	j := ended(t, server, p.Jobs[0])
	var said []string
	for line := range strings.Lines(gitlabTrace(t, server, j.ID)) {
		if i := strings.Index(line, "own "); i >= 0 && !strings.Contains(line, "$ ") {
			said = append(said, strings.TrimSpace(line[i:]))
		}
	}
	if want := []string{"own 1", "own 2 .gitlab-ci.yml", "own 3", "own 4", "own 5", "own 6"}; j.Status != gitlabtest.Success || !slices.Equal(said, want) {
		t.Errorf("%s: %q, want %q", j.Status, said, want)
	}
	j = ended(t, server, server.Offer(script(debian, "seq 10000")).ID)
	if trace := gitlabTrace(t, server, j.ID); len(trace) > 9<<10 || !strings.Contains(trace, "exceeded limit of 8192 bytes") {
		t.Errorf("%d bytes: %s", len(trace), trace)
	}
}
