package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/api"
)

func (a *app) jobsCommand() *cobra.Command {
	var asJSON, all bool
	var f api.Filter
	cmd := &cobra.Command{
		Use:     "jobs",
		Aliases: []string{"ps"},
		Short:   "List jobs, newest first",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			f.Active = !all && f.State == "" && f.Outcome == "" && f.Group == ""
			jobs, err := c.Jobs(cmd.Context(), f)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, jobs)
			}
			rows := [][]string{{"JOB", "NAME", "STATE", "SANDBOX", "SUBMITTED", "TIME", "DETAIL"}}
			for _, j := range jobs {
				rows = append(rows, []string{j.ID, short(j.Name, 30), stateOf(j), j.Sandbox.String(), j.Submitted.Local().Format(time.DateTime), duration(j), short(detailOf(j), 80)})
			}
			return writeTable(a.stdout, rows)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.BoolVarP(&all, "all", "a", false, "finished jobs too")
	flags.StringVar(&f.Group, "group", "", "only the jobs of this `GROUP`, such as one build's")
	flags.StringVar(&f.Project, "project", "", "only the jobs of this `PROJECT`")
	flags.StringVar(&f.State, "state", "", "only jobs in this `STATE`: queued, waiting, opening, running, closing, finished")
	flags.StringVar(&f.Outcome, "outcome", "", "only jobs of this `OUTCOME`: succeeded, failed, errored, rejected, cancelled, timed_out")
	flags.IntVarP(&f.Limit, "limit", "n", 0, "at most `NUMBER` jobs")
	return cmd
}

func stateOf(j api.Job) string {
	if j.Result == nil {
		return string(j.State)
	}
	if j.Result.Reason != "" {
		return fmt.Sprintf("%s (%s)", j.Result.Outcome, j.Result.Reason)
	}
	return string(j.Result.Outcome)
}

func detailOf(j api.Job) string {
	if j.Result != nil {
		return j.Result.Message
	}
	return j.Detail
}

// duration is how long the job has been at it.
func duration(j api.Job) string {
	end := time.Now()
	if !j.Finished.IsZero() {
		end = j.Finished
	}
	return roundTime(end.Sub(j.Submitted))
}

func roundTime(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// short is text on one line, at most n characters, with nothing that a terminal would obey.
func short(text string, n int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, text)
	if utf8.RuneCountInString(text) > n {
		text = string([]rune(text)[:n-1]) + "…"
	}
	return text
}

// writeTable aligns columns by what is seen of them: colours take no room. On a terminal the last column, if it is
// text, is cut to what the line has left.
func writeTable(w io.Writer, rows [][]string) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], seen(cell))
		}
	}
	width, before := terminalWidth(w), 0 // of the line, of all columns but the last
	for _, n := range widths[:max(len(widths)-1, 0)] {
		before += n + 2
	}
	var text strings.Builder
	for _, row := range rows {
		for len(row) > 1 && row[len(row)-1] == "" { // no blanks at the end
			row = row[:len(row)-1]
		}
		for i, cell := range row {
			if left := width - before; i == len(widths)-1 && left >= 20 && seen(cell) > left {
				cell = short(cell, left)
			}
			text.WriteString(cell)
			if i < len(row)-1 {
				text.WriteString(strings.Repeat(" ", widths[i]-seen(cell)+2))
			}
		}
		text.WriteString("\n")
	}
	_, err := io.WriteString(w, text.String())
	return err
}

var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// seen is the number of characters that a terminal shows of a text.
func seen(text string) int { return utf8.RuneCountInString(colours.ReplaceAllString(text, "")) }

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// completeJobs offers job ids.
func (a *app) completeJobs(active bool, many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 && !many {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		jobs, err := c.Jobs(ctx, api.Filter{Prefix: prefix, Active: active, Limit: 100})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, j := range jobs {
			out = append(out, cobra.CompletionWithDesc(j.ID, short(stateOf(j)+" "+j.Name, 60)))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
