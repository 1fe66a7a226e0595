package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// startGitLab makes the source of the jobs of all registrations, which asks for them once it is run.
func (a *assembly) startGitLab(context.Context) (err error) {
	jobs := a.gitlabJobs()
	a.gitlab, err = gitlab.NewManager(gitlab.Config{
		Dir:     filepath.Join(a.config.StateDir, "gitlab"),
		Runners: a.enrolment.Runners,
		Info: func(r gitlab.Registration) spec.Info {
			info := enrolInfo()
			info.Executor = r.Executor
			return info
		},
		Prepare: func(ctx context.Context, assigned gitlab.Assigned) (runner.Job, error) {
			of, err := assignedJob(assigned)
			if err != nil {
				return runner.Job{}, err
			}
			return job.Prepare(ctx, jobs, of)
		},
		Adopt: a.queue.Adopt, Room: a.runner.Admission.WaitRoom, Defaults: a.config.Limits.Default.Limits(), MaxLive: a.runner.MaxLive,
		Asked: a.enrolment.Asked, Log: a.log.With("component", "gitlab"),
	})
	if err != nil {
		return err
	}
	a.later(a.gitlab.Close)
	return nil
}

// assignedJob is a job as package job has it.
func assignedJob(a gitlab.Assigned) (job.Assigned, error) {
	r := a.Registration
	var chain []byte
	if r.CAFile != "" {
		var err error
		if chain, err = os.ReadFile(r.CAFile); err != nil {
			return job.Assigned{}, err
		}
	}
	return job.Assigned{
		ID: a.ID, Job: a.Job, Stop: a.Stop, Forge: jobForge{a.Client, a.Job},
		ConcurrentID: a.ConcurrentID, ConcurrentProjectID: a.ConcurrentProjectID, CorrelationID: a.CorrelationID,
		Runner: job.Runner{
			Name: r.Name, ShortToken: gitlab.ShortToken(r.Token), SystemID: r.SystemID, URL: r.URL, CloneURL: r.CloneURL, CAChain: string(chain),
			Nesting: r.Nesting, Image: r.Image, Pull: r.Pull, Limits: r.Limits, Env: r.Env, Builds: r.Builds,
		},
	}, nil
}

// jobForge is where a job's artifacts are kept.
type jobForge struct {
	client *gitlab.Client
	job    spec.Job
}

func (f jobForge) UploadArtifact(ctx context.Context, o job.ArtifactOptions, body func(io.Writer) error) error {
	return f.client.UploadArtifact(ctx, f.job, gitlab.ArtifactOptions{Type: o.Type, Format: o.Format, ExpireIn: o.ExpireIn, Name: o.Name}, body)
}

func (f jobForge) DownloadArtifact(ctx context.Context, d spec.Dependency, w io.Writer) error {
	return f.client.DownloadArtifact(ctx, d, w)
}

func (jobForge) Status(err error) int {
	if status := (*gitlab.StatusError)(nil); errors.As(err, &status) {
		return status.Status
	}
	return 0
}
