package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/api"
)

func (a *app) revokeCommand() *cobra.Command {
	var asJSON bool
	var r api.Revoke
	cmd := &cobra.Command{
		Use:   "revoke ENTRY",
		Short: "Remove a result from the cache, and list the jobs that have used it",
		Long: `Remove the result of a build's step, and all that was built on it, from the builders of its project, trusted and
untrusted: the next build runs the step again. ENTRY is JOB:STEP as 'runnerd cache explain JOB' numbers the steps, or
the step's vertex or key from its --json; or the id of an entry of another store, as 'runnerd cache du' shows it.

The list are the jobs that have run or read it, with the images that they made, which are not removed.`,
		Args: checkArgs(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			r.Entry = args[0]
			revoked, err := c.Revoke(cmd.Context(), r)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, revoked)
			}
			return writeRevoked(a.stdout, revoked)
		},
	}
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "only list what would be removed, and who has used it")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func writeRevoked(w io.Writer, r api.Revoked) error {
	bytes := int64(0)
	for _, record := range r.Removed {
		bytes += record.Bytes
	}
	did := "removed"
	if r.DryRun {
		did = "would remove"
	}
	what := r.Step
	if what == "" {
		what = r.Entry
	}
	if _, err := fmt.Fprintf(w, "%s %s and what was built on it: %d records, %.1f MiB\n", did, printable(what), len(r.Removed), float64(bytes)/(1<<20)); err != nil {
		return err
	}
	if len(r.Users) == 0 {
		return nil
	}
	rows := [][]string{{"JOB", "USE", "TIME", "SCOPE", "TARGET", "DIGEST"}}
	for _, u := range r.Users {
		rows = append(rows, []string{u.Job, useOf(u.Wrote), u.At.Local().Format(time.DateTime), short(u.Scope.String(), 60), short(dash(u.Target), 40), dash(u.Digest)})
	}
	_, _ = fmt.Fprintln(w)
	return writeTable(w, rows)
}
