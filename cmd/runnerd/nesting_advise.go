package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/advise"
	"github.com/runnerd/runnerd/runner/api"
)

// maxAdviseJobs is how many jobs are asked for: the most that the daemon gives at once.
const maxAdviseJobs = 10_000

func (a *app) nestingAdviseCommand() *cobra.Command {
	var asJSON bool
	var f api.Filter
	since := 7 * 24 * time.Hour
	cmd := &cobra.Command{
		Use:   "advise",
		Short: "Tell from finished jobs what to change, and the seconds that it would have saved",
		Long: `Read finished jobs, a week of them unless --since says otherwise, and tell what to change: engines that nobody uses,
services that run in an engine and need none, images that are pulled again and again, sandboxes that jobs wait for, memory
that they wait for and do not use. With each comes how many seconds it would have saved. How far back there are jobs is
configured (logs.keep, logs.keep_jobs).`,
		Example: `  runnerd nesting advise
  runnerd nesting advise --since 24h --project team/app --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if since <= 0 {
				return usage(errors.New("--since must be a time, such as 24h"))
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			f.State, f.Limit = string(runner.Finished), maxAdviseJobs
			jobs, err := c.Jobs(cmd.Context(), f)
			if err != nil {
				return err
			}
			report := advise.About(advisable(jobs), time.Now().Add(-since))
			if asJSON {
				return writeJSON(a.stdout, report)
			}
			return writeAdvice(a.stdout, report, len(jobs) == maxAdviseJobs)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.DurationVar(&since, "since", since, "read the jobs that ended within this `TIME`")
	flags.StringVar(&f.Project, "project", "", "only the jobs of this `PROJECT`")
	return cmd
}

// advisable are jobs as package advise takes them. Whether a job's code is trusted makes no difference there.
func advisable(jobs []api.Job) []advise.Job {
	var all []advise.Job
	for _, j := range jobs {
		if j.Result == nil {
			continue
		}
		r := j.Result
		all = append(all, advise.Job{
			Project: strings.TrimPrefix(j.Scope.Forge+"/"+j.Scope.Project, "/"), Name: j.Name, Nesting: j.Sandbox, Image: j.Image, Limits: j.Limits, Ended: j.Finished,
			Result: runner.Result{Outcome: r.Outcome, Reason: r.Reason, Usage: r.Usage, Times: r.Times},
		})
	}
	return all
}

func writeAdvice(w io.Writer, r advise.Report, truncated bool) error {
	line := fmt.Sprintf("%d jobs since %s", r.Jobs, r.Since.Local().Format(time.DateTime))
	if !r.Earliest.IsZero() {
		line += fmt.Sprintf(", the first ended %s", r.Earliest.Local().Format(time.DateTime))
	}
	if truncated {
		line += fmt.Sprintf("; no more than the newest %d are read", maxAdviseJobs)
	}
	if _, err := fmt.Fprintln(w, line); err != nil {
		return err
	}
	if r.Verdict != "" {
		_, err := fmt.Fprintln(w, r.Verdict)
		return err
	}
	for i, a := range r.Advice {
		seconds := time.Duration(a.SavedSeconds * float64(time.Second))
		_, err := fmt.Fprintf(w, "\n%d. saves %s  %s  %s\n   %s\n", i+1, roundTime(seconds), short(cmp.Or(a.Project, "all projects"), 60), a.Kind, short(a.Text, 1000))
		if err != nil {
			return err
		}
	}
	return nil
}
