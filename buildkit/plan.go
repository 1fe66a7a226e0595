// Package buildkit builds images: it reads bake files and Dockerfiles into a Plan, keeps one BuildKit
// worker a project in a sandbox of its own, and solves a plan's targets there.
package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

const maxFile = 1 << 20 // bytes of a bake file, a Dockerfile or a .env file that are read

// MaxTargets is how many targets a plan may have.
const MaxTargets = 1000

// Plan is what one build command builds: each target with all that it takes to build it. It is JSON, so
// that it can be kept in a queue, and holds no secret.
type Plan struct {
	Targets map[string]Target `json:"targets"`
	// Build are the targets that were asked for; the others are only built as their contexts.
	Build []string `json:"build"`
}

// Target is one image to build. Paths are relative to the directory that the plan was read from.
type Target struct {
	Context          string            `json:"context"`
	Contexts         map[string]string `json:"contexts,omitempty"` // "target:NAME", a path, or docker-image://
	Dockerfile       string            `json:"dockerfile"`         // relative to Context
	DockerfileInline string            `json:"dockerfile_inline,omitempty"`
	Stage            string            `json:"stage,omitempty"`
	Args             map[string]string `json:"args,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Annotations      []string          `json:"annotations,omitempty"` // "[TYPE:]KEY=VALUE" as of docker buildx
	Tags             []string          `json:"tags,omitempty"`
	Platforms        []string          `json:"platforms,omitempty"`
	Attest           map[string]string `json:"attest,omitempty"`  // type ("provenance", "sbom") to its attributes
	Network          string            `json:"network,omitempty"` // of RUN steps: "" or "none"
	NoCache          bool              `json:"no_cache,omitempty"`
	NoCacheFilter    []string          `json:"no_cache_filter,omitempty"`
	Pull             bool              `json:"pull,omitempty"`
	ShmSize          string            `json:"shm_size,omitempty"`
	ExtraHosts       map[string]string `json:"extra_hosts,omitempty"`
	Outputs          []Option          `json:"outputs,omitempty"`
	CacheFrom        []Option          `json:"cache_from,omitempty"`
	CacheTo          []Option          `json:"cache_to,omitempty"`
	Secrets          []Secret          `json:"secrets,omitempty"`
	SSH              []string          `json:"ssh,omitempty"`    // ids of agents to forward
	Images           []string          `json:"images,omitempty"` // that the Dockerfile names; Read finds them
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
	Files   []string // bake files or one Dockerfile, relative to Dir; none: what is there
	Targets []string // none: "default"
	Set     []string // bake overrides, "target.key=value"
	// Args are build arguments of the targets that are built; they take the place of those that a bake file gives.
	Args map[string]string
	// Vars are the values of bake variables. Nothing is looked up in the process's own environment.
	Vars map[string]string
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
		plan, err = readDockerfile(files, in.Targets)
	} else {
		plan, err = readBake(ctx, root, files, in)
	}
	if err != nil {
		return Plan{}, err
	}
	for _, name := range plan.Build {
		t := plan.Targets[name]
		for key, value := range in.Args {
			t.Args = withAttr(t.Args, key, value)
		}
		plan.Targets[name] = t
	}
	return plan, plan.check(root, in.Frontends)
}

// readDockerfile makes a plan of one Dockerfile; targets name a stage of it.
func readDockerfile(files, targets []string) (Plan, error) {
	target := Target{Context: ".", Dockerfile: "Dockerfile"}
	if len(files) == 1 {
		target.Dockerfile = files[0]
	}
	if len(targets) > 1 {
		return Plan{}, fmt.Errorf("%s has stages, of which one can be built: %d were named", target.Dockerfile, len(targets))
	} else if len(targets) == 1 && targets[0] != "default" {
		target.Stage = targets[0]
	}
	return Plan{Targets: map[string]Target{"default": target}, Build: []string{"default"}}, nil
}

// isDockerfile tells a Dockerfile from a bake file by its name, as buildx tells HCL from JSON and compose.
func isDockerfile(name string) bool {
	ext := filepath.Ext(name)
	return ext != ".hcl" && ext != ".json" && ext != ".yaml" && ext != ".yml"
}

// check validates the plan's paths and Dockerfiles.
func (p Plan) check(root *os.Root, frontends []string) error {
	if len(p.Build) == 0 {
		return errors.New("nothing to build: name a target, or define a group or target \"default\"")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(p.Targets)) {
		t := p.Targets[name]
		if err := p.checkTarget(root, &t, frontends); err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", name, err))
		}
		p.Targets[name] = t
	}
	return errors.Join(errs...)
}

func (p Plan) checkTarget(root *os.Root, t *Target, frontends []string) (err error) {
	if err := t.allowed(); err != nil {
		return err
	}
	if err := checkDir(root, t.Context); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t.Contexts)) {
		context := t.Contexts[name]
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
	text, where := []byte(t.DockerfileInline), "dockerfile-inline"
	if t.DockerfileInline == "" {
		if filepath.IsAbs(t.Dockerfile) {
			return fmt.Errorf("%s: name a Dockerfile relative to its context", t.Dockerfile)
		}
		where = filepath.Join(t.Context, t.Dockerfile)
		if text, err = readLimited(root, where); err != nil {
			return err
		}
	}
	t.Images, err = checkDockerfile(where, text, t.Stage, t.Args, frontends)
	t.Images = slices.DeleteFunc(t.Images, func(image string) bool { return t.Contexts[image] != "" })
	return err
}

// allowed refuses what no build may have, wherever it was asked for.
func (t Target) allowed() error {
	for arg := range t.Args {
		if arg == "BUILDKIT_SYNTAX" {
			return errors.New("build argument BUILDKIT_SYNTAX is denied: only the built-in Dockerfile frontend may run")
		}
	}
	if t.Network != "" && t.Network != "default" && t.Network != "none" {
		return fmt.Errorf("network %q is denied: use default or none", t.Network)
	}
	for _, o := range t.Outputs {
		if !slices.Contains(outputTypes, o.Type) {
			return fmt.Errorf("output type %q: use one of %s", o.Type, strings.Join(outputTypes, ", "))
		}
		if o.Attrs["tar"] == "false" {
			return fmt.Errorf("output type %q with tar=false is not supported: use type=local, or a tar file", o.Type)
		}
	}
	for _, c := range slices.Concat(t.CacheFrom, t.CacheTo) {
		// A "local" cache would be a directory of the daemon's machine.
		if c.Type != "registry" && c.Type != "inline" {
			return fmt.Errorf("cache type %q is not supported: use registry or inline", c.Type)
		}
	}
	return nil
}

// checkDir says whether a context is a directory in the root.
func checkDir(root *os.Root, dir string) error {
	if strings.Contains(dir, "://") || strings.HasPrefix(dir, "git@") {
		return fmt.Errorf("context %s: remote contexts are not supported: check it out first", dir)
	}
	info, err := root.Stat(filepath.Clean(dir))
	if err != nil {
		if !filepath.IsLocal(dir) || strings.Contains(err.Error(), "escapes") { // os.Root has no error to compare with
			return fmt.Errorf("context %s is outside %s: run from a directory that holds both", dir, root.Name())
		}
		return fmt.Errorf("context %s: %w", dir, pathless(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("context %s: not a directory", dir)
	}
	return nil
}

// readLimited reads a regular file of at most maxFile bytes in the root.
func readLimited(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(filepath.Clean(name)) // first: to open a FIFO would wait for its writer
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: name another with -f", name)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, pathless(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", name)
	}
	file, err := root.Open(filepath.Clean(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, pathless(err))
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, pathless(err))
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: at most %d are read", name, info.Size(), maxFile)
	}
	return text, nil
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

// Registries are the hosts, sorted, that building the plan asks for images and caches, and where it puts
// them: of all Docker's names, "docker.io" is Docker Hub's. What is only tagged is not pushed.
func (p Plan) Registries(push bool) []string {
	hosts := map[string]bool{}
	for _, ref := range p.references(push) {
		hosts[reference.Domain(ref)] = true
	}
	return slices.Sorted(maps.Keys(hosts))
}

// Below is the first image or cache, without its tag, that building the plan asks for or writes at or below a
// repository; empty: none.
func (p Plan) Below(repository string) string {
	for _, ref := range p.references(true) {
		if name := ref.Name(); name == repository || strings.HasPrefix(name, repository+"/") {
			return name
		}
	}
	return ""
}

// references are the images and caches that building the plan asks for and writes.
func (p Plan) references(push bool) (out []reference.Named) {
	add := func(name string) {
		if ref, err := reference.ParseNormalizedNamed(name); err == nil {
			out = append(out, ref)
		}
	}
	for name, t := range p.Targets {
		for _, image := range t.Images {
			add(image)
		}
		for _, context := range t.Contexts {
			if image, ok := strings.CutPrefix(context, "docker-image://"); ok {
				add(image)
			}
		}
		for _, c := range slices.Concat(t.CacheFrom, t.CacheTo) {
			add(c.Attrs["ref"])
		}
		if !slices.Contains(p.Build, name) {
			continue
		}
		pushed := push
		for _, o := range t.Outputs {
			if o.Type == "registry" || o.Attrs["push"] == "true" {
				pushed = true
				for image := range strings.SplitSeq(o.Attrs["name"], ",") {
					add(image)
				}
			}
		}
		if pushed {
			for _, tag := range t.Tags {
				add(tag)
			}
		}
	}
	return out
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
