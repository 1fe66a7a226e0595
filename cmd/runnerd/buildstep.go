package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	bkclient "github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// buildStep builds one target with the project's worker, which is the job's sandbox.
type buildStep struct {
	id      string
	build   buildkit.Build
	ssh     []string
	agents  *api.Agents
	outputs *api.Outputs
	detail  json.RawMessage
	ledger  *ledger.Ledger // of what the build was made of; nil: none
	share   *sharing       // with ledger
	hold    func(workspace string) (release func())
	request runner.Request
}

// newBuildStep reads a request of KindBuild when its turn has come.
func newBuildStep(ctx context.Context, r runner.Request, agents *api.Agents, outputs *api.Outputs) (*buildStep, error) {
	var p buildPayload
	if err := json.Unmarshal(r.Payload, &p); err != nil {
		return nil, fmt.Errorf("read the build: %w", err)
	}
	auth, secrets, err := p.secrets(queue.SubmittedSecrets(ctx))
	if err != nil {
		return nil, err
	}
	return &buildStep{
		id: r.ID, request: r, ssh: p.SSH, agents: agents, outputs: outputs,
		build: buildkit.Build{Plan: p.Plan, Target: p.Target, Secrets: secrets, Auth: auth, Push: p.Push},
	}, nil
}

func (s *buildStep) Name() string { return "build " + s.build.Target }

// Detail is the buildkit.Result.
func (s *buildStep) Detail() json.RawMessage { return s.detail }

func (s *buildStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	lease, ok := on.(*buildkit.Lease)
	if !ok {
		return sandbox.Exit{}, fmt.Errorf("a build needs a builder, not %T", on)
	}
	exit, err := s.attempt(ctx, lease, out)
	if err == nil || ctx.Err() != nil || !lease.Died() {
		return exit, err
	}
	_, _ = fmt.Fprintf(out.Stream(runner.Notice), "the builder has ended: %s is built once more, on a new one\n", s.build.Target)
	if renewErr := lease.Renew(ctx); renewErr != nil {
		return exit, errors.Join(err, renewErr)
	}
	exit, err = s.attempt(ctx, lease, out)
	if err != nil && ctx.Err() == nil && lease.Died() {
		err = fmt.Errorf("the builder has ended twice in this build: if the build takes much memory, raise builder.memory: %w", err)
	}
	return exit, err
}

// attempt builds the target once. A build that fails by the user's doing is an Exit.
func (s *buildStep) attempt(ctx context.Context, lease *buildkit.Lease, out runner.Output) (sandbox.Exit, error) {
	running, end := context.WithCancel(ctx)
	defer end()
	s.build.SSH = map[string]buildkit.Dial{}
	for _, id := range s.ssh {
		s.build.SSH[id] = func(asking context.Context) (net.Conn, error) {
			asking, cancel := context.WithCancel(asking)
			context.AfterFunc(running, cancel)
			return s.agents.Dial(asking, s.id, id)
		}
	}
	s.build.Create = func(name string) (io.WriteCloser, error) { return s.outputs.Create(s.id, name) }
	kills := oomKills(ctx, lease)
	progress, mask := out.Stream(runner.Progress), newLogMask(out)
	report := func(status *bkclient.SolveStatus) {
		if text, err := json.Marshal(status); err == nil {
			_, _ = progress.Write(text)
		}
	}
	began := time.Now()
	var record *buildkit.Record
	imports := ""
	if s.ledger != nil {
		s.build, imports = s.share.importing(s.request.Scope, s.build)
		s.build.Record = func(r buildkit.Record) { record = &r }
	}
	defer lease.Working()()
	sent := uploads{}
	result, err := s.build.Run(ctx, lease.Client, func(status *bkclient.SolveStatus) {
		lease.Uploaded(sent.more(status))
		buildkit.HideMissing(status, imports)
		mask.hide(status)
		report(status)
	})
	if rest := mask.rest(); len(rest.Logs) > 0 {
		report(rest)
	}
	s.detail, _ = json.Marshal(result)
	if record != nil {
		failed := err != nil
		s.enter(ctx, lease, *record, out, func(b *ledger.Build) {
			b.Began, b.Ended, b.Digest, b.Failed, b.From = began, began.Add(result.Duration), result.Digest, failed, imports
		})
	}
	if err != nil {
		err = errors.Join(err, s.outputs.Remove(s.id))
	}
	if failed := result.Failed; failed != nil {
		_, _ = fmt.Fprintf(out.Stream(runner.Stderr), "%s: %v\n", failed.Step, failed.Err)
		oom := failed.OOM || failed.Code == killed && oomKills(ctx, lease) > kills
		return sandbox.Exit{Code: max(failed.Code, 1), OOM: oom}, nil
	}
	return sandbox.Exit{}, err
}

// enter has the build written into the ledger. The local files are read afterwards: the job does not wait for that.
// In the log it says whether the build's cache is exported, and why.
func (s *buildStep) enter(ctx context.Context, lease *buildkit.Lease, record buildkit.Record, out runner.Output, result func(*ledger.Build)) {
	made := newLedgerBuild(s.request, s.build, record)
	result(&made)
	release := s.hold(s.request.Group)
	s.ledger.AddLater(func() ledger.Build {
		defer release()
		record.Complete(context.Background())
		complete := newLedgerBuild(s.request, s.build, record)
		result(&complete)
		return complete
	})
	export, err := s.share.ended(ctx, lease, s.request.Group, s.build, made)
	switch {
	case err != nil:
		_, _ = fmt.Fprintf(out.Stream(runner.Notice), "the cache is not exported: %v\n", err)
	case export != nil:
		_, _ = fmt.Fprintln(out.Stream(runner.Notice), export.Sentence())
	}
}

// killed is the exit code of what SIGKILL has ended.
const killed = 128 + int(syscall.SIGKILL)

// oomKills counts the processes of a worker that were killed for want of memory.
func oomKills(ctx context.Context, lease *buildkit.Lease) int64 {
	u, err := lease.Sandbox.Usage(ctx)
	if err != nil {
		return 0
	}
	return u.OOMKills
}

// uploads are how many bytes of a build's contexts were sent so far, by what BuildKit calls the transfer.
type uploads map[string]int64

// more returns how many bytes more a status tells of (moby/buildkit, session/filesync: "transferring context:").
func (u uploads) more(status *bkclient.SolveStatus) (bytes int64) {
	for _, s := range status.Statuses {
		if !strings.HasPrefix(s.ID, "transferring") {
			continue
		}
		key := s.Vertex.String() + s.ID
		if d := s.Current - u[key]; d > 0 {
			bytes += d
			u[key] = s.Current
		}
	}
	return bytes
}
