package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	web "github.com/runnerd/runnerd/runner/gitlab/terminal"
)

// tellTimeout is how long, at the daemon's end, forges are told of jobs that have ended. The next start goes on with it.
const tellTimeout = 15 * time.Second

// startGitLab gets ready to ask the registered forges for jobs, and goes on to tell them of those that an earlier
// daemon has left.
func (a *assembly) startGitLab(ctx context.Context) error {
	c := a.config
	terminals, err := a.startTerminals(ctx)
	if err != nil {
		return err
	}
	jobs := a.gitlabJobs()
	a.gitlab, err = gitlab.NewManager(gitlab.Config{
		Dir: filepath.Join(c.StateDir, "gitlab"), Runners: a.enrolment.Runners, Client: a.gitlabClient,
		Prepare: func(ctx context.Context, g gitlab.Assigned) (runner.Job, error) {
			assigned, err := gitlabAssigned(g)
			if err != nil {
				return runner.Job{}, err
			}
			return job.Prepare(ctx, jobs, assigned)
		},
		Adopt: a.queue.Adopt, Room: a.runner.Admission.WaitRoom, Defaults: c.Limits.Default.Limits(), MaxLive: a.runner.MaxLive,
		Terminals: terminals,
		Reason:    gitlabReason, Observe: a.metrics.Phase,
		Asked: func(r gitlab.Registration, given bool, err error) string {
			a.contacts.Asked(r.Name, given, err)
			return a.enrolment.Why(r)
		},
		Log: a.log.With("component", "gitlab"),
	})
	if err != nil {
		return err
	}
	a.later(func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, tellTimeout)
		defer cancel()
		return a.gitlab.Close(ctx)
	})
	return nil
}

// startTerminals serves the web terminals of jobs, if that is configured.
func (a *assembly) startTerminals(ctx context.Context) (*web.Server, error) {
	c := a.config.Terminal
	if c.Listen == "" {
		return nil, nil
	}
	s, err := web.Listen(ctx, web.Config{
		Listen: c.Listen, Advertise: c.Advertise, Timeout: time.Duration(c.Timeout), Log: a.log.With("component", "terminal"),
	})
	if err == nil {
		a.later(func(context.Context) error { return s.Close() })
	}
	return s, err
}

// run runs the jobs of all sources until ctx ends, and then those that it has to their ends.
func (a *assembly) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var forges sync.WaitGroup
	forges.Go(func() { _ = a.gitlab.Run(ctx) })
	forges.Go(func() { _ = a.runner.Run(ctx, a.source(a.gitlab)) }) // both end with ctx only
	err := a.runner.Run(ctx, a.source(a.queue))
	cancel(err)
	forges.Wait()
	return err
}

// gitlabClient is the client of a registration's forge for its jobs.
func (a *assembly) gitlabClient(r gitlab.Registration) (*gitlab.Client, error) {
	info := enrolInfo(a.config.Terminal.Listen != "")
	info.Executor = r.Executor
	return gitlab.NewClient(r.URL, gitlab.ClientOptions{
		Info: info, CAFile: r.CAFile, Observe: func(k gitlab.Call) { a.metrics.Forge(r, k) },
	})
}

// gitlabReason is why a job failed, where its error says so.
func gitlabReason(err error) spec.FailureReason {
	var f *job.Failure
	if errors.As(err, &f) {
		return f.Reason
	}
	return ""
}

// gitlabAssigned is a job as package job wants it.
func gitlabAssigned(g gitlab.Assigned) (job.Assigned, error) {
	r := g.Registration
	a := job.Assigned{
		ID: g.ID,
		Runner: job.Runner{
			Name: r.Name, ShortToken: shortRunnerToken(r.Token), SystemID: r.SystemID, URL: r.URL, CloneURL: r.CloneURL,
			Nesting: r.Nesting, Image: r.Image, Pull: r.Pull, Limits: r.Limits, Env: r.Env, Builds: r.Builds, Scripts: r.Scripts,
		},
		Job: g.Job, Forge: gitlabForge{g.Client, g.Job}, Session: g.Session, Stop: g.Stop,
		ConcurrentID: g.ConcurrentID, ConcurrentProjectID: g.ConcurrentProjectID, CorrelationID: g.CorrelationID,
	}
	if r.CAFile != "" {
		pem, err := os.ReadFile(r.CAFile)
		if err != nil {
			return a, err
		}
		a.Runner.CAChain = string(pem)
	}
	return a, nil
}

// shortRunnerToken is as much of a token as jobs see, without its prefix (gitlab-runner, helpers/shorten_token.go).
func shortRunnerToken(token string) string {
	short := gitlab.ShortToken(token)
	for _, prefix := range []string{"glrtr-", "glrt-", "GR1348941"} {
		short = strings.TrimPrefix(short, prefix)
	}
	return short
}

// gitlabForge is where the artifacts of a job go.
type gitlabForge struct {
	*gitlab.Client
	job spec.Job
}

// UploadArtifact uploads; see job.Forge.
func (f gitlabForge) UploadArtifact(ctx context.Context, o job.ArtifactOptions, body func(io.Writer) error) error {
	return f.Client.UploadArtifact(ctx, f.job, gitlab.ArtifactOptions{Name: o.Name, Type: o.Type, Format: o.Format, ExpireIn: o.ExpireIn}, body)
}

// Status is that of an error; see job.Forge.
func (gitlabForge) Status(err error) int {
	var s *gitlab.StatusError
	if errors.As(err, &s) {
		return s.Status
	}
	return 0
}
