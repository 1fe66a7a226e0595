package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/sandbox"
)

func (a *app) nestingCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nesting",
		Short: "Tell what becomes of sandboxes in sandboxes, and what they cost",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.nestingExplainCommand(), a.nestingMeasureCommand(), a.nestingAdviseCommand())
	return cmd
}

func (a *app) nestingExplainCommand() *cobra.Command {
	var asJSON bool
	var job, environment string
	cmd := &cobra.Command{
		Use:   "explain NESTING | --job JOB",
		Short: "Tell which layers of a nesting would be run, which are flattened, and what is refused and why",
		Long: `Tell which layers of a nesting would be run, which are flattened and why, what the policy refuses, and which layers
this build has no driver for. A nesting is written as container/dind or as Container[DinD[T]]. The policy is the
configured one, or that of an environment. Only --job asks the daemon. container/buildkit is for builds ('runnerd build').
A nesting that cannot be run is exit code 3.`,
		Example: `  runnerd nesting explain container/dind/container
  runnerd nesting explain 'Container[WASM[T]]' --environment edge
  runnerd nesting explain --job 3f2a --json`,
		Args: checkArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return []cobra.Completion{"container", "container/dind", "container/buildkit", "container/wasm", "container/dind/container"}, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if (len(args) == 1) == (job != "") {
				return usage(errors.New("name either a nesting, such as container/dind, or a job with --job"))
			}
			policy, err := a.nestingPolicy(environment)
			if err != nil {
				return err
			}
			n, err := a.nestingOf(cmd, args, job)
			if err != nil {
				return err
			}
			e := policy.Explain(n, starts)
			if asJSON {
				err = writeJSON(a.stdout, e)
			} else {
				err = writeNesting(a.stdout, e)
			}
			if err == nil && e.Err != nil {
				err = &exitError{code: exitRejected} // it has been told
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&job, "job", "", "explain the nesting of a `JOB` that the daemon knows")
	cmd.Flags().StringVar(&environment, "environment", "", "`ENVIRONMENT` whose policy is asked: production, development, edge or measurement (default: the configured policy)")
	_ = cmd.RegisterFlagCompletionFunc("job", a.completeJobs(false, true))
	var names []cobra.Completion
	for _, e := range sandbox.Environments() {
		names = append(names, string(e))
	}
	_ = cmd.RegisterFlagCompletionFunc("environment", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// nestingPolicy is that of an environment, or the configured one.
func (a *app) nestingPolicy(environment string) (sandbox.Policy, error) {
	if environment != "" {
		p, err := sandbox.PolicyFor(sandbox.Environment(environment))
		if err != nil {
			err = usage(err)
		}
		return p, err
	}
	c, err := a.config()
	if err != nil {
		return sandbox.Policy{}, err
	}
	return c.Policy.Sandbox(), nil
}

// nestingOf is the one that is named, or that of a job.
func (a *app) nestingOf(cmd *cobra.Command, args []string, job string) (sandbox.Nesting, error) {
	if job == "" {
		n, err := sandbox.ParseNesting(args[0])
		if err != nil {
			err = usage(err)
		}
		return n, err
	}
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	id, err := c.Resolve(cmd.Context(), job)
	if err != nil {
		return nil, err
	}
	j, err := c.Job(cmd.Context(), id)
	return j.Sandbox, err
}

// starts asks the drivers of this build. A BuildKit worker has none: builds lease their project's (assembly.open).
func starts(outer, inner sandbox.Kind) error {
	if outer == sandbox.Container && inner == sandbox.BuildKit {
		return nil
	}
	return sandbox.Starts(driversOf(nil, nil, nil), outer, inner)
}

func writeNesting(w io.Writer, e sandbox.Explanation) error {
	_, _ = fmt.Fprintf(w, "%s = %s, depth %d\n\n", e.Nesting, e.Type, e.Depth)
	rows := [][]string{{"LEVEL", "LAYER", "FLATTENED", "WHY"}}
	for i, l := range e.Levels {
		flat := "no"
		if l.Flattened {
			flat = "yes"
		}
		rows = append(rows, []string{fmt.Sprint(i + 1), string(l.Kind), flat, l.Why})
	}
	if err := writeTable(w, rows); err != nil {
		return err
	}
	verdict := "would be run"
	if e.Err != nil {
		verdict = paint(w, red, "cannot be run")
	}
	_, err := fmt.Fprintf(w, "\n%s %s, depth %d\n", e.Runs, verdict, e.RunsDepth)
	if e.Refused != "" {
		_, err = fmt.Fprintf(w, "refused: %s\n", e.Refused)
	}
	for _, m := range e.Missing {
		_, err = fmt.Fprintf(w, "missing: %s\n", m)
	}
	return err
}
