package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func (a *app) cancelCommand() *cobra.Command {
	var reason string
	cmd := &cobra.Command{
		Use:               "cancel JOB...",
		Short:             "Cancel jobs",
		Long:              "Cancel jobs. A job may be named by the beginning of its id.",
		Args:              checkArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeJobs(true, true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var errs []error
			for _, arg := range args {
				id, err := c.Resolve(cmd.Context(), arg)
				if err == nil {
					_, err = c.Cancel(cmd.Context(), id, reason)
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				_, _ = fmt.Fprintln(a.stdout, id)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`SENTENCE` that says why")
	return cmd
}
