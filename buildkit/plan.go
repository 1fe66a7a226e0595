// Package buildkit builds images: it keeps one BuildKit worker a project in a sandbox of its own, and solves the targets
// of a Plan there, which package planfile reads from bake files and Dockerfiles.
package buildkit

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

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

// Input says what planfile.Read is to read.
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

// Outcome is what the program runnerd-plan answers to an Input, as JSON.
type Outcome struct {
	Plan  Plan   `json:"plan"`
	Error string `json:"error,omitempty"`
}

// What that program may use for one plan. Build files are programs, and strangers write them.
const (
	ReadCPU    = 5         // seconds
	ReadMemory = 512 << 20 // bytes
)

// Allowed refuses what no build may have, wherever it was asked for.
func (t Target) Allowed() error {
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
