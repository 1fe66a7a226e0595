// Command runnerd runs CI jobs and builds images, each job in an unprivileged sandbox of its own.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner/api/client"
)

func main() {
	a := &app{stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(a.execute(context.Background(), os.Args[1:]))
}

// app is one run of the command line.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer

	// The global flags.
	configPath, stateDir, socket string
}

const rootHelp = `runnerd runs CI jobs and builds images, each job in an unprivileged sandbox of its own.

  runnerd serve                       start the daemon (as root)
  runnerd doctor                      say what this machine lacks
  runnerd run -- echo hello           run a command in a sandbox
  runnerd build .                     build a bake file or Dockerfile
  runnerd register gitlab             become a runner of a GitLab
  runnerd import gitlab-runner        take over the runners of a gitlab-runner

` + exitHelp

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "runnerd",
		Short:         "Run CI jobs and build images in unprivileged sandboxes",
		Long:          rootHelp,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	flags := root.PersistentFlags()
	flags.StringVar(&a.configPath, "config", "", "configuration `FILE` (default "+config.DefaultPath+" if it exists)")
	flags.StringVar(&a.stateDir, "state-dir", "", "state `DIR`ectory; run_dir is then DIR/run unless configured")
	flags.StringVar(&a.socket, "socket", "", "`PATH` of the daemon's socket")
	root.AddCommand(a.registerCommand(), a.runnersCommand(), a.verifyCommand(), a.unregisterCommand(), a.rotateCommand(), a.importCommand(), a.eventsCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usage(fmt.Errorf("%w: see '%s --help'", err, cmd.CommandPath()))
	})
	root.AddCommand(a.serveCommand(), a.buildCommand(), a.runCommand(), a.jobsCommand(), a.logsCommand(), a.cancelCommand(),
		a.outputsCommand(), a.cacheCommand(), a.doctorCommand(), a.configCommand(), a.versionCommand(),
		a.devCommand(), a.execCommand(), a.nestingCommand())
	root.CompletionOptions.HiddenDefaultCmd = false
	return root
}

// execute runs one command line and returns the exit code.
func (a *app) execute(ctx context.Context, args []string) int {
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(err)
	var said *exitError
	if err != nil && (!errors.As(err, &said) || said.err != nil) {
		_, _ = fmt.Fprintf(a.stderr, "runnerd: %v\n", err)
	}
	return code
}

// config is the configuration with the global flags applied.
func (a *app) config() (*config.Config, error) {
	c, err := config.Load(a.configPath)
	if err != nil {
		return nil, configError(err)
	}
	if a.stateDir != "" {
		dir, err := filepath.Abs(a.stateDir)
		if err != nil {
			return nil, err
		}
		c.StateDir = dir
		if c.RunDir == config.Default().RunDir {
			c.RunDir = filepath.Join(dir, "run")
		}
	}
	if a.socket != "" {
		if c.Socket.Path, err = filepath.Abs(a.socket); err != nil {
			return nil, err
		}
	}
	c.Resolve()
	return c, nil
}

func configError(err error) error {
	var problems config.Problems
	if errors.As(err, &problems) {
		return usage(fmt.Errorf("the configuration has %d problems:\n%w", len(problems), err))
	}
	return usage(err)
}

// client is a client of the configured daemon. A configuration that only root may read is no hindrance.
func (a *app) client() (*client.Client, error) {
	c, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	return client.New(c.Socket.Path), nil
}

// clientConfig is the configuration as a client needs it: what it may not read it goes without.
func (a *app) clientConfig() (*config.Config, error) {
	c, err := a.config()
	if errors.Is(err, fs.ErrPermission) && a.configPath == "" {
		c, err = config.Default(), nil
		c.Socket.Path = a.socket
		c.Resolve()
	}
	return c, err
}

// noArgs and the like are cobra's, with our exit code.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 && cmd.HasSubCommands() {
		return usage(fmt.Errorf("unknown command %q for %q: see '%s --help'", args[0], cmd.CommandPath(), cmd.CommandPath()))
	}
	return checkArgs(cobra.NoArgs)(cmd, args)
}

func checkArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usage(fmt.Errorf("%w: see '%s --help'", err, cmd.CommandPath()))
		}
		return nil
	}
}
