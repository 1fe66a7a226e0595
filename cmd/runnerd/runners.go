package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

func (a *app) runnersCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:               "runners [NAME...]",
		Short:             "List the forges' runners that the daemon is",
		Args:              checkArgs(cobra.ArbitraryArgs),
		ValidArgsFunction: a.completeRunners(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := someRunners(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			if asJSON {
				return writeJSON(a.stdout, all)
			}
			return a.printRunners(all)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// someRunners are those of the names, all of them if there are none.
func someRunners(ctx context.Context, c *client.Client, names []string) ([]api.Runner, error) {
	if len(names) == 0 {
		return c.Runners(ctx)
	}
	var all []api.Runner
	for _, name := range names {
		r, err := c.Runner(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

func (a *app) printRunners(all []api.Runner) error {
	rows := [][]string{{"NAME", "URL", "STATE", "CONTACT", "SANDBOX", "JOBS", "TOKEN", "EXPIRES", "WHY"}}
	for _, r := range all {
		jobs := "any"
		if r.Concurrent > 0 {
			jobs = fmt.Sprint(r.Concurrent)
		}
		rows = append(rows, []string{
			r.Name, short(r.URL, 50), a.paintState(r.State), ago(r.LastContact), r.Sandbox.String(), jobs, r.Token + "…", in(r.TokenExpires), short(r.Why, 300),
		})
	}
	return writeTable(a.stdout, rows)
}

func (a *app) paintState(state string) string {
	switch state {
	case "online":
		return paint(a.stdout, green, state)
	case "new":
		return state
	}
	return paint(a.stdout, red, state)
}

// in is how long it will take until a moment.
func in(t time.Time) string {
	switch left := time.Until(t); {
	case t.IsZero():
		return "never"
	case left < 0:
		return "expired"
	case left < 48*time.Hour:
		return left.Round(time.Minute).String()
	default:
		return fmt.Sprintf("%d days", int(left.Hours())/24)
	}
}

func (a *app) verifyCommand() *cobra.Command {
	var remove, asJSON bool
	cmd := &cobra.Command{
		Use:               "verify [NAME...]",
		Short:             "Ask the forges whether they know the runners",
		Long:              "Ask the forges whether they know the runners, all of them if none is named. It exits with 1 if one is not known.",
		Args:              checkArgs(cobra.ArbitraryArgs),
		ValidArgsFunction: a.completeRunners(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			all, err := someRunners(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return a.verify(cmd.Context(), c, all, remove, asJSON)
		},
	}
	cmd.Flags().BoolVar(&remove, "delete", false, "forget those that their forge does not know")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// verified is what came of asking for one runner.
type verified struct {
	Name    string `json:"name"`
	Valid   bool   `json:"valid"`
	Refused bool   `json:"refused,omitempty"` // the forge does not know it
	Deleted bool   `json:"deleted,omitempty"`
	Error   string `json:"error,omitempty"`
}

func (a *app) verify(ctx context.Context, c *client.Client, all []api.Runner, remove, asJSON bool) error {
	results := []verified{}
	failed := 0
	for _, r := range all {
		_, err := c.VerifyRunner(ctx, r.Name)
		if errors.Is(err, client.ErrUnreachable) || ctx.Err() != nil {
			return err
		}
		v := verified{Name: r.Name, Valid: err == nil}
		var problem *client.Problem
		if err != nil {
			v.Error = err.Error()
			v.Refused = errors.As(err, &problem) && problem.Status == http.StatusForbidden
		}
		if v.Refused && remove {
			if err := c.Unregister(ctx, r.Name, true); err != nil {
				return err
			}
			v.Deleted = true
		}
		if !v.Valid && !v.Deleted {
			failed++
		}
		results = append(results, v)
		if asJSON {
			continue
		}
		line := v.Name + ": " + paint(a.stdout, green, "valid")
		switch {
		case v.Deleted:
			line = v.Name + ": deleted: " + v.Error
		case !v.Valid:
			line = v.Name + ": " + paint(a.stdout, red, "not valid") + ": " + v.Error
		}
		if _, err := fmt.Fprintln(a.stdout, line); err != nil {
			return err
		}
	}
	if asJSON {
		if err := writeJSON(a.stdout, results); err != nil {
			return err
		}
	}
	if failed > 0 {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (a *app) unregisterCommand() *cobra.Command {
	var all, keep bool
	cmd := &cobra.Command{
		Use:   "unregister NAME... | --all",
		Short: "Be a forge's runner no more",
		Long: `Be a forge's runner no more. A runner that was made in GitLab stays there, without this machine; one that was made by a
registration token is removed. Jobs that run go on to their end.`,
		Args:              checkArgs(cobra.ArbitraryArgs),
		ValidArgsFunction: a.completeRunners(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usage(errors.New("name the runners, or give --all"))
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			if all {
				known, err := c.Runners(cmd.Context())
				if err != nil {
					return err
				}
				for _, r := range known {
					args = append(args, r.Name)
				}
			}
			var errs []error
			for _, name := range args {
				err := c.Unregister(cmd.Context(), name, keep)
				var problem *client.Problem
				if errors.As(err, &problem) && slices.Contains([]int{http.StatusGone, http.StatusUnprocessableEntity, http.StatusBadGateway}, problem.Status) {
					err = fmt.Errorf("%w; or give --keep-on-server", err)
				}
				if err != nil {
					errs = append(errs, err)
					continue
				}
				_, _ = fmt.Fprintln(a.stdout, name)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all of them")
	cmd.Flags().BoolVar(&keep, "keep-on-server", false, "do not tell the forge")
	return cmd
}

func (a *app) rotateCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rotate NAME...",
		Short: "Have the forge give runners other tokens",
		Long: `Have the forge give runners other tokens. The old ones are void at once, on other machines that have them too. The daemon
does so by itself before a token expires.`,
		Args:              checkArgs(cobra.MinimumNArgs(1)),
		ValidArgsFunction: a.completeRunners(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			var errs []error
			done := []api.Runner{}
			for _, name := range args {
				r, err := c.RotateRunner(cmd.Context(), name)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				done = append(done, r)
				if !asJSON {
					_, _ = fmt.Fprintf(a.stdout, "%s: %s…, expires: %s\n", r.Name, r.Token, in(r.TokenExpires))
				}
			}
			if asJSON {
				errs = append(errs, writeJSON(a.stdout, done))
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// completeRunners offers names of runners.
func (a *app) completeRunners(many bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
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
		all, err := c.Runners(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		var out []cobra.Completion
		for _, r := range all {
			out = append(out, cobra.CompletionWithDesc(r.Name, short(r.State+" "+r.URL, 60)))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}
