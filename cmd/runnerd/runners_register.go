package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/sandbox"
)

// The variables that gitlab-runner's register reads, too.
const (
	envServerURL   = "CI_SERVER_URL"
	envServerToken = "CI_SERVER_TOKEN"
)

// maxToken bounds the file of a token, in bytes.
const maxToken = 4 << 10

func (a *app) registerCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "register", Short: "Become a forge's runner", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.registerGitLabCommand())
	return cmd
}

const registerHelp = `Make the daemon a runner of a GitLab.

Make the runner in GitLab first (Settings > CI/CD > Runners > New): it shows a token that begins with glrt-. The token
is best given in $` + envServerToken + `, or by --token-file; what is in a command's arguments, all users of the machine can see.

  runnerd register gitlab --url https://gitlab.example.com --token-file token
  echo "$TOKEN" | runnerd register gitlab --url https://gitlab.example.com --token-file -

Registration tokens, which GitLab had before, are taken, too; the flags from --description on are for them, as for others
GitLab has those settings itself.`

// registerFlags are those of register gitlab.
type registerFlags struct {
	api.NewRunner
	tokenFile       string
	sandbox         textFlag[sandbox.Nesting, *sandbox.Nesting]
	limits          limitFlags
	outputLimit     textFlag[config.Size, *config.Size]
	tags            string
	maximumTimeout  time.Duration
	asJSON, noInput bool
}

func (a *app) registerGitLabCommand() *cobra.Command {
	f := registerFlags{NewRunner: api.NewRunner{Forge: "gitlab"}}
	cmd := &cobra.Command{
		Use:   "gitlab",
		Short: "Become a runner of a GitLab",
		Long:  registerHelp,
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			n, err := f.complete(a)
			if err != nil {
				return usage(err)
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			r, err := c.Register(cmd.Context(), n)
			if err != nil {
				return err
			}
			if f.asJSON {
				return writeJSON(a.stdout, r)
			}
			_, err = fmt.Fprintln(a.stdout, r.Name)
			return err
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.URL, "url", "", "`URL` of the GitLab (default: $"+envServerURL+")")
	flags.StringVar(&f.Token, "token", "", "the runner's `TOKEN` (default: $"+envServerToken+"); others can see it here")
	flags.StringVar(&f.tokenFile, "token-file", "", "`FILE` that holds the token; - is the standard input")
	flags.StringVar(&f.Name, "name", "", "`NAME` on this machine (default: made of the host's and the runner's id)")
	flags.IntVar(&f.Concurrent, "concurrent", 0, "`NUMBER` of jobs at once (default: as many as fit)")
	flags.StringVar(&f.Image, "image", "", "`IMAGE` of jobs that name none")
	flags.StringVar(&f.Pull, "pull", "", "`POLICY` of jobs that do not say: if-not-present, always, never")
	flags.Var(&f.sandbox, "sandbox", "`NESTING` of the jobs' sandboxes: container, container/dind")
	f.limits.register(flags)
	flags.StringArrayVarP(&f.Env, "env", "e", nil, "`KEY=value` for each job")
	flags.StringVar(&f.Builds, "builds-dir", "", "`DIR`ectory, in the sandbox, of the jobs' projects")
	flags.Var(&f.outputLimit, "output-limit", "`SIZE` of a job's log at which no more of it is sent (default: 4MiB)")
	flags.StringVar(&f.Scripts.PreGetSources, "pre-get-sources-script", "", "`COMMANDS` before a job's sources are got")
	flags.StringVar(&f.Scripts.PostGetSources, "post-get-sources-script", "", "`COMMANDS` after a job's sources are got")
	flags.StringVar(&f.Scripts.PreBuild, "pre-build-script", "", "`COMMANDS` before a job's script")
	flags.StringVar(&f.Scripts.PostBuild, "post-build-script", "", "`COMMANDS` after a job's script, not after_script")
	flags.StringVar(&f.CloneURL, "clone-url", "", "`URL` from which jobs clone, if not that of the GitLab")
	flags.StringVar(&f.CAFile, "ca-file", "", "`FILE` with the certificates (PEM) of who signs the GitLab's")
	flags.BoolVar(&f.asJSON, "json", false, "print JSON")
	flags.BoolVar(&f.noInput, "non-interactive", false, "ask nothing, even on a terminal")
	d := &f.Registration
	flags.StringVar(&d.Description, "description", "", "`TEXT` that GitLab shows")
	flags.StringVar(&f.tags, "tag-list", "", "`TAGS` of jobs that it takes, with commas between")
	flags.BoolVar(&d.RunUntagged, "run-untagged", false, "take jobs without tags, too (default: without --tag-list)")
	flags.BoolVar(&d.Locked, "locked", false, "for this project alone")
	flags.StringVar(&d.AccessLevel, "access-level", "", "`LEVEL`: not_protected, ref_protected")
	flags.DurationVar(&f.maximumTimeout, "maximum-timeout", 0, "longest `TIME` that a job may take, such as 1h")
	flags.BoolVar(&d.Paused, "paused", false, "take no jobs until it is resumed in GitLab")
	_ = cmd.MarkFlagFilename("token-file")
	_ = cmd.MarkFlagFilename("ca-file")
	complete := func(words ...cobra.Completion) cobra.CompletionFunc {
		return cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)
	}
	_ = cmd.RegisterFlagCompletionFunc("sandbox", complete("container", "container/dind"))
	_ = cmd.RegisterFlagCompletionFunc("pull", complete("if-not-present", "always", "never"))
	_ = cmd.RegisterFlagCompletionFunc("access-level", complete("not_protected", "ref_protected"))
	return cmd
}

