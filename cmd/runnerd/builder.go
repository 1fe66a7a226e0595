package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	bkclient "github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// buildPayload is the payload of a job that builds one target. Its secrets are kept in the queue's memory, in
// the order of SecretIDs.
type buildPayload struct {
	Plan      buildkit.Plan `json:"plan"`
	Target    string        `json:"target"`
	Push      bool          `json:"push,omitempty"`
	SecretIDs []string      `json:"secret_ids,omitempty"`
}

// builder is the api.Builder: it reads build files.
type builder struct {
	frontends []string // that "# syntax" lines may name
	registry  string   // the daemon's own, host:port
}

func (bd builder) Plan(ctx context.Context, dir string, b api.Build) ([]api.Target, error) {
	plan, err := buildkit.Read(ctx, buildkit.Input{Dir: dir, Files: b.Files, Targets: b.Targets, Set: b.Set, Vars: b.Vars, Frontends: bd.frontends})
	if err != nil {
		return nil, fileError(dir, err)
	}
	if err := bd.adjust(&plan, b); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	ids := slices.Sorted(maps.Keys(b.Secrets))
	values := make([]string, len(ids))
	for i, id := range ids {
		values[i] = string(b.Secrets[id])
	}
	var targets []api.Target
	for _, name := range plan.Build {
		part := plan.Closure(name)
		for _, t := range part.Targets {
			for _, s := range t.Secrets {
				if !slices.Contains(ids, s.ID) {
					return nil, fmt.Errorf("%w: target %s needs the secret %s: give it with --secret id=%s,src=FILE", api.ErrInvalid, name, s.ID, s.ID)
				}
			}
		}
		payload, err := json.Marshal(buildPayload{Plan: part, Target: name, Push: b.Push, SecretIDs: ids})
		if err != nil {
			return nil, err
		}
		targets = append(targets, api.Target{
			Request: runner.Request{Name: name, Nesting: sandbox.Nesting{sandbox.Container, sandbox.BuildKit}, Limits: b.Limits, Payload: payload},
			Secrets: values,
		})
	}
	return targets, nil
}

var filePlace = regexp.MustCompile(`([^\s:]+):(\d+)(?:[:,](\d+))?(?:-\d+)?: (.*)`)

// fileError finds out where in the user's files an error is, if it says so.
func fileError(dir string, err error) error {
	text := strings.ReplaceAll(err.Error(), dir+string(filepath.Separator), "")
	if m := filePlace.FindStringSubmatch(text); m != nil {
		line, _ := strconv.Atoi(m[2])
		column, _ := strconv.Atoi(m[3])
		return &api.FileError{File: m[1], Line: line, Column: column, Message: m[4]}
	}
	return fmt.Errorf("%w: %s", api.ErrInvalid, text)
}

// adjust applies what was asked for on the command line, to all targets that are built.
func (bd builder) adjust(p *buildkit.Plan, b api.Build) error {
	dockerfile := len(p.Build) == 1 && p.Build[0] == "default" && len(b.Targets) == 1 && b.Targets[0] != "default"
	if len(b.Tags) > 0 && len(p.Build) > 1 {
		return fmt.Errorf("one tag for %d targets: name one target, or set tags in the bake file", len(p.Build))
	}
	outputs, err := options("output", b.Outputs)
	if err != nil {
		return err
	}
	from, err := options("cache-from", b.CacheFrom)
	if err != nil {
		return err
	}
	to, err := options("cache-to", b.CacheTo)
	if err != nil {
		return err
	}
	for name, t := range p.Targets {
		for _, id := range slices.Sorted(maps.Keys(b.Secrets)) {
			if !slices.ContainsFunc(t.Secrets, func(s buildkit.Secret) bool { return s.ID == id }) {
				t.Secrets = append(t.Secrets, buildkit.Secret{ID: id})
			}
		}
		p.Targets[name] = t
	}
	for _, name := range p.Build {
		t := p.Targets[name]
		if dockerfile {
			t.Stage = b.Targets[0]
		}
		if len(b.Tags) > 0 {
			t.Tags = b.Tags
		}
		if len(b.Platforms) > 0 {
			t.Platforms = b.Platforms
		}
		if len(outputs) > 0 {
			t.Outputs = outputs
		}
		t.CacheFrom, t.CacheTo = append(t.CacheFrom, from...), append(t.CacheTo, to...)
		t.Args, t.Labels = merged(t.Args, b.BuildArgs), merged(t.Labels, b.Labels)
		t.Annotations = append(t.Annotations, b.Annotations...)
		t.NoCache, t.Pull = t.NoCache || b.NoCache, t.Pull || b.Pull
		for _, o := range t.Outputs {
			if o.Type != "registry" && o.Type != "image" && o.Type != "cacheonly" {
				return fmt.Errorf("target %s: output type %q cannot be fetched from the daemon: use --push", name, o.Type)
			}
		}
		for i, tag := range t.Tags { // the daemon's registry is known by name, whatever its port
			if rest, ok := strings.CutPrefix(tag, registryName+"/"); ok {
				t.Tags[i] = bd.registry + "/" + rest
			}
		}
		p.Targets[name] = t
	}
	return nil
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]string{}
	}
	maps.Copy(out, b)
	return out
}

