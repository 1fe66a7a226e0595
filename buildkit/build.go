package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/tonistiigi/fsutil"
)

// Build is one target of a plan, ready to be built.
type Build struct {
	Dir     string // holds all local paths of the plan
	Plan    Plan   // Target and all it takes
	Target  string
	Secrets map[string][]byte // values by id; memory only
	// Push sends the image to the registry that its tags name, over plain HTTP if Insecure says so.
	Push     bool
	Insecure func(host string) bool
	// OutputDir receives what "type=oci", "docker", "tar" and "local" outputs write.
	OutputDir string
}

// Result is what came of a build.
type Result struct {
	Target   string        `json:"target"`
	Digest   string        `json:"digest,omitempty"` // of the image's manifest or index
	Tags     []string      `json:"tags,omitempty"`
	Steps    int           `json:"steps"`  // of the Dockerfile: what is neither internal nor metadata
	Cached   int           `json:"cached"` // of Steps, those that the cache held
	Duration time.Duration `json:"duration_ns"`
	Outputs  []string      `json:"outputs,omitempty"` // files in OutputDir
}

// StepError is a build that failed by the user's doing: a command's exit code, a file that is not there.
type StepError struct {
	Step string // as the Dockerfile has it
	Code int    // the command's exit code; 1 where there is none
	Err  error
}

func (e *StepError) Error() string { return e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// Run builds the target with a worker's client. progress is called with every status BuildKit sends, from
// one goroutine. A build that fails by the user's doing is a *StepError.
func (b Build) Run(ctx context.Context, c *client.Client, progress func(*client.SolveStatus)) (Result, error) {
	began := time.Now()
	opt, err := b.solveOpt()
	if err != nil {
		return Result{}, err
	}
	statuses := make(chan *client.SolveStatus)
	tally := newTally()
	var follow sync.WaitGroup
	follow.Go(func() {
		for status := range statuses {
			tally.add(status)
			if progress != nil {
				progress(status)
			}
		}
	})
	response, err := c.Build(ctx, opt, "runnerd", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		return solver{b, gw, map[string]*gateway.Result{}}.solve(ctx, b.Target, nil)
	}, statuses)
	follow.Wait()
	result := Result{Target: b.Target, Tags: b.Plan.Targets[b.Target].Tags, Duration: time.Since(began)}
	result.Steps, result.Cached = tally.count()
	if err != nil {
		if ctx.Err() != nil {
			return result, context.Cause(ctx)
		}
		return result, classify(err, tally)
	}
	result.Digest = response.ExporterResponse[exptypes.ExporterImageDigestKey]
	for _, e := range opt.Exports {
		if name := e.Attrs["dest"]; name != "" {
			result.Outputs = append(result.Outputs, name)
		}
	}
	return result, nil
}

// localKey names a local directory to BuildKit, the same for all targets that use it, so that it is sent
// once.
func localKey(dir string) string { return "dir:" + filepath.Clean(dir) }

// dockerfileKey names a directory that a Dockerfile is read from; what .dockerignore excludes is in it.
func dockerfileKey(dir string) string { return "dockerfile:" + filepath.Clean(dir) }

func dockerfileDir(t Target) string { return filepath.Dir(filepath.Join(t.Context, t.Dockerfile)) }

