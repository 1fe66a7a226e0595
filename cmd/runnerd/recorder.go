package main

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner"
)

// newLedgerBuild is what the ledger keeps of a build.
func newLedgerBuild(r runner.Request, b buildkit.Build, record buildkit.Record) ledger.Build {
	out := ledger.Build{
		Job: r.ID, Scope: r.Scope, Target: b.Target, Key: targetKey(b.Plan.Targets[b.Target]), Args: b.Plan.Targets[b.Target].Args,
		Manifests: map[string]ledger.Manifest{},
	}
	for _, s := range record.Steps {
		step := ledger.Step{
			Vertex: s.Vertex.String(), Key: s.Key, Name: s.Name, Source: s.Source, Args: s.Args, Env: s.Env, Dir: s.Dir, User: s.User,
			Platform: s.Platform, Inputs: s.Inputs, NoCache: s.NoCache, Numbered: s.Numbered, State: string(s.State),
			Started: s.Started, Ended: s.Ended, Error: s.Error,
		}
		for _, t := range s.Takes {
			step.Takes = append(step.Takes, ledger.Taken(t))
		}
		out.Steps = append(out.Steps, step)
	}
	for name, m := range record.Manifests {
		files := make(map[string]string, len(m.Files))
		for _, f := range m.Files {
			files[f.Path] = fmt.Sprintf("%s %d %s", f.Mode, f.Size, f.Sum)
		}
		out.Manifests[name] = ledger.Manifest{Files: files, Partial: m.Partial}
	}
	return out
}

// targetKey tells what is built, whatever goes into it: what is equal from one commit to the next.
func targetKey(t buildkit.Target) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []string{t.Context, t.Dockerfile, t.Stage, strings.Join(t.Platforms, ",")}))
	return hex.EncodeToString(sum[:8])
}

// taken is ledger.Config.Takes.
func taken(t ledger.Taken) func(path string) bool { return buildkit.Taken(t).Matcher() }
