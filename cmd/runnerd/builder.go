package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	bkclient "github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
)

// buildPayload is the payload of a job that builds one target. Its secrets are kept in the queue's memory, in
// the order of SecretIDs, and then for each of Registries its api.Credentials.Secrets.
type buildPayload struct {
	Plan       buildkit.Plan `json:"plan"`
	Target     string        `json:"target"`
	Push       bool          `json:"push,omitempty"`
	SecretIDs  []string      `json:"secret_ids,omitempty"`
	Registries []string      `json:"registries,omitempty"`
	SSH        []string      `json:"ssh,omitempty"`
}

// secrets takes apart what the queue has kept.
func (p buildPayload) secrets(values []string) (auth map[string]buildkit.Credentials, secrets map[string][]byte, err error) {
	if len(values) != len(p.SecretIDs)+2*len(p.Registries) {
		return nil, nil, errors.New("the build's secrets are gone: submit it again")
	}
	secrets = map[string][]byte{}
	for i, id := range p.SecretIDs {
		secrets[id] = []byte(values[i])
	}
	auth = map[string]buildkit.Credentials{}
	for i, host := range p.Registries {
		c, err := api.ReadCredentials(host, values[len(p.SecretIDs)+2*i:])
		if err != nil {
			return nil, nil, err
		}
		auth[host] = buildkit.Credentials(c)
	}
	return auth, secrets, nil
}

// maxPayloads is the size of all payloads of one build, bytes.
const maxPayloads = 64 << 20

// builder is the api.Builder: it reads build files.
type builder struct {
	read      func(context.Context, buildkit.Input) (buildkit.Plan, error)
	frontends []string // that "# syntax" lines may name
	registry  string   // the daemon's own, host:port
	share     string   // the repository of shared caches, which no build may name
}

func (bd builder) Plan(ctx context.Context, dir string, b api.Build) ([]api.Target, error) {
	plan, err := bd.plan(ctx, dir, b)
	if err != nil {
		return nil, err
	}
	if err := fetchable(plan, b); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	ids := slices.Sorted(maps.Keys(b.Secrets))
	values := make([]string, len(ids))
	for i, id := range ids {
		values[i] = string(b.Secrets[id])
	}
	var targets []api.Target
	size := 0
	for _, name := range plan.Build {
		part := plan.Closure(name)
		for _, t := range part.Targets {
			for _, s := range t.Secrets {
				if !slices.Contains(ids, s.ID) {
					return nil, fmt.Errorf("%w: target %s needs the secret %s: give it with --secret id=%s,src=FILE", api.ErrInvalid, name, s.ID, s.ID)
				}
			}
			for _, id := range t.SSH {
				if !slices.Contains(b.SSH, id) {
					return nil, fmt.Errorf("%w: target %s needs the ssh agent %s: give it with --ssh %s", api.ErrInvalid, name, id, id)
				}
			}
		}
		registries, credentials := credentialsOf(part, b)
		payload, err := json.Marshal(buildPayload{Plan: part, Target: name, Push: b.Push, SecretIDs: ids, Registries: registries, SSH: b.SSH})
		if err != nil {
			return nil, err
		}
		if size += len(payload); size > maxPayloads {
			return nil, fmt.Errorf("%w: the targets, each with those that it needs, are larger than %d bytes: build fewer at once, or split the bake file", api.ErrInvalid, maxPayloads)
		}
		targets = append(targets, api.Target{
			Request: runner.Request{Name: name, Nesting: sandbox.Nesting{sandbox.Container, sandbox.BuildKit}, Limits: b.Limits, Payload: payload},
			Secrets: slices.Concat(values, credentials),
		})
	}
	return targets, nil
}

