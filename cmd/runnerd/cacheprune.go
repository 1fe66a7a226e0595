package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

func (a *app) cachePruneCommand() *cobra.Command {
	var asJSON, force bool
	var p api.Prune
	var olderThan textFlag[config.Duration, *config.Duration]
	var to textFlag[config.Size, *config.Size]
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove what is worth least",
		Long: `Remove entries of the caches, the least valuable first: what was used seldom and long ago, and of that what takes up
most. Without --to, --older-than and --all it stops at the low mark, disk.low. What a job uses stays. On a terminal
it asks first, unless -f is given.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to.set && (to.value == 0 || p.All) {
				return usage(errors.New("--to SIZE must be more than 0 and does not go with --all: to remove everything, give --all alone"))
			}
			p.OlderThan, p.To = runner.Duration(olderThan.value), int64(to.value)
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if _, tty := terminal(a.stdin); tty && !force && !p.DryRun && !asJSON {
				ask := p
				ask.DryRun = true
				would, err := c.Prune(cmd.Context(), ask)
				if err != nil {
					return err
				}
				if len(would.Removed) > 0 && !a.confirm(fmt.Sprintf("Remove %s, about %s?", entriesText(len(would.Removed)), budget.Text(would.Freed))) {
					return &exitError{exitCancelled, errors.New("nothing was removed")}
				}
			}
			r, err := c.Prune(cmd.Context(), p)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, r)
			}
			return a.printPruned(r)
		},
	}
	flags := cmd.Flags()
	a.cacheFilterFlags(cmd, &p.Store, &p.Scope)
	flags.Var(&olderThan, "older-than", "only what was not used for this `TIME`, such as 7d")
	flags.Var(&to, "to", "until everything together takes no more than this `SIZE`, such as 20GiB")
	flags.BoolVar(&p.All, "all", false, "whatever is not in use")
	flags.BoolVar(&p.DryRun, "dry-run", false, "only say what would be removed")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.BoolVarP(&force, "force", "f", false, "do not ask")
	return cmd
}

func (a *app) confirm(question string) bool {
	_, _ = fmt.Fprint(a.stderr, question+" [y/N] ")
	answer, _ := bufio.NewReader(a.stdin).ReadString('\n')
	answer = strings.ToLower(strings.TrimSpace(answer))
	return answer == "y" || answer == "yes"
}

func entriesText(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func (a *app) printPruned(r budget.Report) error {
	if len(r.Removed) > 0 {
		if err := writeTable(a.stdout, entryRows(r.Removed)); err != nil {
			return err
		}
		_, _ = fmt.Fprintln(a.stdout)
	}
	if r.DryRun {
		_, err := fmt.Fprintf(a.stdout, "would remove %s, about %s\n", entriesText(len(r.Removed)), budget.Text(r.Freed))
		return err
	}
	_, err := fmt.Fprintf(a.stdout, "removed %s, %s\ndf: %s were free on the disk of %s, %s are now\n",
		entriesText(len(r.Removed)), budget.Text(r.Freed), budget.Text(r.Before.Free), r.Before.Dir, budget.Text(r.After.Free))
	if err == nil && r.Remaining > 0 {
		_, err = fmt.Fprintf(a.stdout, "%s more were to go, but what is left is in use or was not asked for\n", budget.Text(r.Remaining))
	}
	return err
}