// options reads type=T,key=value,… as docker buildx has it.
func options(flag string, texts []string) ([]buildkit.Option, error) {
	var out []buildkit.Option
	for _, text := range texts {
		fields, err := csv.NewReader(strings.NewReader(text)).Read()
		if err != nil {
			return nil, fmt.Errorf("--%s %q: %w", flag, text, err)
		}
		o := buildkit.Option{Attrs: map[string]string{}}
		for _, f := range fields {
			key, value, ok := strings.Cut(f, "=")
			switch {
			case key == "type" && ok:
				o.Type = value
			case ok:
				o.Attrs[key] = value
			case len(fields) == 1 && flag == "output":
				o.Type, o.Attrs["dest"] = "local", f
			case len(fields) == 1:
				o.Type, o.Attrs["ref"] = "registry", f
			default:
				return nil, fmt.Errorf("--%s %q: key=value is needed, not %q", flag, text, f)
			}
		}
		if o.Type == "" {
			return nil, fmt.Errorf("--%s %q: type is missing", flag, text)
		}
		out = append(out, o)
	}
	return out, nil
}

// buildStep builds one target with the project's worker, which is the job's sandbox.
type buildStep struct {
	build  buildkit.Build
	detail json.RawMessage
}

// newBuildStep reads a request of KindBuild when its turn has come.
func newBuildStep(ctx context.Context, r runner.Request, dir, outputs string, insecure func(string) bool) (*buildStep, error) {
	var p buildPayload
	if err := json.Unmarshal(r.Payload, &p); err != nil {
		return nil, fmt.Errorf("read the build: %w", err)
	}
	values := queue.SubmittedSecrets(ctx)
	if len(values) != len(p.SecretIDs) {
		return nil, errors.New("the build's secrets are gone: submit it again")
	}
	secrets := map[string][]byte{}
	for i, id := range p.SecretIDs {
		secrets[id] = []byte(values[i])
	}
	return &buildStep{build: buildkit.Build{
		Dir: dir, Plan: p.Plan, Target: p.Target, Secrets: secrets, Push: p.Push, Insecure: insecure, OutputDir: outputs,
	}}, nil
}

func (s *buildStep) Name() string { return "build " + s.build.Target }

// Detail is the buildkit.Result.
func (s *buildStep) Detail() json.RawMessage { return s.detail }

func (s *buildStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	lease, ok := on.(*buildkit.Lease)
	if !ok {
		return sandbox.Exit{}, fmt.Errorf("a build needs a builder, not %T", on)
	}
	if s.build.OutputDir != "" && len(s.build.Plan.Targets[s.build.Target].Outputs) > 0 {
		if err := os.MkdirAll(s.build.OutputDir, 0o700); err != nil {
			return sandbox.Exit{}, err
		}
	}
	progress := out.Stream(runner.Progress)
	result, err := s.build.Run(ctx, lease.Client, func(status *bkclient.SolveStatus) {
		if text, err := json.Marshal(status); err == nil {
			_, _ = progress.Write(text)
		}
	})
	s.detail, _ = json.Marshal(result)
	var failed *buildkit.StepError
	if errors.As(err, &failed) {
		_, _ = fmt.Fprintf(out.Stream(runner.Stderr), "%s: %v\n", failed.Step, failed.Err)
		return sandbox.Exit{Code: max(failed.Code, 1)}, nil
	}
	return sandbox.Exit{}, err
}
