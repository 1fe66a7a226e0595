package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// execution is a pipeline that runs: a GitLab of its own, whose runner the daemon is for as long.
type execution struct {
	a      *app
	f      execFlags
	server *gitlabtest.Server
	client *client.Client
	runner api.Runner
	id     int64 // of the pipeline
	begun  time.Time

	log    io.Writer // where the jobs' traces go
	names  int       // characters of the longest job's
	views  map[int64]*execView
	told   string // why the runner gets no jobs
	asked  time.Time
	stops  int // how often the user wanted the end
	warned bool
}

// execView is a job's trace, as far as it is shown.
type execView struct {
	traceView
	shown int
	ended bool
}

const (
	execPoll    = 50 * time.Millisecond // how often traces are looked at
	execAsk     = 2 * time.Second       // how often the daemon is asked why no job starts
	execAbandon = 15 * time.Second      // how long the daemon may take to end jobs
)

// execPipeline runs a pipeline of a project to its end.
func (a *app) execPipeline(ctx context.Context, p *project, part *ciyaml.Pipeline, f execFlags, variables map[string]string) (err error) {
	c, err := a.client()
	if err != nil {
		return err
	}
	defer c.Close()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	server, err := execServer(p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()
	n := api.NewRunner{
		Forge: "gitlab", URL: server.URL, Token: server.AddRunner(), Concurrent: f.concurrent, Sandbox: f.sandbox.value,
		Image: f.image, Limits: f.limits.limits(), Env: f.env,
	}
	runner, end, err := c.RegisterFor(ctx, n)
	if err != nil {
		return fmt.Errorf("make the daemon the pipeline's runner: %w", err)
	}
	defer end()
	e := &execution{a: a, f: f, server: server, client: c, runner: runner, begun: time.Now(), views: map[int64]*execView{}, log: a.stdout}
	if f.asJSON {
		e.log = a.stderr
	}
	for _, j := range part.Jobs {
		e.names = max(e.names, min(seen(j.Name), 40))
	}
	started, err := server.Run(ctx, gitlabtest.RunOptions{
		Dir: p.snapshot(), File: p.file, Source: f.source, Branch: p.branch, Tag: p.tag, Variables: variables, Pipeline: part,
	})
	if err != nil {
		return err
	}
	e.id = started.ID
	result, err := e.follow(ctx, signals)
	if err != nil {
		return err
	}
	result.Excluded, result.Warnings = part.Excluded, part.Warnings
	if f.verbose {
		for _, v := range server.Violations() {
			a.say(false, "the daemon broke GitLab's protocol: %s", v)
		}
	}
	return a.execResult(result, f)
}

// execServer starts the server of a project, at the same address each time if that is free: what jobs keep belongs to
// a project of a forge, and a forge is known by its address.
func execServer(p *project) (*gitlabtest.Server, error) {
	o := gitlabtest.Options{
		Project:    gitlabtest.Project{Path: p.path, DefaultBranch: p.defaultBranch},
		IgnoreTags: true, LongPoll: 20 * time.Second, UpdateInterval: time.Second,
		Listen: p.address(),
	}
	s, err := gitlabtest.New(o)
	if errors.Is(err, syscall.EADDRINUSE) {
		o.Listen = ""
		s, err = gitlabtest.New(o)
	}
	return s, err
}

// follow shows the traces until the pipeline has ended, or nothing of it runs any more.
func (e *execution) follow(ctx context.Context, signals <-chan os.Signal) (execOutcome, error) {
	done := make(chan error, 1)
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	var last gitlabtest.Pipeline
	go func() {
		var err error
		last, err = e.server.WaitPipeline(waiting, e.id)
		done <- err
	}()
	tick := time.NewTicker(execPoll)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			if err != nil {
				return execOutcome{}, err
			}
			if err := e.show(); err != nil {
				return execOutcome{}, err
			}
			return e.outcome(last), nil
		case <-signals:
			if e.stops++; e.stops > 1 {
				return e.abandon(ctx)
			}
			e.a.say(false, "cancelling the pipeline: jobs learn of it with what they say next, or within 30 s, and after_script still runs; once more ends it at once")
			if err := e.server.CancelPipeline(e.id); err != nil {
				return execOutcome{}, err
			}
		case <-tick.C:
			if err := e.show(); err != nil {
				return execOutcome{}, err
			}
			e.explain(ctx)
		case <-ctx.Done():
			return execOutcome{}, context.Cause(ctx)
		}
	}
}