// contextFS is a directory without what its .dockerignore excludes.
func contextFS(dir string) (fsutil.FS, error) {
	all, err := fsutil.NewFS(dir)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(filepath.Join(dir, ".dockerignore"))
	if errors.Is(err, os.ErrNotExist) {
		return all, nil
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	patterns, err := ignorefile.ReadAll(io.LimitReader(file, maxFile))
	if err != nil {
		return nil, fmt.Errorf(".dockerignore: %w", err)
	}
	return fsutil.NewFilterFS(all, &fsutil.FilterOpt{ExcludePatterns: patterns})
}

// solveOpt says what the session offers: directories, secrets, and where the result goes.
func (b Build) solveOpt() (client.SolveOpt, error) {
	target := b.Plan.Targets[b.Target]
	opt := client.SolveOpt{LocalMounts: map[string]fsutil.FS{}}
	offer := func(key, dir string, open func(string) (fsutil.FS, error)) error {
		if opt.LocalMounts[key] != nil {
			return nil
		}
		local, err := open(filepath.Join(b.Dir, dir))
		if err != nil {
			return fmt.Errorf("context %s: %w", dir, err)
		}
		opt.LocalMounts[key] = local
		return nil
	}
	for _, t := range b.Plan.Targets {
		if err := offer(localKey(t.Context), t.Context, contextFS); err != nil {
			return opt, err
		}
		if dir := dockerfileDir(t); t.DockerfileInline == "" {
			if err := offer(dockerfileKey(dir), dir, fsutil.NewFS); err != nil {
				return opt, err
			}
		}
		for _, c := range t.Contexts {
			if strings.HasPrefix(c, "target:") || strings.Contains(c, "://") {
				continue
			}
			if err := offer(localKey(c), c, contextFS); err != nil {
				return opt, err
			}
		}
	}
	secrets := map[string][]byte{}
	for _, t := range b.Plan.Targets {
		for _, s := range t.Secrets {
			value, ok := b.Secrets[s.ID]
			if !ok {
				return opt, fmt.Errorf("secret %q has no value: give it with --secret id=%s,src=FILE or env=NAME", s.ID, s.ID)
			}
			secrets[s.ID] = value
		}
	}
	opt.Session = []session.Attachable{secretsprovider.FromMap(secrets)}
	for _, c := range target.CacheFrom {
		opt.CacheImports = append(opt.CacheImports, client.CacheOptionsEntry(c))
	}
	for _, c := range target.CacheTo {
		opt.CacheExports = append(opt.CacheExports, client.CacheOptionsEntry(c))
	}
	return opt, b.exports(&opt, target)
}

// exports turns the target's outputs, and Push, into BuildKit's.
func (b Build) exports(opt *client.SolveOpt, target Target) error {
	annotate := func(attrs map[string]string) map[string]string {
		for _, a := range target.Annotations {
			key, value, _ := strings.Cut(a, "=")
			attrs["annotation."+key] = value
		}
		return attrs
	}
	outputs := slices.Clone(target.Outputs)
	if b.Push {
		outputs = append(outputs, Option{Type: "registry"})
	} else if len(outputs) == 0 {
		outputs = append(outputs, Option{Type: "image"}) // kept in the worker, for its digest
	}
	for i, output := range outputs {
		attrs := maps.Clone(output.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		if attrs["name"] == "" && len(target.Tags) > 0 {
			attrs["name"] = strings.Join(target.Tags, ",")
		}
		switch output.Type {
		case "registry", "image":
			if output.Type == "registry" {
				attrs["push"] = "true"
			}
			if attrs["push"] == "true" {
				if attrs["name"] == "" {
					return errors.New("nothing to push: give the target a tag (-t, or tags in the bake file)")
				}
				host, _, _ := strings.Cut(attrs["name"], "/")
				if b.Insecure != nil && b.Insecure(host) {
					attrs["registry.insecure"] = "true"
				}
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterImage, Attrs: annotate(attrs)})
		case client.ExporterOCI, client.ExporterDocker, client.ExporterTar:
			name := attrs["dest"]
			if name == "" {
				name = fmt.Sprintf("%s-%d.%s.tar", b.Target, i, output.Type)
			}
			if !filepath.IsLocal(name) {
				return fmt.Errorf("output %s is outside the output directory: give a relative name", name)
			}
			file, err := b.outputFile(name)
			if err != nil {
				return err
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: output.Type, Attrs: annotate(attrs), Output: file})
		case client.ExporterLocal:
			name := attrs["dest"]
			if name == "" {
				name = b.Target
			}
			if !filepath.IsLocal(name) {
				return fmt.Errorf("output %s is outside the output directory: give a relative name", name)
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: output.Type, Attrs: attrs, OutputDir: filepath.Join(b.OutputDir, name)})
		case "cacheonly":
		default:
			return fmt.Errorf("output type %q: use registry, image, oci, docker, tar, local or cacheonly", output.Type)
		}
	}
	return nil
}

