package main

import (
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/sandbox"
)

// gitlabJobs is what jobs of GitLab need of the daemon, but for what keeps their files.
func (a *assembly) gitlabJobs() job.Config {
	c := a.config
	v, revision, ok := strings.Cut(versionInfo().Version, "+")
	if !ok {
		revision = "unknown"
	}
	return job.Config{
		Version: v, Revision: revision, Image: c.JobImage, Helper: c.SandboxImage, Pull: sandbox.PullPolicy(c.PullPolicy),
		Limits:   func(l *sandbox.Limits) error { return limit(l, c) },
		Asking:   asking,
		Archiver: newArchiver(c.Cache), Caches: newGitLabCaches(a.cache, usesAndCopies{a.ledger, &a.copies}),
		CacheTimeout: time.Duration(c.Cache.Timeout), ServiceTimeout: job.DefaultServiceTimeout,
		Log: a.log.With("component", "gitlab"),
	}.Machine()
}
