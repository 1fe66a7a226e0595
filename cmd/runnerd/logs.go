package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

func (a *app) logsCommand() *cobra.Command {
	var follow, times bool
	cmd := &cobra.Command{
		Use:               "logs [-f] JOB",
		Short:             "Print a job's log",
		Long:              "Print a job's log, its standard output and error to ours. A job may be named by the beginning of its id.",
		Args:              checkArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeJobs(false, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			id, err := c.Resolve(ctx, args[0])
			if err != nil {
				return err
			}
			job, err := c.Job(ctx, id)
			if err != nil {
				return err
			}
			if job.Kind == api.KindBuild {
				d := startDisplay(ctx, a.stdout, "plain")
				err := c.Log(ctx, id, follow, func(f api.Frame) error { d.frame("", id, f); return nil })
				d.end()
				return err
			}
			return c.Log(ctx, id, follow, func(f api.Frame) error { return a.writeFrame(f, times) })
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the job is finished")
	cmd.Flags().BoolVarP(&times, "timestamps", "T", false, "print when each piece was written")
	return cmd
}

func (a *app) writeFrame(f api.Frame, times bool) error {
	w, prefix := a.stdout, ""
	switch f.Stream() {
	case runner.Stderr:
		w = a.stderr
	case runner.Notice:
		w, prefix = a.stderr, "runnerd: "
	case runner.Progress:
		return nil
	}
	if times {
		prefix = f.Time.UTC().Format("2006-01-02T15:04:05.000Z ") + prefix
	}
	if prefix != "" {
		if _, err := io.WriteString(w, prefix); err != nil {
			return err
		}
	}
	if _, err := w.Write(f.Data); err != nil {
		return &exitError{exitErrored, fmt.Errorf("write the log: %w", err)}
	}
	return nil
}
