package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// execOutcome is what has become of a pipeline.
type execOutcome struct {
	Status   string            `json:"status"` // as GitLab has it: success, failed, canceled, skipped; manual: it waits for a manual job
	Name     string            `json:"name,omitempty"`
	Ref      string            `json:"ref"`
	SHA      string            `json:"sha"`
	Source   string            `json:"source"`
	Seconds  float64           `json:"seconds"`
	Jobs     []execJob         `json:"jobs"`
	Excluded []ciyaml.Excluded `json:"excluded,omitempty"`
	Warnings []string          `json:"warnings,omitempty"`

	cancelled bool
}

type execJob struct {
	Name          string         `json:"name"`
	Stage         string         `json:"stage"`
	Status        string         `json:"status"`
	FailureReason string         `json:"failure_reason,omitempty"`
	ExitCode      int            `json:"exit_code,omitempty"`
	Tries         int            `json:"tries"`
	Seconds       float64        `json:"seconds"` // of the last try
	Artifacts     []execArtifact `json:"artifacts,omitempty"`
}

type execArtifact struct {
	Type  string `json:"type"`
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// execResult tells the end of a pipeline, and gives the exit code as an error.
func (a *app) execResult(o execOutcome, f execFlags) error {
	var err error
	if f.asJSON {
		err = writeJSON(a.stdout, o)
	} else {
		err = a.execSummary(o)
	}
	switch {
	case err != nil:
		return err
	case o.cancelled && o.Status != "success":
		return &exitError{code: exitCancelled}
	case o.Status == "success", o.Status == "manual" && !o.failed():
		return nil
	}
	return &exitError{code: exitFailed}
}

func (o *execOutcome) failed() bool {
	for _, j := range o.Jobs {
		if j.Status == "failed" {
			return true
		}
	}
	return false
}

func (a *app) execSummary(o execOutcome) error {
	rows := [][]string{{"STAGE", "JOB", "STATUS", "TOOK", ""}}
	waits := false
	for _, j := range o.Jobs {
		waits = waits || j.Status == "manual"
		took := ""
		if j.Seconds > 0 {
			took = roundTime(time.Duration(j.Seconds * float64(time.Second)))
		}
		rows = append(rows, []string{j.Stage, short(j.Name, 60), paint(a.stdout, statusColour(j.Status), j.Status), took, j.detail()})
	}
	if _, err := fmt.Fprintln(a.stdout); err != nil {
		return err
	}
	if err := writeTable(a.stdout, rows); err != nil {
		return err
	}
	if waits {
		a.say(false, "manual jobs did not run: name them, or use --manual")
	}
	_, err := fmt.Fprintf(a.stdout, "\nPipeline %s in %s\n", paint(a.stdout, statusColour(o.Status), o.Status), roundTime(time.Duration(o.Seconds*float64(time.Second))))
	return err
}

// detail says why a job failed, how often it ran, and what it has left.
func (j execJob) detail() string {
	var parts []string
	switch {
	case j.ExitCode != 0:
		parts = append(parts, fmt.Sprintf("exit code %d", j.ExitCode))
	case j.FailureReason != "":
		parts = append(parts, strings.ReplaceAll(j.FailureReason, "_", " "))
	}
	if j.Tries > 1 {
		parts = append(parts, fmt.Sprintf("%d tries", j.Tries))
	}
	for _, artifact := range j.Artifacts {
		parts = append(parts, artifact.Type)
	}
	return strings.Join(parts, ", ")
}

func statusColour(status string) string {
	switch status {
	case "success":
		return green
	case "failed":
		return red
	}
	return yellow
}