// complete is what the flags, the environment and, on a terminal, the user say.
func (f *registerFlags) complete(a *app) (n api.NewRunner, err error) {
	n = f.NewRunner
	fd, tty := terminal(a.stdin)
	ask := tty && !f.noInput
	input := bufio.NewReader(a.stdin)
	if n.URL == "" {
		n.URL = os.Getenv(envServerURL)
	}
	if n.URL == "" && ask {
		_, _ = fmt.Fprint(a.stderr, "URL of the GitLab, such as https://gitlab.example.com: ")
		n.URL = readLine(input)
	}
	if n.URL == "" {
		return n, fmt.Errorf("the URL of the GitLab is missing: give --url or set $%s", envServerURL)
	}
	if n.Token, err = f.token(a.stdin); err != nil {
		return n, err
	}
	if n.Token == "" && ask {
		_, _ = fmt.Fprint(a.stderr, "The runner's token, glrt-… (it is not shown): ")
		text, err := term.ReadPassword(fd)
		_, _ = fmt.Fprintln(a.stderr)
		if err != nil {
			return n, fmt.Errorf("read the token: %w", err)
		}
		n.Token = strings.TrimSpace(string(text))
	}
	if n.Token == "" {
		return n, fmt.Errorf("the runner's token is missing: give --token-file, or set $%s", envServerToken)
	}
	n.Sandbox, n.Limits, n.OutputLimit = f.sandbox.value, f.limits.limits(), int64(f.outputLimit.value)
	n.Registration.MaximumTimeout = runner.Duration(f.maximumTimeout)
	for tag := range strings.SplitSeq(f.tags, ",") {
		if tag = strings.TrimSpace(tag); tag != "" {
			n.Registration.Tags = append(n.Registration.Tags, tag)
		}
	}
	if gitlab.IsAuthenticationToken(n.Token) {
		if d := n.Registration; d.Description != "" || len(d.Tags) > 0 || d.RunUntagged || d.Locked || d.AccessLevel != "" || d.MaximumTimeout != 0 || d.Paused {
			return n, errors.New("--description, --tag-list, --run-untagged, --locked, --access-level, --maximum-timeout and --paused are for registration tokens: set them in GitLab, at the runner")
		}
	} else if len(n.Registration.Tags) == 0 {
		n.Registration.RunUntagged = true // else it would take no job at all
	}
	if n.CAFile != "" {
		if n.CAFile, err = filepath.Abs(n.CAFile); err != nil {
			return n, err
		}
	}
	return n, nil
}

// token is that of the flags or the environment.
func (f *registerFlags) token(stdin io.Reader) (string, error) {
	switch {
	case f.Token != "" && f.tokenFile != "":
		return "", errors.New("--token and --token-file exclude each other")
	case f.Token == "-" || f.tokenFile == "-":
		return readToken(stdin)
	case f.Token != "":
		return f.Token, nil
	case f.tokenFile != "":
		file, err := os.Open(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("read the token: %w", err)
		}
		defer func() { _ = file.Close() }()
		return readToken(file)
	}
	return os.Getenv(envServerToken), nil
}

func readToken(r io.Reader) (string, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxToken))
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

func readLine(r *bufio.Reader) string {
	line, _ := r.ReadString('\n')
	return strings.TrimSpace(line)
}
