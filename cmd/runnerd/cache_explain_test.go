package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/planfile"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/scope"
)

// fakeLedger knows one job.
type fakeLedger struct{ revoked []api.Revoke }

func (*fakeLedger) Explain(_ context.Context, job string) (ledger.Explanation, error) {
	if job != "known" {
		return ledger.Explanation{}, fmt.Errorf("job %s: %w", job, ledger.ErrUnknown)
	}
	of := scope.Scope{Forge: scope.Local, Project: "app", Trust: scope.Untrusted}
	return ledger.Explanation{
		Job: job, Scope: of, Target: "default", Before: "earlier",
		Steps: []ledger.Line{
			{N: 1, Step: "[1/3] FROM debian", Result: ledger.Base, Why: "the same as in job earlier"},
			{N: 2, Step: "[2/3] COPY a /", Result: ledger.Ran, Seconds: 1.5, Why: "a changed\x1b[2J", Files: []ledger.Change{{Path: "a", How: "changed"}}},
			{N: 3, Step: "[3/3] RUN make", Result: ledger.Hit, Why: "nothing", Writer: &ledger.Writer{Job: "writer", Scope: scope.Scope{Forge: scope.Local, Project: "app", Trust: scope.Trusted}, At: time.Now()}},
		},
		Uses: []ledger.Use{{Store: "ci-cache", Entry: "go-mod", Wrote: true}},
	}, nil
}

func (f *fakeLedger) Revoke(_ context.Context, r api.Revoke) (api.Revoked, error) {
	f.revoked = append(f.revoked, r)
	if r.Entry != "known:3" {
		return api.Revoked{}, fmt.Errorf("%s: %w", r.Entry, ledger.ErrUnknown)
	}
	return api.Revoked{
		Revocation: ledger.Revocation{Entry: r.Entry, Step: "[3/3] RUN make", Users: []ledger.User{{Job: "writer", Wrote: true, Target: "default", Digest: "sha256:1"}, {Job: "known"}}},
		DryRun:     r.DryRun, Removed: []api.RemovedRecord{{ID: "r1", Bytes: 1 << 20}},
	}, nil
}

func TestCacheCommands(t *testing.T) {
	f := &fakeLedger{}
	s := daemonFor(t, nil, func(c *api.Config, _ *apitest.Backend) { c.Ledger = f })
	for _, c := range []struct {
		args   []string
		code   int
		stdout []string
		stderr string
	}{
		{[]string{"explain", "known"}, 0, []string{"job known of app (untrusted), target default: compared with job earlier", "2     run", "1.5s", "a changed [2J", "3     hit     writer of app, ", "ci-cache  wrote  go-mod"}, ""},
		{[]string{"explain", "--files", "known"}, 0, []string{"2: changed a"}, ""},
		{[]string{"explain", "--json", "known"}, 0, []string{`"result": "hit"`, `"job": "writer"`}, ""},
		{[]string{"explain", "unknown"}, 1, nil, "the ledger does not know it"},
		{[]string{"explain"}, 2, nil, "arg"},
		{[]string{"revoke", "known:3"}, 0, []string{"removed [3/3] RUN make and what was built on it: 1 records, 1.0 MiB", "writer  wrote", "known   read"}, ""},
		{[]string{"revoke", "--dry-run", "known:3"}, 0, []string{"would remove"}, ""},
		{[]string{"revoke", "--json", "known:3"}, 0, []string{`"removed": [`}, ""},
		{[]string{"revoke", "known:9"}, 1, nil, "the ledger does not know it"},
	} {
		code, stdout, stderr := runnerd(t, s.Socket, "", append([]string{"cache"}, c.args...)...)
		if code != c.code || !strings.Contains(stderr, c.stderr) {
			t.Errorf("%v: exit code %d, want %d: %s", c.args, code, c.code, stderr)
		}
		for _, want := range c.stdout {
			if !strings.Contains(stdout, want) {
				t.Errorf("%v: no %q in\n%s", c.args, want, stdout)
			}
		}
		if strings.Contains(stdout, "\x1b") && c.args[1] != "--json" {
			t.Errorf("%v: the terminal would obey %q", c.args, stdout)
		}
	}
	if len(f.revoked) != 4 || f.revoked[0].DryRun || !f.revoked[1].DryRun {
		t.Errorf("%+v", f.revoked)
	}
}

