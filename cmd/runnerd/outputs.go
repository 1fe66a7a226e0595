package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

func (a *app) outputsCommand() *cobra.Command {
	var dest string
	var git, asJSON bool
	cmd := &cobra.Command{
		Use:   "outputs JOB [-o DIR]",
		Short: "List what a job has written, or fetch it",
		Long: `List the outputs of a finished build or the artifacts of a job, or fetch them into a directory. The daemon then
forgets a build's outputs; artifacts it keeps for the time that they were to be kept. A file gets the
name that the list shows, and a directory too, unless it is the only output: its files then come into DIR itself.
'-o -' writes the only output to the standard output, as a tar.`,
		Args:              checkArgs(cobra.ExactArgs(1)),
		ValidArgsFunction: a.completeJobs(false, false),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			defer c.Close()
			id, err := c.Resolve(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return a.outputs(cmd.Context(), c, id, dest, git, asJSON)
		},
	}
	cmd.Flags().StringVarP(&dest, "output", "o", "", "`DIR` to fetch them into, or -")
	cmd.Flags().BoolVar(&git, "allow-git", false, "let them write to .git directories, whose hooks git runs as you")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print the list as JSON")
	cmd.MarkFlagsMutuallyExclusive("output", "json")
	return cmd
}

func (a *app) outputs(ctx context.Context, c *client.Client, id, dest string, git, asJSON bool) error {
	all, err := c.Outputs(ctx, id)
	if err != nil {
		return err
	}
	switch {
	case asJSON:
		return writeJSON(a.stdout, all)
	case dest == "":
		rows := [][]string{{"NAME", "TYPE", "SIZE", "DEST"}}
		for _, o := range all {
			rows = append(rows, []string{o.Name, o.Type, strconv.FormatInt(o.Size, 10), short(o.Dest, 80)})
		}
		return writeTable(a.stdout, rows)
	case len(all) == 0:
		return &exitError{exitFailed, fmt.Errorf("job %s has no outputs, or they were fetched already", id)}
	case dest == "-" && len(all) > 1:
		return usage(fmt.Errorf("job %s has %d outputs: name a directory", id, len(all)))
	}
	var errs []error
	for _, o := range all {
		to := dest
		if dest != "-" {
			if !filepath.IsLocal(o.Name) || filepath.Base(o.Name) != o.Name {
				return fmt.Errorf("the daemon gave an output the name %q", o.Name)
			}
			if err := os.MkdirAll(dest, 0o755); err != nil {
				return err
			}
			if o.Type != "local" {
				to = filepath.Join(dest, o.Name)
			} else if len(all) > 1 {
				to = filepath.Join(dest, strings.TrimSuffix(o.Name, ".tar"))
			}
		}
		errs = append(errs, a.save(ctx, c, id, o, place{dest: to, git: git}))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return c.RemoveOutputs(ctx, id)
}

// fetch says where outputs go.
type fetch struct {
	context string            // what bake files name is in here
	dests   []buildkit.Option // of the command line; if there are any, they are all that there is
}

// fetched is what came of it.
type fetched struct {
	err    error
	stdout bool // the standard output was written to
}

// checkOutputs says early what cannot be done with the outputs of the command line.
func (a *app) checkOutputs(f buildFlags) error {
	if f.detach && len(f.ssh) > 0 {
		return errors.New("--detach with --ssh: the agents are here, so wait for the build")
	}
	outputs, err := outputsOf(f.Outputs)
	if err != nil {
		return err
	}
	for _, o := range outputs {
		dest, ok := o.Attrs["dest"]
		if toFile := o.Type == "oci" || o.Type == "docker" || o.Type == "tar"; !toFile || ok && dest != "-" || f.detach {
			continue
		}
		if _, tty := terminal(a.stdout); tty {
			return fmt.Errorf("--output type=%s would write to the terminal: give it a dest", o.Type)
		}
		if f.asJSON {
			return errors.New("--json and an output both go to the standard output: give the output a dest")
		}
	}
	return nil
}

// fetchAll fetches the outputs of the jobs that succeeded, and has the daemon forget them.
func (a *app) fetchAll(ctx context.Context, c *client.Client, jobs []api.Job, f fetch) (out fetched) {
	var errs []error
	for _, j := range jobs {
		if j.Result == nil || j.Result.Outcome != runner.Succeeded {
			continue
		}
		stdout, err := a.fetchJob(ctx, c, j.ID, f)
		out.stdout = out.stdout || stdout
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: fetch the outputs with 'runnerd outputs %s -o DIR'", j.Name, err, j.ID))
		}
	}
	out.err = errors.Join(errs...)
	return out
}

func (a *app) fetchJob(ctx context.Context, c *client.Client, id string, f fetch) (stdout bool, err error) {
	all, err := c.Outputs(ctx, id)
	if err != nil || len(all) == 0 {
		return false, err
	}
	var dests []string // of the command line
	for _, o := range f.dests {
		switch o.Type {
		case "oci", "docker", "tar", "local":
			dests = append(dests, o.Attrs["dest"])
		}
	}
	for i, o := range all {
		at := place{dest: o.Dest}
		if len(f.dests) > 0 {
			if len(all) != len(dests) {
				return stdout, fmt.Errorf("%d outputs were asked for, and there are %d", len(dests), len(all))
			}
			at = place{dest: dests[i]}
		} else if at.root, err = os.OpenRoot(f.context); err != nil {
			return stdout, err
		} else {
			defer func() { _ = at.root.Close() }()
		}
		stdout = stdout || at.stdout()
		if err := a.save(ctx, c, id, o, at); err != nil {
			return stdout, err
		}
	}
	return stdout, c.RemoveOutputs(ctx, id)
}

// place is where an output goes: the standard output, or a path. A path that the build's author has named
// leads nowhere out of the root; one that the user has named has no root.
type place struct {
	root *os.Root
	dest string
	git  bool // .git directories may be written to
}

func (p place) stdout() bool { return p.dest == "" || p.dest == "-" }

// file makes the file, and what directories it needs in the root.
func (p place) file() (*os.File, error) {
	if p.root == nil {
		return os.Create(p.dest)
	}
	if err := p.root.MkdirAll(filepath.Dir(p.dest), 0o755); err != nil {
		return nil, err
	}
	return p.root.Create(p.dest)
}

// dir makes the directory and opens it.
func (p place) dir() (*os.Root, error) {
	if p.root == nil {
		if err := os.MkdirAll(p.dest, 0o755); err != nil {
			return nil, err
		}
		return os.OpenRoot(p.dest)
	}
	if err := p.root.MkdirAll(p.dest, 0o755); err != nil {
		return nil, err
	}
	return p.root.OpenRoot(p.dest)
}

// save fetches one output.
func (a *app) save(ctx context.Context, c *client.Client, id string, o api.Output, at place) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("output %s: %w", o.Name, err)
		}
	}()
	r, err := c.Output(ctx, id, o.Name)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	switch {
	case at.stdout():
		if _, tty := terminal(a.stdout); tty {
			return errors.New("it would be written to the terminal: give it a dest, or redirect")
		}
		_, err = io.Copy(a.stdout, r)
		return err
	case o.Type == "local":
		root, err := at.dir()
		if err != nil {
			return err
		}
		defer func() { _ = root.Close() }()
		return extract(root, r, at.git)
	}
	f, err := at.file()
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
