// Package buildkit builds images: it reads bake files and Dockerfiles into a Plan, keeps one BuildKit
// worker a project in a sandbox of its own, and solves a plan's targets there.
package buildkit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/docker/buildx/bake"
	"github.com/docker/buildx/util/buildflags"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

const (
	maxFile    = 1 << 20 // bytes of a bake file or Dockerfile that are read
	maxTargets = 1000
)

// bakeFiles are looked for, in this order, when no file is named (docker/buildx, bake.go,
// defaultFilenames); later ones are merged into earlier ones.
var bakeFiles = []string{
	"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml",
	"docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl",
}

// Plan is what one build command builds: each target with all that it takes to build it.
type Plan struct {
	Targets map[string]Target `json:"targets"`
	// Build are the targets that were asked for; the others are only built as their contexts.
	Build []string `json:"build"`
}

// Target is one image to build. Paths are relative to the directory that the plan was read from.
type Target struct {
	Context          string            `json:"context"`
	Contexts         map[string]string `json:"contexts,omitempty"` // "target:NAME", a path, or docker-image://
	Dockerfile       string            `json:"dockerfile"`
	DockerfileInline string            `json:"dockerfile_inline,omitempty"`
	Stage            string            `json:"stage,omitempty"`
	Args             map[string]string `json:"args,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Annotations      []string          `json:"annotations,omitempty"`
	Tags             []string          `json:"tags,omitempty"`
	Platforms        []string          `json:"platforms,omitempty"`
	NoCache          bool              `json:"no_cache,omitempty"`
	NoCacheFilter    []string          `json:"no_cache_filter,omitempty"`
	Pull             bool              `json:"pull,omitempty"`
	ShmSize          string            `json:"shm_size,omitempty"`
	ExtraHosts       map[string]string `json:"extra_hosts,omitempty"`
	Outputs          []Option          `json:"outputs,omitempty"`
	CacheFrom        []Option          `json:"cache_from,omitempty"`
	CacheTo          []Option          `json:"cache_to,omitempty"`
	Secrets          []Secret          `json:"secrets,omitempty"`
	SSH              []string          `json:"ssh,omitempty"` // ids of agents to forward
}

// Option is an output, or a cache to import or export, such as type=registry,ref=….
type Option struct {
	Type  string            `json:"type"`
	Attrs map[string]string `json:"attrs,omitempty"`
}

// Secret names a secret of a build and where the client finds its value; the value itself is never part of
// a plan.
type Secret struct {
	ID   string `json:"id"`
	File string `json:"file,omitempty"`
	Env  string `json:"env,omitempty"`
}

// Input says what to read.
type Input struct {
	Dir     string   // all local paths lie in it
	Files   []string // bake files or one Dockerfile; none: what is there
	Targets []string // none: "default"
	Set     []string // bake overrides, "target.key=value"
	Vars    map[string]string
	// Frontends are images that "# syntax" lines may name besides docker/dockerfile; the built-in frontend
	// serves them all.
	Frontends []string
}

// Read reads a plan from bake files, or from a Dockerfile as its one target "default". Every error of the
// input is found here, before anything is started: what is missing, what does not parse and where, what
// lies outside the directory, what is not allowed.
func Read(ctx context.Context, in Input) (Plan, error) {
	root, err := os.OpenRoot(in.Dir)
	if err != nil {
		return Plan{}, fmt.Errorf("build context: %w", err)
	}
	defer root.Close()
	files := in.Files
	if len(files) == 0 {
		for _, name := range bakeFiles {
			if _, err := root.Stat(name); err == nil {
				files = append(files, name)
			}
		}
	}
	var plan Plan
	if len(files) == 0 || len(files) == 1 && isDockerfile(files[0]) {
		dockerfile := "Dockerfile"
		if len(files) == 1 {
			dockerfile = files[0]
		}
		stage := ""
		if len(in.Targets) > 1 {
			return Plan{}, fmt.Errorf("%s has stages, of which one can be built: %d were named", dockerfile, len(in.Targets))
		} else if len(in.Targets) == 1 && in.Targets[0] != "default" {
			stage = in.Targets[0]
		}
		plan = Plan{Targets: map[string]Target{"default": {Context: ".", Dockerfile: dockerfile, Stage: stage}}, Build: []string{"default"}}
	} else if plan, err = readBake(ctx, root, files, in); err != nil {
		return Plan{}, err
	}
	return plan, plan.check(root, in.Frontends)
}

// isDockerfile tells a Dockerfile from a bake file by its name, as buildx tells HCL from JSON and compose.
func isDockerfile(name string) bool {
	ext := filepath.Ext(name)
	return ext != ".hcl" && ext != ".json" && ext != ".yaml" && ext != ".yml"
}

func readBake(ctx context.Context, root *os.Root, names []string, in Input) (Plan, error) {
	var files []bake.File
	for _, name := range names {
		data, err := readLimited(root, name)
		if err != nil {
			return Plan{}, err
		}
		files = append(files, bake.File{Name: name, Data: data})
	}
	asked := slices.Clone(in.Targets)
	if len(asked) == 0 {
		asked = []string{"default"}
	}
	targets, groups, err := bake.ReadTargets(ctx, files, asked, in.Set, nil, in.Vars, nil)
	if err != nil {
		return Plan{}, fmt.Errorf("bake: %w", err)
	}
	if len(targets) > maxTargets {
		return Plan{}, fmt.Errorf("bake: %d targets: at most %d", len(targets), maxTargets)
	}
	plan := Plan{Targets: map[string]Target{}}
	for name, t := range targets {
		converted, err := targetOf(t)
		if err != nil {
			return Plan{}, fmt.Errorf("bake: target %s: %w", name, err)
		}
		plan.Targets[name] = converted
	}
	build := map[string]bool{}
	var resolve func(name string)
	resolve = func(name string) {
		if _, ok := plan.Targets[name]; ok {
			build[name] = true
		}
		if g := groups[name]; g != nil {
			for _, member := range g.Targets {
				if member != name {
					resolve(member)
				}
			}
		}
	}
	resolve("default")
	plan.Build = slices.Sorted(maps.Keys(build))
	return plan, nil
}

// targetOf takes over what of a bake target we honour, and refuses the rest rather than ignore it.
func targetOf(t *bake.Target) (Target, error) {
	out := Target{
		Context: ".", Dockerfile: "Dockerfile", Contexts: t.Contexts, Tags: t.Tags, Platforms: t.Platforms,
		NoCacheFilter: t.NoCacheFilter, Annotations: t.Annotations,
		Args: values(t.Args), Labels: values(t.Labels), ExtraHosts: values(t.ExtraHosts),
	}
	set := func(to *string, from *string) {
		if from != nil {
			*to = *from
		}
	}
	set(&out.Context, t.Context)
	set(&out.Dockerfile, t.Dockerfile)
	set(&out.DockerfileInline, t.DockerfileInline)
	set(&out.Stage, t.Target)
	set(&out.ShmSize, t.ShmSize)
	out.NoCache = t.NoCache != nil && *t.NoCache
	out.Pull = t.Pull != nil && *t.Pull
	if len(t.Entitlements) > 0 {
		return out, fmt.Errorf("entitlements %v are denied: a build in runnerd gets none", t.Entitlements)
	}
	if t.NetworkMode != nil && *t.NetworkMode != "" && *t.NetworkMode != "default" && *t.NetworkMode != "none" {
		return out, fmt.Errorf("network %q is denied: use default or none", *t.NetworkMode)
	}
	if len(t.Ulimits) > 0 {
		return out, errors.New("ulimits are not supported: remove them")
	}
	for _, o := range t.Outputs {
		attrs := maps.Clone(o.Attrs)
		if o.Destination != "" {
			attrs = withAttr(attrs, "dest", o.Destination)
		}
		out.Outputs = append(out.Outputs, Option{o.Type, attrs})
	}
	cache := func(options buildflags.CacheOptions) (all []Option) {
		for _, o := range options {
			all = append(all, Option{o.Type, o.Attrs})
		}
		return all
	}
	out.CacheFrom, out.CacheTo = cache(t.CacheFrom), cache(t.CacheTo)
	for _, s := range t.Secrets {
		out.Secrets = append(out.Secrets, Secret{ID: s.ID, File: s.FilePath, Env: s.Env})
	}
	for _, s := range t.SSH {
		out.SSH = append(out.SSH, s.ID)
	}
	return out, nil
}

func withAttr(attrs map[string]string, key, value string) map[string]string {
	if attrs == nil {
		attrs = map[string]string{}
	}
	attrs[key] = value
	return attrs
}

func values(from map[string]*string) map[string]string {
	to := map[string]string{}
	for k, v := range from {
		if v != nil {
			to[k] = *v
		}
	}
	return to
}

// check validates the plan's paths and Dockerfiles.
func (p Plan) check(root *os.Root, frontends []string) error {
	if len(p.Build) == 0 {
		return errors.New("nothing to build: name a target, or define a group or target \"default\"")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(p.Targets)) {
		if err := p.checkTarget(root, p.Targets[name], frontends); err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (p Plan) checkTarget(root *os.Root, t Target, frontends []string) error {
	if _, custom := t.Args["BUILDKIT_SYNTAX"]; custom {
		return errors.New("build argument BUILDKIT_SYNTAX is denied: only the built-in Dockerfile frontend may run")
	}
	if err := checkDir(root, t.Context); err != nil {
		return err
	}
	for name, context := range t.Contexts {
		if linked, ok := strings.CutPrefix(context, "target:"); ok {
			if _, ok := p.Targets[linked]; !ok {
				return fmt.Errorf("context %s: no target %q", name, linked)
			}
			continue
		}
		if strings.HasPrefix(context, "docker-image://") {
			continue
		}
		if err := checkDir(root, context); err != nil {
			return fmt.Errorf("context %s: %w", name, err)
		}
	}
	text := []byte(t.DockerfileInline)
	where := "dockerfile-inline"
	if t.DockerfileInline == "" {
		where = filepath.Join(t.Context, t.Dockerfile)
		var err error
		if text, err = readLimited(root, where); err != nil {
			return err
		}
	}
	return checkDockerfile(where, text, frontends)
}

// checkDir says whether a context is a directory in the root.
func checkDir(root *os.Root, dir string) error {
	if strings.Contains(dir, "://") || strings.HasPrefix(dir, "git@") {
		return fmt.Errorf("context %s: remote contexts are not supported: check it out first", dir)
	}
	info, err := root.Stat(filepath.Clean(dir))
	if err != nil {
		if !filepath.IsLocal(dir) {
			return fmt.Errorf("context %s is outside %s: run from a directory that holds both", dir, root.Name())
		}
		return fmt.Errorf("context %s: %w", dir, pathless(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("context %s: not a directory", dir)
	}
	return nil
}

// checkDockerfile parses a Dockerfile and refuses foreign frontends: "# syntax=docker/dockerfile…" is what
// the built-in frontend speaks, so it serves it.
func checkDockerfile(name string, text []byte, frontends []string) error {
	if ref, _, _, ok := parser.DetectSyntax(text); ok {
		image, _, _ := strings.Cut(ref, "@")
		image, _, _ = strings.Cut(image, ":")
		if image != "docker/dockerfile" && image != "docker.io/docker/dockerfile" && !slices.Contains(frontends, image) {
			return fmt.Errorf("%s: # syntax=%s is denied: only the built-in Dockerfile frontend may run", name, ref)
		}
	}
	result, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, node := range result.AST.Children {
		if !instructions[strings.ToUpper(node.Value)] {
			return fmt.Errorf("%s:%d: unknown instruction %s", name, node.StartLine, node.Value)
		}
	}
	return nil
}

// instructions are a Dockerfile's (moby/buildkit, frontend/dockerfile/command).
var instructions = map[string]bool{
	"ADD": true, "ARG": true, "CMD": true, "COPY": true, "ENTRYPOINT": true, "ENV": true, "EXPOSE": true, "FROM": true,
	"HEALTHCHECK": true, "LABEL": true, "MAINTAINER": true, "ONBUILD": true, "RUN": true, "SHELL": true,
	"STOPSIGNAL": true, "USER": true, "VOLUME": true, "WORKDIR": true,
}

func readLimited(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(filepath.Clean(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: name another with -f", name)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, pathless(err))
	}
	if info.Size() > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: at most %d are read", name, info.Size(), maxFile)
	}
	return root.ReadFile(filepath.Clean(name))
}

// pathless takes the path off an error whose message names it already.
func pathless(err error) error {
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		return pathError.Err
	}
	return err
}

// Closure is the part of the plan that it takes to build one target.
func (p Plan) Closure(name string) Plan {
	part := Plan{Targets: map[string]Target{}, Build: []string{name}}
	var add func(string)
	add = func(name string) {
		if _, done := part.Targets[name]; done {
			return
		}
		t, ok := p.Targets[name]
		if !ok {
			return
		}
		part.Targets[name] = t
		for _, context := range t.Contexts {
			if linked, ok := strings.CutPrefix(context, "target:"); ok {
				add(linked)
			}
		}
	}
	add(name)
	return part
}

// SecretIDs are the ids of all secrets that the plan's targets use, sorted.
func (p Plan) SecretIDs() []string {
	ids := map[string]bool{}
	for _, t := range p.Targets {
		for _, s := range t.Secrets {
			ids[s.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(ids))
}
