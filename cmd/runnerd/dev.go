package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/integration/gitlabtest"
)

func (a *app) devCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "dev", Short: "Try runnerd without a forge", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.devGitLabCommand())
	return cmd
}

const devGitLabHelp = `Serve the pipeline of a directory as GitLab does, to whichever runner comes: what is needed to try a .gitlab-ci.yml
and a runner together, on one machine and without a GitLab. It prints its address, and how to register a runner.

DIR (default: here) need not be a repository, and what is not committed runs too; nothing is written there. The page
at the address shows pipelines, jobs and logs; it is text for curl, and JSON for whoever accepts that. It has these
calls for scripts:

  curl -X POST URL/dev/pipelines -d '{"branch": "main", "variables": {"KEY": "value"}}'
  curl -X POST URL/dev/pipelines/ID/cancel
  curl -X POST URL/dev/jobs/ID/cancel        also play, retry

--faults makes things go wrong, as a JSON file says. This one answers traces by 503 for a minute, and loses the answer
to a request for a job:

  {"faults": [{"on": "trace", "status": 503, "for": "1m"}, {"on": "request", "drop": "after", "count": 1}]}

What a runner does against the protocol is told as a VIOLATION. Everything is gone when the command ends.`

// devGitLab are the flags of dev gitlab.
type devGitLab struct {
	listen, url, file, branch, tag, faults string
	variables                              []string
	run, asJSON, verbose                   bool
}

func (a *app) devGitLabCommand() *cobra.Command {
	var f devGitLab
	cmd := &cobra.Command{
		Use:   "gitlab [DIR]",
		Short: "Serve a directory's pipeline to runners, as GitLab does",
		Long:  devGitLabHelp,
		Args:  checkArgs(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
			defer stop()
			return a.devGitLab(ctx, strings.Join(args, ""), f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.listen, "listen", "127.0.0.1:0", "`ADDRESS` to listen on; port 0: a free one")
	flags.StringVar(&f.url, "url", "", "`URL` by which runners and jobs reach that address, if it is another")
	flags.StringVar(&f.file, "file", "", "`FILE` of the pipeline (default .gitlab-ci.yml)")
	flags.StringVar(&f.branch, "branch", "", "`BRANCH` of the first pipeline (default: the one that is checked out)")
	flags.StringVar(&f.tag, "tag", "", "`TAG` of the first pipeline, instead of a branch")
	flags.StringArrayVar(&f.variables, "variable", nil, "`KEY=VALUE` for the first pipeline; may be given more than once")
	flags.StringVar(&f.faults, "faults", "", "JSON `FILE` that says what goes wrong")
	flags.BoolVar(&f.run, "run", false, "start a pipeline at once")
	flags.BoolVar(&f.asJSON, "json", false, "print the address and token as JSON")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "tell of each request")
	return cmd
}

// devLongPoll is how long GitLab.com holds a request for a job.
const devLongPoll = 50 * time.Second

func (a *app) devGitLab(ctx context.Context, dir string, f devGitLab) (err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil {
		return usage(err)
	} else if !info.IsDir() {
		return usage(fmt.Errorf("%s is no directory: give the project's, and its pipeline by --file", dir))
	}
	run := gitlabtest.RunOptions{File: f.file, Branch: f.branch, Tag: f.tag, Variables: map[string]string{}}
	for _, v := range f.variables {
		key, value, ok := strings.Cut(v, "=")
		if !ok || key == "" {
			return usage(fmt.Errorf("--variable %q: write KEY=VALUE", v))
		}
		run.Variables[key] = value
	}
	o := gitlabtest.Options{
		Listen: f.listen, URL: f.url, LongPoll: devLongPoll, IgnoreTags: true, Verbose: f.verbose,
		Project: gitlabtest.Project{Dir: dir, Path: "dev/" + projectName(dir)},
		Log:     func(format string, args ...any) { _, _ = fmt.Fprintf(a.stderr, format+"\n", args...) },
	}
	if f.faults != "" {
		if o.Faults, err = gitlabtest.ReadPlan(f.faults); err != nil {
			return usage(err)
		}
	}
	s, err := gitlabtest.New(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if err := a.devWelcome(s, f.asJSON); err != nil {
		return err
	}
	if f.run {
		if _, err := s.Run(ctx, run); err != nil && ctx.Err() == nil {
			return usage(err)
		}
	}
	<-ctx.Done()
	return nil
}

func (a *app) devWelcome(s *gitlabtest.Server, asJSON bool) error {
	token := s.AddRunner()
	register := fmt.Sprintf("runnerd register gitlab --url %s --token %s", s.URL, token)
	if asJSON {
		return writeJSON(a.stdout, map[string]string{"url": s.URL, "token": token, "register": register})
	}
	_, err := fmt.Fprintf(a.stdout, `URL    %s
token  %s

Register a runner:   %s
Start a pipeline:    curl -X POST %s/dev/pipelines
See how it goes:     %s
`, s.URL, token, register, s.URL, s.URL)
	return err
}

// projectName is a directory's name as GitLab would have it.
func projectName(dir string) string {
	name := strings.Trim(strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, filepath.Base(dir)), "-.")
	name = strings.TrimSuffix(name, ".git")
	if name == "" {
		return "project"
	}
	return name
}
