package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/sandbox"
)

type runFlags struct {
	image, sandbox, name     string
	pull                     string
	whose                    api.Whose
	user, workdir            string
	env, envFiles            []string
	timeout                  textFlag[config.Duration, *config.Duration]
	detach, interactive, tty bool
	limits                   limitFlags
	module                   moduleFlags
	caches, artifacts        []string
}

func (a *app) runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARG...]",
		Short: "Run a command in a sandbox",
		Long: `Run a command in a sandbox of its own, with its standard input, output and error connected to yours, and exit
with its code. The signals INT, TERM, HUP, QUIT, USR1 and USR2 are passed on to it; a second Ctrl-C cancels
the job.

In container/wasm the command is a WebAssembly module (WASI preview 1): its path in the sandbox, or oci:REFERENCE, and its
arguments. It sees the environment given here, the directories of --module-dir, and nothing else of the sandbox.

` + exitHelp,
		Example: `  runnerd run -- echo hello
  runnerd run --image golang:1.26 --memory 2GiB -- go version
  runnerd run --cache 'key=go-1,path=.cache/go' --artifact dist -w /workspace -- make
  runnerd run --sandbox container/dind -- docker run --rm debian:bookworm-slim id
  runnerd run --sandbox container/wasm --module-dir /workspace:ro -- oci:registry.runnerd.internal/tools/lint:1 /workspace
  tar c . | runnerd run -- tar t`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(errors.New("the command to run is missing: write runnerd run -- COMMAND, or see 'runnerd run --help'"))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.run(cmd, f, args) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.StringVar(&f.image, "image", "", "`IMAGE` of the command's root file system (default: the configured one)")
	flags.StringVar(&f.pull, "pull", "", "`WHEN` the image's registry is asked for it: if-not-present, always or never (default: the configured policy)")
	flags.StringVar(&f.sandbox, "sandbox", "container", "`NESTING` of the sandbox: container, container/dind or container/wasm")
	_ = cmd.RegisterFlagCompletionFunc("sandbox", cobra.FixedCompletions([]cobra.Completion{"container", "container/dind", "container/wasm"}, cobra.ShellCompDirectiveNoFileComp))
	flags.StringVar(&f.name, "name", "", "`NAME` of the job, for people")
	whoseFlags(flags, &f.whose)
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment `KEY=VALUE`, or KEY to take it over from here; may be repeated")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`FILE` of KEY=VALUE lines; may be repeated")
	flags.StringVarP(&f.user, "user", "u", "", "`USER`[:GROUP] to run as (default: the image's)")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "working `DIR`ectory (default: the image's)")
	flags.Var(&f.timeout, "timeout", "`DURATION` after which the job is ended, such as 30m")
	flags.BoolVarP(&f.detach, "detach", "d", false, "print the job's id and do not wait for it")
	flags.BoolVarP(&f.interactive, "interactive", "i", true, "connect the standard input")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal (default: if input and output are terminals)")
	f.limits.register(flags)
	f.module.register(flags)
	flags.StringArrayVar(&f.caches, "cache", nil, "restore and save files: `key=K,path=P`[,path=P…][,fallback=K…][,policy=pull|push|pull-push][,when=on_success|on_failure|always]; may be repeated")
	flags.StringArrayVar(&f.artifacts, "artifact", nil, "keep files: `PATH`[,PATH…][,name=N][,when=…][,keep=DURATION]; may be repeated; see 'runnerd outputs'")
	return cmd
}

func (a *app) run(cmd *cobra.Command, f runFlags, args []string) error {
	s, err := a.submission(f, args)
	if err != nil {
		return usage(err)
	}
	if s.Registries, err = a.imageCredentials(s.Image); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := cmd.Context()
	if f.detach {
		job, err := c.Submit(ctx, s)
		if err == nil {
			_, _ = fmt.Fprintln(a.stdout, job.ID)
		}
		return err
	}

	s.Attach, s.Script.Stdin = true, f.interactive
	in, inTTY := terminal(a.stdin)
	_, outTTY := terminal(a.stdout)
	switch {
	case cmd.Flags().Changed("tty") && f.tty && !inTTY:
		return usage(errors.New("--tty needs a terminal as standard input"))
	case cmd.Flags().Changed("tty"):
		s.Script.TTY = f.tty
	default:
		s.Script.TTY = inTTY && outTTY && f.interactive && s.Sandbox[len(s.Sandbox)-1] != sandbox.WASM
	}
	if s.Script.TTY {
		if w, h, err := term.GetSize(in); err == nil {
			s.Script.Rows, s.Script.Cols = uint16(h), uint16(w)
		}
		s.Env = append([]string{"TERM=" + os.Getenv("TERM")}, s.Env...)
	}

	signals := make(chan os.Signal, 16)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH)
	defer signal.Stop(signals)
	job, err := c.Submit(ctx, s)
	if err != nil {
		return err
	}
	return a.attach(ctx, c, job, s.Script, signals)
}

