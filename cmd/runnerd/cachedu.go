package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/api"
)

func (a *app) cacheDUCommand() *cobra.Command {
	var asJSON, verbose bool
	var f api.EntryFilter
	cmd := &cobra.Command{
		Use:   "du",
		Short: "Say what takes up the disk",
		Long: `Measure everything that the daemon keeps, and hold the sum against what df says. With -v, --store or --scope, list
what can be removed, the largest first.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if verbose || f.Store != "" || f.Scope != "" {
				entries, err := c.CacheEntries(cmd.Context(), f)
				if err != nil {
					return err
				}
				slices.SortStableFunc(entries, func(x, y budget.Listed) int { return cmp.Compare(y.Bytes, x.Bytes) })
				if asJSON {
					return writeJSON(a.stdout, entries)
				}
				return writeTable(a.stdout, entryRows(entries))
			}
			account, err := c.Account(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, account)
			}
			return a.printAccount(account)
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.BoolVarP(&verbose, "verbose", "v", false, "list every entry")
	a.cacheFilterFlags(cmd, &f.Store, &f.Scope)
	return cmd
}

// cacheFilterFlags are those that say which entries are meant.
func (a *app) cacheFilterFlags(cmd *cobra.Command, store, scope *string) {
	cmd.Flags().StringVar(store, "store", "", "only what this `STORE` has, such as images")
	cmd.Flags().StringVar(scope, "scope", "", "only what belongs to this `PROJECT`, or to \"PROJECT (untrusted)\"")
	_ = cmd.RegisterFlagCompletionFunc("store", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		ctx, cancel := context.WithTimeout(cmd.Context(), 2*time.Second)
		defer cancel()
		entries, err := c.CacheEntries(ctx, api.EntryFilter{})
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Store)
		}
		slices.Sort(names)
		return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
	})
}

func (a *app) printAccount(account budget.Account) error {
	rows := [][]string{{"STORE", "USED", "REMOVABLE", "ENTRIES", "OLDEST USE", "NOTE"}}
	total := 0
	slices.SortStableFunc(account.Stores, func(x, y budget.StoreAccount) int { return cmp.Compare(y.Bytes, x.Bytes) })
	for _, s := range account.Stores {
		note := ""
		if s.Error != "" {
			note = "incomplete: " + short(s.Error, 200)
		}
		rows = append(rows, []string{s.Name, budget.Text(s.Bytes), budget.Text(s.Removable), strconv.Itoa(s.Entries), ago(s.OldestUse), note})
		total += s.Entries
	}
	rows = append(rows, []string{"total", budget.Text(account.Bytes), budget.Text(account.Removable), strconv.Itoa(total)})
	if err := writeTable(a.stdout, rows); err != nil {
		return err
	}
	m, f, g := account.Marks, account.FileSystem, account.Gap
	_, err := fmt.Fprintf(a.stdout, "\nbudget: %s; above %s is pruned, to %s; below %s free, jobs wait\ndf: %s of %s are in use on the disk of %s, %s are free\n",
		budget.Text(m.Budget), budget.Text(m.High), budget.Text(m.Low), budget.Text(m.Floor),
		budget.Text(f.Used), budget.Text(f.Size), f.Dir, budget.Text(f.Free))
	if err != nil || g.Since.IsZero() {
		return err
	}
	since := g.Since.Local().Format(time.DateTime)
	switch {
	case g.Large:
		_, err = fmt.Fprintf(a.stdout, "gap: %s: since %s df has grown by %s, of which the account explains %s. Somebody else writes to this disk, or something in %s is not accounted: look with 'du -xh --max-depth=2 %s'\n",
			paint(a.stdout, yellow, budget.Text(g.Bytes)), since, budget.Text(g.Grown), budget.Text(g.Accounted), f.Dir, f.Dir)
	default:
		_, err = fmt.Fprintf(a.stdout, "gap: none: since %s df has grown by %s and the account by %s, which agree within %s\n",
			since, budget.Text(g.Grown), budget.Text(g.Accounted), budget.Text(g.Tolerance))
	}
	return err
}

func entryRows(entries []budget.Listed) [][]string {
	rows := [][]string{{"STORE", "ENTRY", "SIZE", "USES", "LAST USED", "SCOPE", "STATE", "DESCRIPTION"}}
	for _, e := range entries {
		state, scope := "", "all"
		if e.InUse {
			state = "in use"
		}
		if e.Scope != "" {
			scope = short(e.Scope, 60)
		}
		rows = append(rows, []string{e.Store, short(e.ID, 24), budget.Text(e.Bytes), strconv.FormatInt(e.Uses, 10), ago(e.LastUse()), scope, state, short(e.Description, 120)})
	}
	return rows
}

// ago is how long a moment has passed: "3d ago".
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := max(0, time.Since(t))
	switch {
	case d >= 48*time.Hour:
		d = d.Truncate(24 * time.Hour)
	case d >= time.Hour:
		d = d.Truncate(time.Hour)
	case d >= time.Minute:
		d = d.Truncate(time.Minute)
	default:
		d = d.Truncate(time.Second)
	}
	return config.Duration(d).String() + " ago"
}
