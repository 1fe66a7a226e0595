package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/runner/gitlab/configtoml"
)

// maxConfigTOML bounds what is read of a config.toml, in bytes.
const maxConfigTOML = 8 << 20

func (a *app) importCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "import", Short: "Take over what another runner is", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	cmd.AddCommand(a.importGitLabRunnerCommand())
	return cmd
}

const importHelp = `Take over the runners of a gitlab-runner, and say of each key of its config.toml what became of it:

  taken    it is taken over
  by hand  set it in runnerd's configuration, or in the pipeline
  ignored  it means nothing here
  refused  it would weaken the sandbox, or cannot be done
  unknown  gitlab-runner has no such key

Look with --dry-run first, which changes nothing and needs no daemon. Then stop gitlab-runner, and import: runners keep
their tokens, and GitLab shows this machine as another one of each runner. It exits with 1 if a runner was not taken over.`

// imported is what came of an import.
type imported struct {
	File string `json:"file"`
	*configtoml.Report
	Results []importResult `json:"results,omitempty"` // one a runner; none with --dry-run
}

// importResult is what came of one runner.
type importResult struct {
	Number int    `json:"number"`
	Name   string `json:"name"`
	Taken  bool   `json:"taken"`
	Error  string `json:"error,omitempty"`
}

func (a *app) importGitLabRunnerCommand() *cobra.Command {
	var dryRun, asJSON, widen bool
	cmd := &cobra.Command{
		Use:   "gitlab-runner [FILE]",
		Short: "Take over the runners of a gitlab-runner",
		Long:  importHelp,
		Args:  checkArgs(cobra.MaximumNArgs(1)),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
			return []cobra.Completion{"toml"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			file := "/etc/gitlab-runner/config.toml"
			if len(args) > 0 {
				file = args[0]
			}
			out, err := readConfigTOML(file)
			if err != nil {
				return err
			}
			if !asJSON {
				if err := a.printImport(out.Report); err != nil {
					return err
				}
			}
			failed := 0
			if !dryRun {
				c, err := a.client()
				if err != nil {
					return err
				}
				defer c.Close()
				for _, r := range out.Runners {
					result, err := importRunner(cmd, c, r, widen)
					if err != nil {
						return err
					}
					out.Results = append(out.Results, result)
					if !asJSON {
						_, _ = fmt.Fprintln(a.stdout, resultText(result))
					}
				}
			}
			for _, r := range out.Results {
				if !r.Taken {
					failed++
				}
			}
			if asJSON {
				if err := writeJSON(a.stdout, out); err != nil {
					return err
				}
			}
			if failed > 0 {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would be taken over")
	flags.BoolVar(&asJSON, "json", false, "print JSON")
	flags.BoolVar(&widen, "widen", false, "take over runners whose restrictions (allowed_images and the like) are lost")
	return cmd
}

func readConfigTOML(file string) (*imported, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: it holds tokens: use sudo", err)
	}
	if err != nil {
		return nil, usage(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxConfigTOML))
	if err != nil {
		return nil, usage(err)
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	report, err := configtoml.Parse(text, configtoml.Options{Dir: dir, Exists: func(path string) bool {
		fi, err := os.Stat(path)
		return err == nil && fi.Mode().IsRegular()
	}})
	if err != nil {
		return nil, usage(fmt.Errorf("%s: %w", file, err))
	}
	return &imported{File: file, Report: report}, nil
}

// printImport prints what becomes of a file.
func (a *app) printImport(r *configtoml.Report) error {
	rows := [][]string{{"LINE", "RUNNER", "KEY", "", "WHAT BECOMES OF IT"}}
	for _, f := range r.Findings {
		number := ""
		if f.Runner > 0 {
			number = fmt.Sprint(f.Runner)
		}
		rows = append(rows, []string{fmt.Sprint(f.Line), number, short(f.Key, 60), a.paintVerdict(f.Verdict), short(f.Note, 1000)})
	}
	if err := writeTable(a.stdout, rows); err != nil {
		return err
	}
	var text strings.Builder
	text.WriteString("\n")
	for _, x := range r.Runners {
		switch {
		case len(x.Refused) > 0:
			fmt.Fprintf(&text, "runner %d, %s, cannot be taken over: %s\n", x.Number, x.Name, short(strings.Join(x.Refused, "; "), 1000))
		case len(x.Widens) > 0:
			fmt.Fprintf(&text, "runner %d, %s, is taken over only with --widen: %s\n", x.Number, x.Name, short(strings.Join(x.Widens, "; "), 1000))
		default:
			fmt.Fprintf(&text, "runner %d, %s, can be taken over: %s, sandbox %s\n", x.Number, x.Name, short(x.URL, 200), x.Nesting)
		}
	}
	if len(r.Runners) == 0 {
		text.WriteString("there are no runners in it\n")
	}
	_, err := io.WriteString(a.stdout, text.String())
	return err
}

func (a *app) paintVerdict(v configtoml.Verdict) string {
	switch v {
	case configtoml.Taken:
		return paint(a.stdout, green, string(v))
	case configtoml.ByHand, configtoml.Unknown:
		return paint(a.stdout, yellow, string(v))
	case configtoml.Refused:
		return paint(a.stdout, red, string(v))
	}
	return string(v)
}

// importRunner takes over one runner. Its error ends the import.
func importRunner(cmd *cobra.Command, c *client.Client, r configtoml.Runner, widen bool) (importResult, error) {
	out := importResult{Number: r.Number, Name: r.Name}
	switch {
	case len(r.Refused) > 0:
		out.Error = strings.Join(r.Refused, "; ")
		return out, nil
	case len(r.Widens) > 0 && !widen:
		out.Error = "restrictions would be lost: " + strings.Join(r.Widens, "; ") + ": give --widen if that is wanted"
		return out, nil
	}
	made, err := c.Register(cmd.Context(), api.NewRunner{
		Forge: "gitlab", URL: r.URL, Token: r.Token, TokenIs: "authentication", TokenObtained: r.TokenObtained, Name: r.Name,
		Concurrent: r.Concurrent, Sandbox: r.Nesting, Image: r.Image, Pull: string(r.Pull), Limits: r.Limits, Env: r.Env,
		Builds: r.Builds, OutputLimit: r.OutputLimit, Scripts: api.RunnerScripts(r.Scripts), CAFile: r.CAFile, CloneURL: r.CloneURL,
		Registration: api.RegistrationOfNew{Description: r.Description},
	})
	if errors.Is(err, client.ErrUnreachable) || cmd.Context().Err() != nil {
		return out, err
	}
	if err != nil {
		out.Error = err.Error()
		return out, nil
	}
	out.Taken, out.Name = true, made.Name
	return out, nil
}

func resultText(r importResult) string {
	if r.Taken {
		return fmt.Sprintf("runner %d is taken over as %s", r.Number, r.Name)
	}
	return fmt.Sprintf("runner %d, %s, is not taken over: %s", r.Number, r.Name, short(r.Error, 1000))
}