// attach is the terminal of a job until its end.
func (a *app) attach(ctx context.Context, c *client.Client, job api.Job, s api.Script, signals <-chan os.Signal) error {
	t := client.Terminal{Stdout: a.stdout, Stderr: a.stderr}
	if s.Stdin {
		t.Stdin = a.stdin
	}
	forward, resize := make(chan syscall.Signal, 16), make(chan sandbox.WindowSize, 1)
	t.Signals, t.Resize = forward, resize
	fd, _ := terminal(a.stdin)
	if s.TTY {
		old, err := term.MakeRaw(fd)
		if err != nil {
			return fmt.Errorf("set the terminal to raw mode: %w", err)
		}
		defer func() { _ = term.Restore(fd, old) }()
	}
	var running atomic.Bool
	t.State = func(j api.Job) {
		running.Store(j.State == runner.Running)
		if j.State == runner.Waiting && j.Detail != "" {
			a.say(s.TTY, "%s", j.Detail)
		}
	}
	t.Notice = func(text string) { a.say(s.TTY, "%s", text) }
	done := make(chan struct{})
	defer close(done)
	go func() {
		interrupts := 0
		for {
			select {
			case <-done:
				return
			case sig := <-signals:
				switch sig := sig.(syscall.Signal); sig {
				case syscall.SIGWINCH:
					if w, h, err := term.GetSize(fd); err == nil {
						resize <- sandbox.WindowSize{Rows: uint16(h), Cols: uint16(w)}
					}
				case syscall.SIGINT, syscall.SIGTERM:
					interrupts++
					if running.Load() && interrupts == 1 {
						forward <- sig
						if _, tty := terminal(a.stderr); tty {
							a.say(s.TTY, "%s was passed on to the command; once more cancels the job", sig)
						}
						continue
					}
					a.say(s.TTY, "cancelling job %s", job.ID)
					go func() {
						stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
						defer cancel()
						_, _ = c.Cancel(stop, job.ID, "cancelled from the terminal")
					}()
				default:
					forward <- sig
				}
			}
		}
	}()
	ended, err := c.Attach(ctx, job.ID, t)
	if err != nil {
		return err
	}
	if text := endMessage(ended); text != "" {
		a.say(s.TTY, "%s", text)
	}
	if code := resultCode(ended.Result); code != exitOK {
		return &exitError{code: code}
	}
	return nil
}

// say says something of our own in between; in raw mode a line ends with \r\n.
func (a *app) say(raw bool, format string, args ...any) {
	end := "\n"
	if raw {
		end = "\r\n"
	}
	_, _ = fmt.Fprintf(a.stderr, "runnerd: "+format+end, args...)
}

// endMessage says how a job ended, when its exit code does not say it all.
func endMessage(j api.Job) string {
	r := j.Result
	switch {
	case r == nil:
		return "the job's end is not known"
	case r.Outcome == runner.Succeeded:
		return ""
	case r.Outcome == runner.Failed && r.Reason == runner.ReasonOOM:
		return fmt.Sprintf("killed: out of memory: raise --memory (it was %s)", config.Size(j.Limits.Memory))
	case r.Outcome == runner.Failed && r.ExitCode != 0:
		return ""
	case r.Outcome == runner.TimedOut:
		return r.Message + " (--timeout)"
	case r.Message == "":
		return string(r.Outcome)
	}
	return fmt.Sprintf("%s: %s", r.Outcome, r.Message)
}

func (a *app) submission(f runFlags, args []string) (api.Submission, error) {
	nesting, err := sandbox.ParseNesting(f.sandbox)
	if err != nil {
		return api.Submission{}, fmt.Errorf("--sandbox: %w", err)
	}
	s := api.Submission{
		Name: f.name, Whose: f.whose, Sandbox: nesting, Image: f.image, Pull: f.pull, Limits: f.limits.limits(),
		Timeout: runner.Duration(f.timeout.value), Script: api.Script{Command: args, User: f.user, Dir: f.workdir},
	}
	if s.Module, err = f.module.module(); err != nil {
		return s, err
	}
	if s.Kept, err = parseKept(f.caches, f.artifacts); err != nil {
		return s, err
	}
	if s.Name == "" {
		s.Name = filepath.Base(args[0])
	}
	for _, file := range f.envFiles {
		text, err := os.ReadFile(file)
		if err != nil {
			return s, fmt.Errorf("--env-file: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				f.env = append([]string{line}, f.env...)
			}
		}
	}
	for _, e := range f.env {
		key, _, given := strings.Cut(e, "=")
		if key == "" {
			return s, fmt.Errorf("--env %q: KEY=VALUE or KEY is needed", e)
		}
		if !given {
			value, ok := os.LookupEnv(key)
			if !ok {
				continue
			}
			e = key + "=" + value
		}
		s.Env = append(s.Env, e)
	}
	return s, nil
}
