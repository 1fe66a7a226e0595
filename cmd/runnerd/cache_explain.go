package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/ledger"
)

func (a *app) explainCommand() *cobra.Command {
	var asJSON, files bool
	cmd := &cobra.Command{
		Use:   "explain JOB",
		Short: "Tell why each step of a build was run or not, and who wrote what was in the cache",
		Long: `Tell of each step of a finished build whether the cache had its result, which job of which scope wrote that, and if
it was run, what of all that goes into it has changed since the last build of the same target: the instruction, a
build argument, the base image, local files, or an earlier step. 'runnerd cache revoke JOB:STEP' removes a result.`,
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
				id = args[0] // the ledger remembers jobs longer than the journal
			}
			e, err := c.Explain(cmd.Context(), id)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, e)
			}
			return writeExplanation(a.stdout, e, files)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&files, "files", false, "list all local files that differ")
	return cmd
}

func writeExplanation(w io.Writer, e ledger.Explanation, files bool) error {
	before := "the first build of it here"
	if e.Before != "" {
		before = "compared with job " + e.Before
	}
	if _, err := fmt.Fprintf(w, "job %s of %s, target %s: %s\n\n", e.Job, e.Scope, short(e.Target, 80), before); err != nil {
		return err
	}
	rows := [][]string{{"STEP", "RESULT", "WRITTEN BY", "TIME", "WHAT", "WHY"}}
	for _, l := range e.Steps {
		writer, took := "-", "-"
		if l.Writer != nil {
			writer = fmt.Sprintf("%s of %s, %s", l.Writer.Job, short(l.Writer.Scope.String(), 40), l.Writer.At.Local().Format(time.DateTime))
		} else if l.Result == ledger.Hit {
			writer = "not known"
		}
		if l.Result == ledger.Ran {
			took = roundTime(time.Duration(l.Seconds * float64(time.Second)))
		}
		rows = append(rows, []string{fmt.Sprint(l.N), paint(w, resultColour(l.Result), string(l.Result)), writer, took, short(l.Step, 60), printable(l.Why)})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	for _, l := range e.Steps {
		for _, f := range l.Files {
			if files {
				_, _ = fmt.Fprintf(w, "%d: %s %s\n", l.N, f.How, printable(f.Path))
			}
		}
	}
	for _, x := range e.Exports {
		_, _ = fmt.Fprintf(w, "\n%s\n", printable(x.Sentence()))
	}
	if len(e.Uses) == 0 {
		return nil
	}
	rows = [][]string{{"STORE", "USE", "ENTRY"}}
	for _, u := range e.Uses {
		rows = append(rows, []string{u.Store, useOf(u.Wrote), printable(u.Entry)})
	}
	_, _ = fmt.Fprintln(w)
	return writeTable(w, rows)
}

// useOf is what a job has done with an entry.
func useOf(wrote bool) string {
	if wrote {
		return "wrote"
	}
	return "read"
}

func resultColour(r ledger.Result) string {
	switch r {
	case ledger.Hit, ledger.Shared:
		return green
	case ledger.Ran:
		return yellow
	case ledger.NotReached:
		return red
	}
	return "0"
}

// printable is a text with nothing that a terminal would obey.
func printable(text string) string { return short(text, len(text)+1) }
