package planfile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/docker/buildx/bake"
	"github.com/docker/buildx/util/buildflags"

	"github.com/runnerd/runnerd/buildkit"
)

// bakeFiles are looked for, in this order, when no file is named (docker/buildx, bake.go,
// defaultFilenames); later ones are merged into earlier ones.
var bakeFiles = []string{
	"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml",
	"docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl",
}

// hermetic makes bake read variables from what it is given and nowhere else: by itself it looks into the
// environment and into the working directory's .env, and those are the daemon's, not the user's.
func hermetic() error {
	if err := os.Setenv("BUILDX_BAKE_DISABLE_VARS_ENV_LOOKUP", "1"); err != nil { // the one way there is (bake.go, envLookupAllowed)
		return err
	}
	if _, err := os.Lstat(".env"); err == nil {
		return errors.New("compose files cannot be read: the daemon's working directory holds a .env file: start it in another")
	}
	return nil
}

func readBake(ctx context.Context, root *os.Root, names []string, in buildkit.Input) (buildkit.Plan, error) {
	if err := hermetic(); err != nil && slices.ContainsFunc(names, isCompose) {
		return buildkit.Plan{}, err
	}
	vars := maps.Clone(in.Vars)
	if vars == nil {
		vars = map[string]string{}
	}
	var files []bake.File
	for _, name := range names {
		data, err := readLimited(root, name)
		if err != nil {
			return buildkit.Plan{}, err
		}
		if isCompose(name) {
			if data, err = readCompose(name, data); err != nil {
				return buildkit.Plan{}, err
			}
			if err := dotEnv(root, vars); err != nil {
				return buildkit.Plan{}, err
			}
		}
		files = append(files, bake.File{Name: name, Data: data})
	}
	overrides, err := completed(in.Set, in.Vars)
	if err != nil {
		return buildkit.Plan{}, err
	}
	asked := slices.Clone(in.Targets)
	if len(asked) == 0 {
		asked = []string{"default"}
	}
	targets, groups, err := bake.ReadTargets(ctx, files, asked, overrides, nil, vars, nil)
	if err != nil {
		return buildkit.Plan{}, fmt.Errorf("bake: %w", err)
	}
	if len(targets) > buildkit.MaxTargets {
		return buildkit.Plan{}, fmt.Errorf("bake: %d targets: at most %d can be built at once: name fewer, or split the bake file", len(targets), buildkit.MaxTargets)
	}
	plan := buildkit.Plan{Targets: map[string]buildkit.Target{}}
	for name, t := range targets {
		converted, err := targetOf(t)
		if err != nil {
			return buildkit.Plan{}, fmt.Errorf("bake: target %s: %w", name, err)
		}
		plan.Targets[name] = converted
	}
	plan.Build = asked[:0]
	seen := map[string]bool{}
	var resolve func(name string)
	resolve = func(name string) {
		if seen[name] {
			return
		}
		seen[name] = true
		if _, ok := plan.Targets[name]; ok {
			plan.Build = append(plan.Build, name)
		}
		if g := groups[name]; g != nil {
			for _, member := range g.Targets {
				resolve(member)
			}
		}
	}
	resolve("default") // bake puts what was asked for into it
	slices.Sort(plan.Build)
	return plan, nil
}

// completed gives build arguments that are set without a value that of the variable of their name.
func completed(set []string, vars map[string]string) ([]string, error) {
	out := slices.Clone(set)
	for i, s := range out {
		if strings.Contains(s, "=") {
			continue
		}
		path := strings.Split(s, ".")
		if len(path) != 3 || path[1] != "args" && path[1] != "arg" {
			continue // bake says what is wrong with it
		}
		value, ok := vars[path[2]]
		if !ok {
			return nil, fmt.Errorf("--set %s: no value: write %s=VALUE", s, s)
		}
		out[i] = s + "=" + value
	}
	return out, nil
}

// targetOf takes over what of a bake target we honour, and refuses the rest rather than ignore it.
func targetOf(t *bake.Target) (buildkit.Target, error) {
	out := buildkit.Target{
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
	set(&out.Network, t.NetworkMode)
	out.NoCache = t.NoCache != nil && *t.NoCache
	out.Pull = t.Pull != nil && *t.Pull
	if err := refuse(t); err != nil {
		return out, err
	}
	for name, address := range out.ExtraHosts {
		if _, err := netip.ParseAddr(strings.Trim(address, "[]")); err != nil {
			return out, fmt.Errorf("extra host %s: %q is not an address", name, address)
		}
	}
	if _, err := buildkit.Annotations(t.Annotations); err != nil {
		return out, err
	}
	for _, a := range t.Attest {
		if a.Disabled {
			continue
		}
		var attrs []string
		for _, key := range slices.Sorted(maps.Keys(a.Attrs)) {
			attrs = append(attrs, key+"="+a.Attrs[key])
		}
		if out.Attest == nil {
			out.Attest = map[string]string{}
		}
		out.Attest[a.Type] = strings.Join(attrs, ",")
	}
	for _, o := range t.Outputs {
		attrs := maps.Clone(o.Attrs)
		if o.Destination != "" {
			attrs = withAttr(attrs, "dest", o.Destination)
		}
		out.Outputs = append(out.Outputs, buildkit.Option{Type: o.Type, Attrs: attrs})
	}
	cache := func(options buildflags.CacheOptions) (all []buildkit.Option) {
		for _, o := range options {
			all = append(all, buildkit.Option{Type: o.Type, Attrs: o.Attrs})
		}
		return all
	}
	out.CacheFrom, out.CacheTo = cache(t.CacheFrom), cache(t.CacheTo)
	for _, s := range t.Secrets {
		out.Secrets = append(out.Secrets, buildkit.Secret{ID: s.ID, File: s.FilePath, Env: s.Env})
	}
	for _, s := range t.SSH {
		out.SSH = append(out.SSH, s.ID)
	}
	return out, nil
}

// refuse says which of a target's wishes are denied, or would be ignored.
func refuse(t *bake.Target) error {
	switch {
	case len(t.Entitlements) > 0:
		return fmt.Errorf("entitlements %v are denied: a build in runnerd gets none", t.Entitlements)
	case len(t.Ulimits) > 0:
		return errors.New("ulimits are not supported: remove them")
	case t.Resources != nil:
		return errors.New("resources are not supported: the worker's limits hold")
	case len(t.Policy) > 0:
		return errors.New("policy is not supported: remove it")
	case t.Call != nil && *t.Call != "" && *t.Call != "build":
		return fmt.Errorf("call %q is not supported: use build", *t.Call)
	}
	return nil
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
