package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

type buildFlags struct {
	api.Build
	files, args, labels, secrets, ssh, vars []string
	stage, progress                         string
	timeout                                 textFlag[config.Duration, *config.Duration]
	asJSON, detach                          bool
}

func (a *app) buildCommand() *cobra.Command {
	var f buildFlags
	cmd := &cobra.Command{
		Use:   "build [CONTEXT] [flags] [TARGET...]",
		Short: "Build the targets of a bake file or a Dockerfile",
		Long: `Build the targets of a bake file (docker-bake.hcl, docker-bake.json, compose.yaml) or a Dockerfile, in parallel,
each as a job. The context is the first argument if that is a directory, else the current one; it is sent
without .git and what .dockerignore excludes.

Outputs of type oci, docker, tar and local are fetched when their target is built: those of --output relative to
the current directory, those of a bake file only into the context. Registries that the build names are given
the credentials that docker login has stored. Keys and agents of --ssh stay here: the build's requests come to
them while it runs.

` + exitHelp,
		Example: `  runnerd build .
  runnerd build examples/farm --push api web
  runnerd build -f Dockerfile.prod -t app:1 --build-arg VERSION=1 --secret id=token,env=TOKEN
  runnerd build -o dist --ssh default .`,
		RunE: func(cmd *cobra.Command, args []string) error { return a.build(cmd.Context(), f, args) },
	}
	flags := cmd.Flags()
	flags.StringArrayVarP(&f.files, "file", "f", nil, "bake `FILE` or Dockerfile; bake files may be repeated")
	flags.StringArrayVar(&f.Set, "set", nil, "override `TARGET.KEY=VALUE` of a bake file; may be repeated")
	flags.StringArrayVar(&f.vars, "var", nil, "`NAME=VALUE` of a bake file's variable; may be repeated (default: the environment's)")
	flags.StringArrayVarP(&f.Tags, "tag", "t", nil, "`NAME` of the image; may be repeated")
	flags.StringArrayVar(&f.args, "build-arg", nil, "`KEY=VALUE`, or KEY to take it over from here; may be repeated")
	flags.StringArrayVar(&f.labels, "label", nil, "image label `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&f.Annotations, "annotation", nil, "annotation `KEY=VALUE`; may be repeated")
	flags.StringArrayVar(&f.secrets, "secret", nil, "`id=ID[,src=FILE|,env=NAME]`; may be repeated")
	flags.StringArrayVar(&f.ssh, "ssh", nil, "ssh agent `default|ID[=SOCKET|KEY[,KEY]]` for RUN --mount=type=ssh; may be repeated")
	flags.StringVar(&f.stage, "target", "", "`STAGE` of the Dockerfile to build")
	flags.StringSliceVar(&f.Platforms, "platform", nil, "`PLATFORM`, such as linux/amd64; may be repeated")
	flags.StringArrayVar(&f.CacheFrom, "cache-from", nil, "cache to import, such as `type=registry,ref=NAME`; may be repeated")
	flags.StringArrayVar(&f.CacheTo, "cache-to", nil, "cache to export, such as `type=registry,ref=NAME`; may be repeated")
	flags.StringArrayVarP(&f.Outputs, "output", "o", nil, "output: `type=oci|docker|tar|local,dest=PATH`, DIR, or - for a tar to the standard output; may be repeated")
	flags.BoolVar(&f.Push, "push", false, "push the images to the registry that their tags name")
	flags.BoolVar(&f.NoCache, "no-cache", false, "do not use the cache")
	flags.BoolVar(&f.Pull, "pull", false, "look for newer base images")
	whoseFlags(flags, &f.Whose)
	flags.Var(&f.timeout, "timeout", "`DURATION` after which a target is ended, such as 30m")
	flags.StringVar(&f.progress, "progress", "auto", "`MODE` of the progress: auto, tty, plain, rawjson or quiet")
	flags.BoolVar(&f.asJSON, "json", false, "print the finished jobs as JSON")
	flags.BoolVarP(&f.detach, "detach", "d", false, "print the jobs' ids and do not wait for them")
	_ = cmd.RegisterFlagCompletionFunc("progress", cobra.FixedCompletions(progressModes, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

var progressModes = []string{"auto", "tty", "plain", "rawjson", "quiet"}

func (a *app) build(ctx context.Context, f buildFlags, args []string) error {
	if !slices.Contains(progressModes, f.progress) {
		return usage(fmt.Errorf("--progress %q is not known: use one of %s", f.progress, strings.Join(progressModes, ", ")))
	}
	dir, err := f.prepare(args)
	if err != nil {
		return usage(err)
	}
	agents, err := sshAgents(f.ssh)
	if err != nil {
		return usage(err)
	}
	f.SSH = slices.Sorted(maps.Keys(agents))
	if err := a.checkOutputs(f); err != nil {
		return usage(err)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Health(ctx); err != nil { // before the context is read
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	ws, err := upload(ctx, c, dir, f.Files)
	if err != nil {
		return err
	}
	f.Workspace = ws.ID
	if f.Registries, err = a.credentials(ctx, dir, f.Build); err != nil {
		return err
	}
	accepted, err := c.Build(ctx, f.Build)
	if err != nil {
		return err
	}
	serving, stopServing := context.WithCancel(ctx)
	defer stopServing()
	for _, j := range accepted.Jobs {
		a.serveAgents(serving, c, j.ID, agents)
	}
	if f.detach {
		for _, j := range accepted.Jobs {
			_, _ = fmt.Fprintln(a.stdout, j.ID)
		}
		return nil
	}
	jobs, err := a.follow(ctx, c, f.progress, accepted.Jobs)
	if err != nil {
		return err
	}
	dests, err := outputsOf(f.Outputs)
	if err != nil {
		return err
	}
	fetched := a.fetchAll(ctx, c, jobs, fetch{context: dir, dests: dests})
	return a.report(jobs, f, fetched)
}

// prepare turns the flags into a request and returns the context's directory.
func (f *buildFlags) prepare(args []string) (dir string, err error) {
	dir = "."
	if len(args) > 0 {
		if fi, err := os.Stat(args[0]); err == nil && fi.IsDir() {
			dir, args = args[0], args[1:]
		} else if strings.ContainsAny(args[0], "/.") {
			return "", fmt.Errorf("the context %s is no directory", args[0])
		}
	}
	f.Targets = args
	if f.stage != "" {
		if len(args) > 0 {
			return "", errors.New("--target names a stage of a Dockerfile: name the targets of a bake file as arguments")
		}
		f.Targets = []string{f.stage}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", err
	}
	f.Timeout = runner.Duration(f.timeout.value)
	for _, file := range f.files {
		rel, err := inside(dir, file)
		if err != nil {
			return "", err
		}
		f.Files = append(f.Files, rel)
	}
	if f.BuildArgs, err = keyValues("--build-arg", f.args, true); err != nil {
		return "", err
	}
	if f.Labels, err = keyValues("--label", f.labels, false); err != nil {
		return "", err
	}
	if f.Vars, err = keyValues("--var", f.vars, false); err != nil {
		return "", err
	}
	for name, value := range bakeVariables(dir, f.Files) {
		if _, given := f.Vars[name]; !given {
			f.Vars[name] = value
		}
	}
	f.Secrets, err = secretValues(f.secrets)
	return dir, err
}

// inside returns the path of a file relative to dir. A relative one is looked for in the current directory
// and then in dir.
func inside(dir, file string) (string, error) {
	path, err := filepath.Abs(file)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(path); err != nil && !filepath.IsAbs(file) {
		path = filepath.Join(dir, file)
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("%s does not exist: name another with -f", file)
	}
	rel, err := filepath.Rel(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return "", fmt.Errorf("%s is outside of the context %s: name a context that holds both", file, dir)
	}
	return filepath.ToSlash(rel), nil
}

func keyValues(flag string, pairs []string, environment bool) (map[string]string, error) {
	out := map[string]string{}
	for _, p := range pairs {
		key, value, given := strings.Cut(p, "=")
		if !given && environment {
			if value, given = os.LookupEnv(key); !given {
				continue
			}
		}
		if key == "" || !given {
			return nil, fmt.Errorf("%s %q: KEY=VALUE is needed", flag, p)
		}
		out[key] = value
	}
	return out, nil
}

// secretValues reads secrets: id=ID,src=FILE or id=ID,env=NAME; of id=ID alone the environment's ID, else the
// file ID, as docker buildx does.
func secretValues(flags []string) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, flag := range flags {
		var id, src, env string
		for part := range strings.SplitSeq(flag, ",") {
			key, value, _ := strings.Cut(part, "=")
			switch key {
			case "id":
				id = value
			case "src", "source":
				src = value
			case "env":
				env = value
			case "type":
				switch value {
				case "env", "file":
				default:
					return nil, fmt.Errorf("--secret %q: type %q is not known: use file or env", flag, value)
				}
			default:
				return nil, fmt.Errorf("--secret %q: %q is not known: write id=ID,src=FILE or id=ID,env=NAME", flag, key)
			}
		}
		if id == "" {
			return nil, fmt.Errorf("--secret %q: id is missing: write id=ID,src=FILE or id=ID,env=NAME", flag)
		}
		if src == "" && env == "" {
			src = id
			if _, ok := os.LookupEnv(id); ok {
				src, env = "", id
			}
		}
		if env != "" {
			value, ok := os.LookupEnv(env)
			if !ok {
				return nil, fmt.Errorf("--secret %s: the environment has no %s", id, env)
			}
			out[id] = []byte(value)
			continue
		}
		value, err := os.ReadFile(src)
		if err != nil {
			return nil, fmt.Errorf("--secret %s: %w", id, err)
		}
		out[id] = value
	}
	return out, nil
}

// follow shows the progress of all jobs until they are finished. When ctx ends it cancels them.
func (a *app) follow(ctx context.Context, c *client.Client, mode string, jobs []api.Job) ([]api.Job, error) {
	d := startDisplay(context.WithoutCancel(ctx), a.stderr, mode)
	if mode != "rawjson" {
		d.wait()
	}
	waitCtx, abandon := context.WithCancelCause(context.WithoutCancel(ctx))
	defer abandon(nil)
	defer context.AfterFunc(ctx, func() {
		again := make(chan os.Signal, 1)
		signal.Notify(again, syscall.SIGINT, syscall.SIGTERM)
		go func() { <-again; abandon(context.Canceled) }()
		for _, j := range jobs {
			_, _ = c.Cancel(waitCtx, j.ID, "cancelled from the terminal")
		}
	})()
	ended, errs := make([]api.Job, len(jobs)), make([]error, len(jobs))
	var all sync.WaitGroup
	for i, j := range jobs {
		all.Go(func() {
			name := ""
			if len(jobs) > 1 {
				name = j.Name
			}
			err := c.Log(waitCtx, j.ID, true, func(f api.Frame) error { d.frame(name, j.ID, f); return nil })
			d.ended(j.ID)
			var waitErr error
			ended[i], waitErr = c.Wait(waitCtx, j.ID)
			if waitErr != nil {
				errs[i] = errors.Join(waitErr, err)
			}
		})
	}
	all.Wait()
	d.end()
	return ended, errors.Join(errs...)
}