// TestShareRefs holds who reads and who writes which repository of a shared cache.
func TestShareRefs(t *testing.T) {
	s := &sharing{ref: "registry.example.com/cache"}
	b := buildkit.Build{Plan: buildkit.Plan{Targets: map[string]buildkit.Target{"a": {Dockerfile: "a"}, "b": {Dockerfile: "b"}}}, Target: "a"}
	trusted := scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Trusted}
	untrusted, unknown, other := trusted, trusted, trusted
	untrusted.Trust, unknown.Trust, other.Project = scope.Untrusted, "", "q"
	ref, write := s.refOf(trusted, b)
	if !write || !strings.HasPrefix(ref, s.ref+"/"+trusted.ID()+":") {
		t.Errorf("trusted: %q, %t", ref, write)
	}
	for _, below := range []scope.Scope{untrusted, unknown} {
		if read, write := s.refOf(below, b); read != ref || write {
			t.Errorf("%+v: %q, writes: %t", below, read, write)
		}
	}
	if foreign, _ := s.refOf(other, b); foreign == ref {
		t.Error("two projects share a repository")
	}
	if none, write := s.refOf(scope.Scope{}, b); none != "" || write {
		t.Errorf("nobody's: %q", none)
	}
	b.Target = "b"
	if second, _ := s.refOf(trusted, b); second == ref {
		t.Error("two targets replace each other's cache")
	}
	if none, _ := (&sharing{}).refOf(trusted, b); none != "" {
		t.Errorf("nothing is shared, but for %q", none)
	}
}

// TestShareCredentials holds that no build can use the share's credentials for anything else.
func TestShareCredentials(t *testing.T) {
	s := &sharing{ref: "registry.example.com/cache", auth: map[string]buildkit.Credentials{"registry.example.com": {Username: "farm", Password: "secret"}}}
	of := scope.Scope{Forge: scope.Local, Project: "p", Trust: scope.Untrusted}
	for name, c := range map[string]struct {
		target buildkit.Target
		given  bool
	}{
		"another registry's image": {buildkit.Target{Images: []string{"debian:12"}}, true},
		"an image":                 {buildkit.Target{Images: []string{"registry.example.com/private:1"}}, false},
		"a tag":                    {buildkit.Target{Tags: []string{"registry.example.com/app:1"}}, false},
		"a cache":                  {buildkit.Target{CacheTo: []buildkit.Option{{Type: "registry", Attrs: map[string]string{"ref": "registry.example.com/app"}}}}, false},
		"an output":                {buildkit.Target{Outputs: []buildkit.Option{{Type: "registry", Attrs: map[string]string{"name": "registry.example.com/app"}}}}, false},
	} {
		plan := buildkit.Plan{Targets: map[string]buildkit.Target{"t": c.target}, Build: []string{"t"}}
		own := map[string]buildkit.Credentials{"other.example.com": {Username: "me"}}
		b, ref := s.importing(of, buildkit.Build{Plan: plan, Target: "t", Auth: own})
		if _, given := b.Auth["registry.example.com"]; given != c.given || b.Auth["other.example.com"].Username != "me" || len(own) != 1 {
			t.Errorf("%s: %v", name, b.Auth)
		}
		if from := b.Plan.Targets["t"].CacheFrom; len(from) != 1 || from[0].Attrs["ref"] != ref || len(plan.Targets["t"].CacheFrom) != 0 {
			t.Errorf("%s: imports %v of %s", name, from, ref)
		}
	}
}

// TestShareIsNotNamed holds that no build names the shared caches itself.
func TestShareIsNotNamed(t *testing.T) {
	bd := builder{read: planfile.Read, share: "registry.example.com/cache"}
	for name, c := range map[string]struct {
		dockerfile string
		build      api.Build
		denied     bool
	}{
		"nothing":     {"FROM scratch\nCOPY Dockerfile /\n", api.Build{Tags: []string{"registry.example.com/cachet:1"}}, false},
		"base":        {"ARG R=registry.example.com\nFROM $R/cache/0:1\n", api.Build{}, true},
		"copied from": {"FROM scratch\nCOPY --from=registry.example.com/cache/0:1 / /\n", api.Build{}, true},
		"tag":         {"FROM scratch\nCOPY Dockerfile /\n", api.Build{Tags: []string{"registry.example.com/cache/0:1"}, Push: true}, true},
		"cache from":  {"FROM scratch\nCOPY Dockerfile /\n", api.Build{CacheFrom: []string{"registry.example.com/cache/0"}}, true},
		"cache to":    {"FROM scratch\nCOPY Dockerfile /\n", api.Build{CacheTo: []string{"type=registry,ref=registry.example.com/cache/0"}}, true},
		"output":      {"FROM scratch\nCOPY Dockerfile /\n", api.Build{Outputs: []string{"type=image,name=registry.example.com/cache/0,push=true"}}, true},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(c.dockerfile), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := bd.Plan(t.Context(), dir, c.build)
		if denied := err != nil && strings.Contains(err.Error(), "no build may name"); denied != c.denied {
			t.Errorf("%s: %v", name, err)
		}
	}
}