// abandon has the daemon end the jobs that it has of this pipeline.
func (e *execution) abandon(ctx context.Context) (execOutcome, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), execAbandon)
	defer cancel()
	jobs, err := e.client.Jobs(ctx, api.Filter{Active: true, Prefix: "gitlab-"})
	if err != nil {
		return execOutcome{}, err
	}
	ours := map[string]bool{} // as they are called in the daemon: gitlab-ID-XXXX
	for _, j := range e.server.Jobs() {
		ours[fmt.Sprintf("gitlab-%d-", j.ID)] = !j.Status.Ended()
	}
	for _, j := range jobs {
		if i := strings.LastIndexByte(j.ID, '-'); ours[j.ID[:i+1]] {
			_, _ = e.client.Cancel(ctx, j.ID, "cancelled from the terminal")
		}
	}
	p, err := e.server.WaitPipeline(ctx, e.id)
	if err != nil {
		return execOutcome{}, &exitError{exitCancelled, fmt.Errorf("cancelled: %w", err)}
	}
	if err := e.show(); err != nil {
		return execOutcome{}, err
	}
	return e.outcome(p), nil
}

// show prints what is new in the traces.
func (e *execution) show() error {
	for _, j := range e.server.Jobs() {
		v := e.views[j.ID]
		if v == nil && (j.TraceSize > 0 || j.Status.Ended() && j.Acceptances > 0) {
			v = e.view(j)
			e.views[j.ID] = v
		}
		if v == nil || v.ended {
			continue
		}
		if j.TraceSize != v.shown {
			text, err := e.server.Trace(j.ID)
			if err != nil {
				return err
			}
			v.shown = min(v.shown, len(text)) // a job that is given out again begins anew
			if _, err := v.Write(text[v.shown:]); err != nil {
				return err
			}
			v.shown = len(text)
		}
		if j.Status.Ended() {
			v.ended = true
			if err := v.end(j.Status == gitlabtest.Failed); err != nil {
				return err
			}
		}
	}
	return nil
}

// The colours of the jobs' names, SGR parameters.
var jobColours = [...]string{"36", "33", "32", "35", "34", "96", "93", "92", "95", "94"}

func (e *execution) view(j gitlabtest.Job) *execView {
	name := short(j.Name, 40)
	if j.RetryOf != 0 {
		name = short(j.Name, 34) + " again"
	}
	prefix := name + strings.Repeat(" ", max(0, e.names-seen(name))) + " | "
	coloured := paint(e.log, jobColours[len(e.views)%len(jobColours)], prefix)
	return &execView{traceView: traceView{w: e.log, prefix: coloured, colours: coloured != prefix, all: e.f.verbose}}
}

// explain says, once, why no job starts: it is the daemon that knows.
func (e *execution) explain(ctx context.Context) {
	if time.Since(e.asked) < execAsk {
		return
	}
	e.asked = time.Now()
	if !slices.ContainsFunc(e.server.Jobs(), func(j gitlabtest.Job) bool { return j.Status == gitlabtest.Pending }) {
		return
	}
	r, err := e.client.Runner(ctx, e.runner.Name)
	switch {
	case err != nil && !e.warned:
		e.warned = true
		e.a.say(false, "the daemon has no runner for this pipeline any more (%v): Ctrl-C ends it", err)
	case err == nil && r.Why != "" && r.Why != e.told:
		e.told = r.Why
		e.a.say(false, "the daemon gets no jobs: %s", r.Why)
	}
}

// outcome is what has become of a pipeline and its jobs.
func (e *execution) outcome(p gitlabtest.Pipeline) execOutcome {
	o := execOutcome{Status: string(p.Status), Name: p.Name, Ref: p.Ref, SHA: p.SHA, Source: p.Source, Seconds: time.Since(e.begun).Seconds(), cancelled: e.stops > 0}
	for _, id := range p.Jobs {
		j, err := e.server.Job(id)
		if err != nil {
			continue
		}
		out := execJob{Name: j.Name, Stage: j.Stage, Status: string(j.Status), FailureReason: string(j.FailureReason), ExitCode: j.ExitCode, Tries: 1}
		for again := j.RetryOf; again != 0; out.Tries++ {
			before, err := e.server.Job(again)
			if err != nil {
				break
			}
			again = before.RetryOf
		}
		if begin := j.Clock.Accepted; !begin.IsZero() && !j.Clock.Finished.IsZero() {
			out.Seconds = j.Clock.Finished.Sub(begin).Seconds()
		}
		if artifacts, err := e.server.Artifacts(id); err == nil {
			for _, a := range artifacts {
				out.Artifacts = append(out.Artifacts, execArtifact{a.Type, a.Name, a.Size})
			}
		}
		o.Jobs = append(o.Jobs, out)
	}
	return o
}
