package main

import (
	"github.com/spf13/cobra"
)

func (a *app) eventsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "events JOB",
		Short:             "List the changes of a job's state",
		Long:              "List the changes of a job's state, with their times and how long each state took. A job may be named by the beginning of its id.",
		Args:              checkArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeJobs(false, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			id, err := c.Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			events, err := c.Events(cmd.Context(), id)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, events)
			}
			rows := [][]string{{"TIME", "STATE", "TOOK", "DETAIL"}}
			for i, e := range events {
				took := ""
				if i+1 < len(events) {
					took = roundTime(events[i+1].Time.Sub(e.Time))
				}
				rows = append(rows, []string{e.Time.Local().Format("2006-01-02 15:04:05.000"), string(e.State), took, short(e.Detail, 300)})
			}
			return writeTable(a.stdout, rows)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
