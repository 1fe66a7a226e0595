package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

// report prints how the jobs have ended and returns what that means for the exit code, given what came of
// fetching their outputs.
func (a *app) report(jobs []api.Job, f buildFlags, fetched fetched) error {
	stdout := a.stdout
	if fetched.stdout {
		stdout = a.stderr
	}
	if fetched.err != nil {
		_, _ = fmt.Fprintf(a.stderr, "runnerd: %v\n", fetched.err)
	}
	rows := [][]string{{"TARGET", "OUTCOME", "CACHED", "TIME", "PEAK MEMORY", "DIGEST", "JOB"}}
	worst, rank, digest := error(nil), 0, "" // the digest of the last one
	for _, j := range jobs {
		var b buildkit.Result
		if j.Result != nil {
			_ = json.Unmarshal(j.Result.Detail, &b)
			digest = b.Digest
			rows = append(rows, []string{j.Name, colourOutcome(stdout, j), fmt.Sprintf("%d/%d", b.Cached, b.Steps), duration(j), memory(j.Result.Usage.MemoryPeak), shownDigest(stdout, b.Digest), j.ID})
		}
		code := buildCode(j.Result)
		if r := map[int]int{exitOK: 0, exitCancelled: 1, exitTimeout: 2, exitRejected: 3, exitFailed: 4, exitOOM: 5, exitErrored: 6}[code]; r > rank {
			worst, rank = &exitError{code: code}, r
		}
		if b.Failed != nil && !showsFailures(f.progress) {
			_, _ = fmt.Fprint(a.stderr, failure(j, len(jobs) > 1, b.Failed))
		}
		if code != exitOK && !f.asJSON {
			why := detailOf(j)
			if b.Failed != nil && j.Result.Reason == "" {
				why = b.Failed.Message
			}
			_, _ = fmt.Fprintf(a.stderr, "runnerd: %s: %s\n", j.Name, short(strings.TrimSpace(stateOf(j)+": "+why), 500))
		}
	}
	if worst == nil && fetched.err != nil {
		worst = &exitError{code: exitErrored}
	}
	if f.asJSON {
		return errors.Join(writeJSON(stdout, jobs), worst)
	}
	if len(jobs) > 1 {
		return errors.Join(writeTable(stdout, rows), worst)
	}
	if worst == nil && digest != "" {
		_, _ = fmt.Fprintln(stdout, digest)
	}
	return worst
}

// failure is the end of what a failed step has written, as docker buildx shows it.
func failure(j api.Job, many bool, f *buildkit.StepError) string {
	step := f.Step
	if many {
		step = prefixed(j.Name, step)
	}
	text := "------\n > " + step + ":\n"
	if f.Log != "" {
		text += strings.TrimSuffix(f.Log, "\n") + "\n"
	}
	return text + "------\n"
}

// buildCode is resultCode, but a step's exit code is not the build's, unless it says that memory ran out.
func buildCode(r *api.Result) int {
	if r != nil && r.Outcome == runner.Failed && r.Reason != runner.ReasonOOM {
		return exitFailed
	}
	return resultCode(r)
}

func colourOutcome(w io.Writer, j api.Job) string {
	colour := red
	switch j.Result.Outcome {
	case runner.Succeeded:
		colour = green
	case runner.Cancelled:
		colour = yellow
	}
	return paint(w, colour, stateOf(j))
}

func memory(bytes int64) string {
	if bytes <= 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
}

// shownDigest is a digest as a table has it: for a terminal the beginning, which is enough to tell it from others.
func shownDigest(w io.Writer, digest string) string {
	const enough = len("sha256:") + 12
	if _, tty := terminal(w); tty && len(digest) > enough {
		digest = digest[:enough]
	}
	return dash(digest)
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
