package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/sandbox"
)

type execFlags struct {
	variables, env      []string
	branch, tag, source string
	image               string
	sandbox             textFlag[sandbox.Nesting, *sandbox.Nesting]
	limits              limitFlags
	concurrent          int
	manual, alone       bool
	committed           bool
	list, dryRun        bool
	verbose, asJSON     bool
}

const execUsage = `Run a pipeline of GitLab on this machine: the jobs of a .gitlab-ci.yml, with their stages, needs, rules and artifacts, in
sandboxes of the daemon. No GitLab is needed: this command is the server, as long as it runs.

The jobs get the project as it is now: what is committed, what is changed, and new files that git does not ignore.

Without JOBs, all of a pipeline run but manual ones. JOBs run with those that they need. Ctrl-C cancels the pipeline, so
that after_script still runs; a second one ends it at once.

`

func (a *app) execCommand() *cobra.Command {
	var f execFlags
	cmd := &cobra.Command{
		Use:   "exec [flags] [FILE] [JOB...]",
		Short: "Run a pipeline of GitLab on this machine",
		Long:  execUsage + exitHelp,
		Example: `  runnerd exec
  runnerd exec --list --branch main --var DEPLOY=yes
  runnerd exec .gitlab-ci.yml test
  runnerd exec 'build: [linux, amd64]' --only`,
		Args: cobra.ArbitraryArgs,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return completeExec(cmd.Context(), f, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.exec(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.variables, "var", nil, "variable of the pipeline, `KEY=VALUE`; may be repeated")
	flags.StringVar(&f.branch, "branch", "", "`NAME` of the branch that the pipeline is for (default: the current one)")
	flags.StringVar(&f.tag, "tag", "", "`NAME` of the tag that the pipeline is for")
	flags.StringVar(&f.source, "source", "push", "what started the pipeline, CI_PIPELINE_SOURCE: push, web, schedule, api, merge_request_event, …")
	flags.BoolVar(&f.manual, "manual", false, "run manual jobs, too")
	flags.BoolVar(&f.alone, "only", false, "run the JOBs alone, without those that they need")
	flags.BoolVar(&f.committed, "committed", false, "run what is committed, without changes")
	flags.BoolVarP(&f.list, "list", "l", false, "show the jobs, and why others are not in the pipeline")
	flags.BoolVar(&f.dryRun, "dry-run", false, "show what the jobs would run")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "show all of the sections of the jobs' logs, rather than their headings")
	flags.BoolVar(&f.asJSON, "json", false, "print the pipeline, or its result, as JSON; logs go to the standard error")
	flags.StringVar(&f.image, "image", "", "`IMAGE` of jobs that name none")
	flags.Var(&f.sandbox, "sandbox", "`NESTING` of the jobs' sandboxes: container, container/dind (default: as the job's services need)")
	flags.IntVarP(&f.concurrent, "concurrent", "j", 0, "`NUMBER` of jobs at once (default: as many as fit)")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "`KEY=VALUE` for each job, under all other variables")
	f.limits.register(flags)
	complete := func(words ...cobra.Completion) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	_ = cmd.RegisterFlagCompletionFunc("source", complete("push", "web", "schedule", "api", "trigger", "merge_request_event"))
	_ = cmd.RegisterFlagCompletionFunc("sandbox", complete("container", "container/dind"))
	return cmd
}

func (a *app) exec(ctx context.Context, f execFlags, args []string) (err error) {
	variables, err := keyValues("--var", f.variables, false)
	if err != nil {
		return usage(err)
	}
	file, names := execArgs(args)
	if f.alone && len(names) == 0 {
		return usage(errors.New("--only needs the names of jobs"))
	}
	p, err := openProject(ctx, file, f)
	if err != nil {
		return usage(err)
	}
	defer func() { err = errors.Join(err, p.close()) }()
	o, err := p.options(ctx, f, variables)
	if err != nil {
		return err
	}
	all, err := ciyaml.Parse(p.fs(), p.file, o)
	none := errors.Is(err, ciyaml.ErrFiltered) || errors.Is(err, ciyaml.ErrEmpty)
	if err != nil && !none {
		return usage(err)
	}
	for _, w := range all.Warnings {
		a.say(false, "%s", w)
	}
	if f.list && len(names) == 0 && none {
		a.say(false, "%v", err)
		return a.showPipeline(all, f)
	}
	if none {
		return &exitError{exitFailed, fmt.Errorf("%w See 'runnerd exec --list', and --branch, --tag, --source and --var", err)}
	}
	part, err := selectJobs(all, names, f.manual, f.alone)
	if err != nil {
		return &exitError{exitFailed, err}
	}
	if f.list || f.dryRun {
		return a.showPipeline(part, f)
	}
	own(part, o.Predefined, variables)
	return a.execPipeline(ctx, p, part, f, variables)
}

func (a *app) showPipeline(p *ciyaml.Pipeline, f execFlags) error {
	switch {
	case f.asJSON:
		return writeJSON(a.stdout, p)
	case f.list:
		return listPipeline(a.stdout, p)
	}
	return printScripts(a.stdout, p)
}

// execArgs tells the file from the jobs: it is first, and ends as YAML files do.
func execArgs(args []string) (file string, jobs []string) {
	if len(args) > 0 && (strings.HasSuffix(args[0], ".yml") || strings.HasSuffix(args[0], ".yaml")) {
		if _, err := os.Stat(args[0]); err == nil {
			return args[0], args[1:]
		}
	}
	return pipelineFile, args
}

// completeExec offers the names of jobs, and files where none is given.
func completeExec(ctx context.Context, f execFlags, args []string) ([]cobra.Completion, cobra.ShellCompDirective) {
	file, _ := execArgs(args)
	p, err := openProject(ctx, file, f)
	if err != nil {
		return []cobra.Completion{"yml", "yaml"}, cobra.ShellCompDirectiveFilterFileExt
	}
	defer func() { _ = p.close() }()
	o, err := p.options(ctx, f, nil)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := ciyaml.Parse(p.fs(), p.file, o)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, j := range all.Jobs {
		names = append(names, j.Name)
	}
	return names, cobra.ShellCompDirectiveDefault
}

// own takes from the jobs the variables that were for their rules only: the server makes those itself, of the commit
// that it makes of what is changed.
func own(p *ciyaml.Pipeline, predefined, given map[string]string) {
	for _, j := range p.Jobs {
		kept := j.Variables[:0:0]
		for _, v := range j.Variables {
			_, isGiven := given[v.Key]
			text, known := predefined[v.Key]
			if known && text == v.Value && !isGiven && !strings.HasPrefix(v.Key, "CI_MERGE_REQUEST_") {
				continue
			}
			kept = append(kept, v)
		}
		j.Variables = kept
	}
}
