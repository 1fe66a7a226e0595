package buildkit

import (
	"maps"
	"strings"

	"github.com/moby/buildkit/client"
)

// Importing is b with a registry's cache to import for all its targets.
func (b Build) Importing(ref string) Build {
	b.Plan.Targets = maps.Clone(b.Plan.Targets)
	for name, t := range b.Plan.Targets {
		t.CacheFrom = append([]Option{{Type: "registry", Attrs: map[string]string{"ref": ref}}}, t.CacheFrom...)
		b.Plan.Targets[name] = t
	}
	return b
}

// Exporting is a build of what b has built, which is in the cache, that does nothing but export the cache of all its
// steps to a registry.
func (b Build) Exporting(ref string) Build {
	b.Push, b.Create, b.Record = false, nil, nil
	b.Plan.Targets = maps.Clone(b.Plan.Targets)
	for name, t := range b.Plan.Targets {
		t.NoCache, t.NoCacheFilter, t.Pull, t.CacheTo, t.Attest = false, nil, false, nil, nil
		if name == b.Target {
			t.Outputs = []Option{{Type: "cacheonly"}}
			t.CacheTo = []Option{{Type: "registry", Attrs: map[string]string{"ref": ref, "mode": "max"}}}
		}
		b.Plan.Targets[name] = t
	}
	return b
}

// HideMissing makes of the error that there is no cache to import yet what it is: no error.
func HideMissing(status *client.SolveStatus, ref string) {
	for _, v := range status.Vertexes {
		if v.Name == "importing cache manifest from "+ref && strings.Contains(v.Error, "not found") {
			v.Name, v.Error = v.Name+": there is none yet", ""
		}
	}
}