func (b Build) outputFile(name string) (filesync.FileOutputFunc, error) {
	if b.OutputDir == "" {
		return nil, errors.New("this build has nowhere to write files to: push it instead")
	}
	path := filepath.Join(b.OutputDir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return func(map[string]string) (writer, error) { return os.Create(path) }, nil
}

// solver solves a plan's targets in one BuildKit build, each once.
type solver struct {
	Build
	gw   gateway.Client
	done map[string]*gateway.Result
}

// solve solves a target, first those that are its contexts.
func (s solver) solve(ctx context.Context, name string, path []string) (*gateway.Result, error) {
	if slices.Contains(path, name) {
		return nil, fmt.Errorf("targets need each other: %s", strings.Join(append(path, name), " → "))
	}
	if result := s.done[name]; result != nil {
		return result, nil
	}
	t := s.Plan.Targets[name]
	request := gateway.SolveRequest{
		Frontend: "dockerfile.v0", FrontendOpt: attributes(t), FrontendInputs: map[string]*pb.Definition{}, Evaluate: true,
	}
	for _, c := range t.CacheFrom {
		request.CacheImports = append(request.CacheImports, gateway.CacheOptionsEntry(c))
	}
	// The frontend knows one directory by the name "context", a plan has many: each goes in as an input.
	context, err := llb.Local(localKey(t.Context), llb.SharedKeyHint(localKey(t.Context)),
		llb.WithCustomName("[internal] load build context")).Marshal(ctx)
	if err != nil {
		return nil, err
	}
	request.FrontendInputs["context"] = context.ToPB()
	if t.DockerfileInline != "" {
		def, err := llb.Scratch().File(llb.Mkfile("Dockerfile", 0o644, []byte(t.DockerfileInline))).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		request.FrontendInputs["dockerfile"] = def.ToPB()
	}
	for as, from := range t.Contexts {
		linked, ok := strings.CutPrefix(from, "target:")
		if !ok {
			continue
		}
		result, err := s.solve(ctx, linked, append(path, name))
		if err != nil {
			return nil, err
		}
		if err := link(ctx, &request, as, result); err != nil {
			return nil, fmt.Errorf("context %s: %w", as, err)
		}
	}
	result, err := s.gw.Solve(ctx, request)
	if err != nil {
		return nil, err
	}
	s.done[name] = result
	return result, nil
}

// link passes one target's result to another as a named context, with its image configuration, as buildx
// does (build/opt.go).
func link(ctx context.Context, request *gateway.SolveRequest, as string, result *gateway.Result) error {
	ref, err := result.SingleRef()
	if err != nil {
		return err
	}
	state, err := ref.ToState()
	if err != nil {
		return err
	}
	def, err := state.Marshal(ctx)
	if err != nil {
		return err
	}
	request.FrontendInputs[as] = def.ToPB()
	request.FrontendOpt["context:"+as] = "input:" + as
	if config, ok := result.Metadata[exptypes.ExporterImageConfigKey]; ok {
		metadata, err := json.Marshal(map[string][]byte{exptypes.ExporterImageConfigKey: config})
		if err != nil {
			return err
		}
		request.FrontendOpt["input-metadata:"+as] = string(metadata)
	}
	return nil
}

// attributes are the Dockerfile frontend's options (moby/buildkit, frontend/dockerui/config.go).
func attributes(t Target) map[string]string {
	attrs := map[string]string{
		// Set, it keeps the frontend from looking for a "# syntax" line; Read has judged that line.
		"cmdline":  "docker/dockerfile",
		"filename": filepath.Base(t.Dockerfile),
	}
	if t.DockerfileInline == "" {
		attrs["dockerfilekey"] = dockerfileKey(dockerfileDir(t))
	} else {
		attrs["filename"] = "Dockerfile"
	}
	for k, v := range t.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range t.Labels {
		attrs["label:"+k] = v
	}
	for as, context := range t.Contexts {
		switch {
		case strings.HasPrefix(context, "target:"):
		case strings.Contains(context, "://"):
			attrs["context:"+as] = context
		default:
			attrs["context:"+as] = "local:" + localKey(context)
		}
	}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	set("target", t.Stage)
	set("platform", strings.Join(t.Platforms, ","))
	set("shm-size", t.ShmSize)
	if t.NoCache {
		attrs["no-cache"] = ""
	} else {
		set("no-cache", strings.Join(t.NoCacheFilter, ","))
	}
	if t.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	var hosts []string
	for name, address := range t.ExtraHosts {
		hosts = append(hosts, name+"="+address)
	}
	slices.Sort(hosts)
	set("add-hosts", strings.Join(hosts, ","))
	return attrs
}

// classify tells the user's failures from ours: what BuildKit says a step did is the user's.
func classify(err error, t *tally) error {
	step := t.failed()
	var exit *gatewaypb.ExitError
	if errors.As(err, &exit) {
		return &StepError{Step: step, Code: int(exit.ExitCode), Err: err}
	}
	if step != "" {
		return &StepError{Step: step, Code: 1, Err: err}
	}
	return err
}
