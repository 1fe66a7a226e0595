package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// listPipeline shows the jobs of a pipeline, and why others are not in it.
func listPipeline(w io.Writer, p *ciyaml.Pipeline) error {
	rows := [][]string{{"STAGE", "JOB", "WHEN", "IMAGE", "WAITS FOR"}}
	for _, j := range p.Jobs {
		image, waits := "", "the stages before"
		if j.Image != nil {
			image = j.Image.Name
		}
		if j.DAG {
			var names []string
			for _, n := range j.Needs {
				names = append(names, n.Job)
			}
			waits = strings.Join(names, ", ")
		} else if len(p.Before(j)) == 0 {
			waits = ""
		}
		when := j.When
		if j.AllowFailure.Always && j.When != "manual" {
			when += ", may fail"
		}
		rows = append(rows, []string{j.Stage, short(j.Name, 60), when, short(image, 60), short(waits, 200)})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	if len(p.Excluded) == 0 {
		return nil
	}
	rows = [][]string{{"NOT IN IT", "WHY"}}
	for _, e := range p.Excluded {
		rows = append(rows, []string{short(e.Name, 60), short(e.Reason, 200)})
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return writeTable(w, rows)
}

// printScripts shows what jobs would do.
func printScripts(w io.Writer, p *ciyaml.Pipeline) error {
	var b strings.Builder
	line := func(format string, args ...any) {
		for text := range strings.SplitSeq(fmt.Sprintf(format, args...), "\n") {
			b.WriteString(printable(text) + "\n")
		}
	}
	for i, j := range p.Jobs {
		if i > 0 {
			b.WriteString("\n")
		}
		line("# %s (stage %s, %s)", j.Name, j.Stage, j.When)
		if j.Image != nil {
			line("# image: %s", j.Image.Name)
		}
		for _, s := range j.Services {
			line("# service: %s", s.Name)
		}
		for _, c := range j.Cache {
			line("# cache %s: %s", c.Key, strings.Join(c.Paths, ", "))
		}
		if len(j.Dependencies) > 0 {
			line("# artifacts of: %s", strings.Join(j.Dependencies, ", "))
		}
		for _, s := range j.Steps {
			if s.Name != "script" {
				line("# %s", s.Name)
			}
			for _, command := range s.Script {
				line("%s", command)
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
