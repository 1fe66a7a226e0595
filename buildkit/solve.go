package buildkit

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	"golang.org/x/sync/errgroup"
)

// solver solves a plan's targets in one BuildKit build, each once.
type solver struct {
	Build
	gw       gateway.Client
	sessions map[string]string // that hold a context, by directory
	recorder *recorder

	mu   sync.Mutex
	once map[string]func() (*gateway.Result, error)
}

func newSolver(b Build, gw gateway.Client, sessions map[string]string, r *recorder) *solver {
	return &solver{Build: b, gw: gw, sessions: sessions, recorder: r, once: map[string]func() (*gateway.Result, error){}}
}

// solve solves a target, first those that are its contexts. The plan is acyclic.
func (s *solver) solve(ctx context.Context, name string) (*gateway.Result, error) {
	s.mu.Lock()
	once := s.once[name]
	if once == nil {
		once = sync.OnceValues(func() (*gateway.Result, error) { return s.solveOnce(ctx, name) })
		s.once[name] = once
	}
	s.mu.Unlock()
	return once()
}

func (s *solver) solveOnce(ctx context.Context, name string) (*gateway.Result, error) {
	t := s.Plan.Targets[name]
	attrs, err := s.attributes(t)
	if err != nil {
		return nil, err
	}
	request := gateway.SolveRequest{
		Frontend: "dockerfile.v0", FrontendOpt: attrs, FrontendInputs: map[string]*pb.Definition{},
	}
	if id := s.sessions[t.Context]; id != "" {
		attrs["local-sessionid:"+contextName] = id
	}
	for _, c := range t.CacheFrom {
		request.CacheImports = append(request.CacheImports, gateway.CacheOptionsEntry(s.cacheOption(c)))
	}
	if t.DockerfileInline != "" {
		def, err := llb.Scratch().File(llb.Mkfile("Dockerfile", 0o644, []byte(t.DockerfileInline)),
			llb.WithCustomName("[internal] load build definition from dockerfile-inline")).Marshal(ctx)
		if err != nil {
			return nil, err
		}
		request.FrontendInputs["dockerfile"] = def.ToPB()
	}
	linked := t.linked()
	results := map[string]*gateway.Result{}
	group, groupCtx := errgroup.WithContext(ctx)
	var mu sync.Mutex
	for _, from := range linked {
		group.Go(func() error {
			result, err := s.solve(groupCtx, from)
			mu.Lock()
			results[from] = result
			mu.Unlock()
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	for as, from := range linked {
		if err := link(ctx, &request, as, results[from]); err != nil {
			return nil, fmt.Errorf("context %s: %w", as, err)
		}
	}
	result, err := s.gw.Solve(ctx, request)
	if err != nil || name != s.Target { // of a context only what is used is evaluated
		return result, err
	}
	// What the build is made of is known before it runs, and so also if it fails.
	if err := s.recorder.define(ctx, result); err != nil {
		return nil, err
	}
	group, groupCtx = errgroup.WithContext(ctx)
	_ = result.EachRef(func(ref gateway.Reference) error {
		group.Go(func() error { return ref.Evaluate(groupCtx) })
		return nil
	})
	return result, group.Wait()
}

// linked are the contexts that are targets of the plan, by the names they have in the Dockerfile.
func (t Target) linked() map[string]string {
	out := map[string]string{}
	for as, from := range t.Contexts {
		if target, ok := strings.CutPrefix(from, "target:"); ok {
			out[as] = target
		}
	}
	return out
}

// acyclic says whether no target needs itself.
func (p Plan) acyclic(name string) error {
	done := map[string]bool{}
	var visit func(name string, path []string) error
	visit = func(name string, path []string) error {
		if slices.Contains(path, name) {
			return fmt.Errorf("targets need each other: %s", strings.Join(append(path, name), " → "))
		}
		if done[name] {
			return nil
		}
		path = append(path, name)
		for _, from := range p.Targets[name].linked() {
			if _, ok := p.Targets[from]; !ok {
				return fmt.Errorf("target %s: no target %q", name, from)
			}
			if err := visit(from, path); err != nil {
				return err
			}
		}
		done[name] = true
		return nil
	}
	return visit(name, nil)
}

// link passes one target's result to another as a named context, with its image configuration, as buildx
// does (build/build.go, waitContextDeps).
func link(ctx context.Context, request *gateway.SolveRequest, as string, result *gateway.Result) error {
	if len(result.Refs) == 0 {
		return linkRef(ctx, request, as, result.Ref, result.Metadata[exptypes.ExporterImageConfigKey])
	}
	for platform, ref := range result.Refs {
		config := result.Metadata[exptypes.ExporterImageConfigKey+"/"+platform]
		if err := linkRef(ctx, request, as+"::"+platform, ref, config); err != nil {
			return err
		}
	}
	return nil
}

func linkRef(ctx context.Context, request *gateway.SolveRequest, as string, ref gateway.Reference, config []byte) error {
	state := llb.Scratch()
	if ref != nil {
		var err error
		if state, err = ref.ToState(); err != nil {
			return err
		}
	}
	def, err := state.Marshal(ctx)
	if err != nil {
		return err
	}
	request.FrontendInputs[as] = def.ToPB()
	request.FrontendOpt["context:"+as] = "input:" + as
	if config != nil {
		metadata, err := json.Marshal(map[string][]byte{exptypes.ExporterImageConfigKey: config})
		if err != nil {
			return err
		}
		request.FrontendOpt["input-metadata:"+as] = string(metadata)
	}
	return nil
}

// attributes are the Dockerfile frontend's options (moby/buildkit, frontend/dockerui/config.go).
func (b Build) attributes(t Target) (map[string]string, error) {
	attrs := map[string]string{
		// Set, it keeps the frontend from looking for a "# syntax" line; Read has judged that line.
		"cmdline":  "docker/dockerfile",
		"filename": "Dockerfile",
	}
	if t.DockerfileInline == "" {
		dir, name, err := b.dockerfile(t)
		if err != nil {
			return nil, err
		}
		attrs["dockerfilekey"], attrs["filename"] = dockerfileKey(dir), name
	}
	for k, v := range t.Args {
		attrs["build-arg:"+k] = v
	}
	for k, v := range t.Labels {
		attrs["label:"+k] = v
	}
	maps.Copy(attrs, attestations(t))
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
	if t.Network == "none" {
		attrs["force-network-mode"] = t.Network
	}
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
	return attrs, nil
}

func attestations(t Target) map[string]string {
	attrs := map[string]string{}
	for kind, value := range t.Attest {
		attrs["attest:"+kind] = value
	}
	return attrs
}

const dirKey = "dir:"

// localKey names a directory that is a named context to BuildKit, the same for all targets that use it, so
// that it is sent once.
func localKey(dir string) string { return dirKey + filepath.ToSlash(filepath.Clean(dir)) }

// dockerfileKey names a directory that a Dockerfile is read from.
func dockerfileKey(dir string) string { return "dockerfile:" + filepath.ToSlash(filepath.Clean(dir)) }