// plan reads the build files and applies what the command line says.
func (bd builder) plan(ctx context.Context, dir string, b api.Build) (buildkit.Plan, error) {
	plan, err := bd.read(ctx, buildkit.Input{Dir: dir, Files: b.Files, Targets: b.Targets, Set: b.Set, Args: b.BuildArgs, Vars: b.Vars, Frontends: bd.frontends})
	if err != nil {
		return plan, err
	}
	if err := bd.adjust(&plan, b); err != nil {
		return plan, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	if name := plan.Below(bd.share); bd.share != "" && name != "" {
		return plan, fmt.Errorf("%w: %s holds the caches of all projects (builder.share), which no build may name", sandbox.ErrDenied, name)
	}
	return plan, nil
}

// credentialsOf are the credentials of the registries that a plan names, as buildPayload keeps them.
func credentialsOf(plan buildkit.Plan, b api.Build) (registries, secrets []string) {
	for _, host := range plan.Registries(b.Push) {
		if c, ok := b.Registries[host]; ok {
			registries = append(registries, host)
			secrets = append(secrets, c.Secrets()...)
		}
	}
	return registries, secrets
}

// fetchable says whether the client can put every output where it is wanted.
func fetchable(plan buildkit.Plan, b api.Build) error {
	stdout := 0
	for _, name := range plan.Build {
		for _, o := range plan.Targets[name].Outputs {
			dest := o.Attrs["dest"]
			switch o.Type {
			case "oci", "docker", "tar":
				if len(b.Outputs) > 0 && len(plan.Build) > 1 {
					return fmt.Errorf("one output of type %s for %d targets: name one target, or set outputs in the bake file", o.Type, len(plan.Build))
				}
				if dest == "" && o.Type == "docker" {
					return fmt.Errorf("target %s: output type=docker needs dest=FILE: there is no docker here to load it into", name)
				}
				if dest == "" || dest == "-" {
					stdout++
				}
			case "local":
				if dest == "" || dest == "-" {
					return fmt.Errorf("target %s: output type=local needs dest=DIR", name)
				}
			}
			if len(b.Outputs) == 0 && dest != "" && !filepath.IsLocal(dest) {
				return fmt.Errorf("target %s: output %s is outside of the context: say where with --output", name, dest)
			}
		}
	}
	if stdout > 1 {
		return fmt.Errorf("%d outputs go to the standard output: give all but one of them a dest", stdout)
	}
	return nil
}

var filePlace = regexp.MustCompile(`([^\s:]+):(\d+)(?:[:,](\d+))?(?:-\d+)?: (.*)`)

// fileError finds out where in the user's files an error is, if it says so.
func fileError(dir, text string) error {
	text = strings.ReplaceAll(text, dir+string(filepath.Separator), "")
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
	outputs, err := outputsOf(b.Outputs)
	if err != nil {
		return err
	}
	from, err := cachesOf("cache-from", b.CacheFrom)
	if err != nil {
		return err
	}
	to, err := cachesOf("cache-to", b.CacheTo)
	if err != nil {
		return err
	}
	for name, t := range p.Targets {
		for _, id := range slices.Sorted(maps.Keys(b.Secrets)) {
			if !slices.ContainsFunc(t.Secrets, func(s buildkit.Secret) bool { return s.ID == id }) {
				t.Secrets = append(t.Secrets, buildkit.Secret{ID: id})
			}
		}
		for _, id := range b.SSH {
			if !slices.Contains(t.SSH, id) {
				t.SSH = append(t.SSH, id)
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
		t.Labels = merged(t.Labels, b.Labels)
		t.Annotations = append(t.Annotations, b.Annotations...)
		t.NoCache, t.Pull = t.NoCache || b.NoCache, t.Pull || b.Pull
		for i, tag := range t.Tags { // the daemon's registry is known by name, whatever its port
			if rest, ok := strings.CutPrefix(tag, registryName+"/"); ok {
				t.Tags[i] = bd.registry + "/" + rest
			}
		}
		p.Targets[name] = t
	}
	return nil
}

func merged[V any](a, b map[string]V) map[string]V {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]V{}
	}
	maps.Copy(out, b)
	return out
}

// outputsOf reads outputs as docker buildx has them: type=T,key=value,…, a directory, or "-" for a tar to the
// standard output.
func outputsOf(texts []string) ([]buildkit.Option, error) {
	return options("output", texts, func(dest string) buildkit.Option {
		kind := bkclient.ExporterLocal
		if dest == "-" {
			kind = bkclient.ExporterTar
		}
		return buildkit.Option{Type: kind, Attrs: map[string]string{"dest": dest}}
	})
}

// cachesOf reads caches as docker buildx has them: type=T,key=value,…, or the reference of one in a registry.
func cachesOf(flag string, texts []string) ([]buildkit.Option, error) {
	return options(flag, texts, func(ref string) buildkit.Option {
		return buildkit.Option{Type: "registry", Attrs: map[string]string{"ref": ref}}
	})
}

// options reads type=T,key=value,…; short makes one of a single word.
func options(flag string, texts []string, short func(string) buildkit.Option) ([]buildkit.Option, error) {
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
			case len(fields) == 1:
				o = short(f)
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
