//go:build integration

package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// pipelineWant is what has to come of one of testdata/pipelines.
type pipelineWant struct {
	Status   string              `json:"status"`
	Branch   string              `json:"branch"`
	Twice    bool                `json:"twice"` // once more, with what the first run has kept
	Jobs     map[string]*jobWant `json:"jobs"`
	Excluded []string            `json:"excluded"`
}

type jobWant struct {
	Status   string   `json:"status"`
	ExitCode int      `json:"exit_code"`
	Reason   string   `json:"reason"`
	Tries    int      `json:"tries"`
	Trace    []string `json:"trace"` // parts of it
}

// TestPipelines runs pipelines as people write them, each a repository, by runnerd exec: through the double of GitLab's
// server, and this daemon as its runner.
func TestPipelines(t *testing.T) {
	d := startDaemon(t, "")
	files, err := filepath.Glob("testdata/pipelines/*.json")
	if err != nil || len(files) < 12 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".json")
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var want pipelineWant
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			dir := repository(t, strings.TrimSuffix(file, ".json"))
			runs := 1
			if want.Twice {
				runs = 2
			}
			for range runs {
				runPipeline(t, d, dir, want)
			}
		})
	}
}

// repository is a copy of a directory with all of it committed.
func repository(t *testing.T, from string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q", "-b", "main"}, {"add", "-A"}, {"commit", "-qm", "All of it"}} {
		git := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=n", "-c", "user.email=a@b"}, args...)...)
		if out, err := git.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
	}
	return dir
}

func runPipeline(t *testing.T, d *daemon, dir string, want pipelineWant) {
	t.Helper()
	begin := time.Now()
	stdout, stderr, code := d.run("exec", filepath.Join(dir, ".gitlab-ci.yml"), "--json", "--verbose")
	var got struct {
		Status string
		Jobs   []struct {
			Name, Status  string
			FailureReason string `json:"failure_reason"`
			ExitCode      int    `json:"exit_code"`
			Tries         int
		}
		Excluded []struct{ Name string }
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatalf("exit code %d: %v: %s%s", code, err, stdout, tail(stderr))
	}
	t.Logf("%s in %s", got.Status, time.Since(begin).Round(10*time.Millisecond))
	wantCode := 0
	if want.Status != "success" {
		wantCode = 1
	}
	if got.Status != want.Status || code != wantCode {
		t.Errorf("the pipeline is %s, exit code %d; want %s, %d", got.Status, code, want.Status, wantCode)
	}
	if strings.Contains(stderr, "broke GitLab's protocol") {
		t.Error("the daemon broke GitLab's protocol")
	}
	for _, j := range got.Jobs {
		w := want.Jobs[j.Name]
		if w == nil {
			t.Errorf("job %s is not expected", j.Name)
			continue
		}
		delete(want.Jobs, j.Name)
		if j.Status != w.Status || j.ExitCode != w.ExitCode || w.Reason != "" && j.FailureReason != w.Reason || w.Tries > 0 && j.Tries != w.Tries {
			t.Errorf("job %s: %+v, want %+v", j.Name, j, *w)
		}
		trace := traceOf(stderr, j.Name)
		for _, part := range w.Trace {
			if !strings.Contains(trace, part) {
				t.Errorf("job %s: the trace has no %q", j.Name, part)
			}
		}
		defer func() { want.Jobs[j.Name] = w }() // for the next run
	}
	for name := range want.Jobs {
		t.Errorf("there is no job %s", name)
	}
	for _, name := range want.Excluded {
		if !slices.ContainsFunc(got.Excluded, func(e struct{ Name string }) bool { return e.Name == name }) {
			t.Errorf("job %s is not excluded", name)
		}
	}
	if t.Failed() {
		t.Log(tail(stderr))
	}
}

// traceOf are the lines of a job in the output of exec.
func traceOf(output, job string) string {
	prefix := regexp.MustCompile(`^` + regexp.QuoteMeta(job) + `(?: again)? *\| `)
	var b strings.Builder
	for line := range strings.Lines(output) {
		if p := prefix.FindString(line); p != "" {
			b.WriteString(line[len(p):])
		}
	}
	return b.String()
}

// tail is the end of an output.
func tail(text string) string {
	const enough = 8000
	return text[max(0, len(text)-enough):]
}

// TestExecInterrupted cancels a pipeline by Ctrl-C: its after_script still runs, and nothing of it stays in the daemon.
func TestExecInterrupted(t *testing.T) {
	d := startDaemon(t, "")
	dir := t.TempDir()
	file := filepath.Join(dir, ".gitlab-ci.yml")
	text := "long: {image: 'debian:bookworm-slim', script: [echo started, sleep 300], after_script: ['echo after: $CI_JOB_STATUS']}\nnext: {stage: deploy, script: echo}\n"
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	stdout, stderr, code := d.runContext(t.Context(), func(p *os.Process) {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if all := d.jobs(); len(all) > 0 {
				if log, _, _ := d.run("logs", all[0].ID); strings.Contains(log, "started") {
					break
				}
			}
		}
		_ = p.Signal(os.Interrupt)
	}, "exec", file)
	for _, want := range []string{"long | started", "long | after: canceled", "Pipeline canceled in"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("the output has no %q", want)
		}
	}
	if code != 130 || t.Failed() {
		t.Errorf("exit code %d: %s%s", code, stdout, stderr)
	}
	if out, _, _ := d.run("runners", "--json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("the runner is still there: %s", out)
	}
}
