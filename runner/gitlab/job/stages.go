package job

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// helper is where git runs: beside the job's container, which has whatever its image has.
type helper struct {
	ready chan struct{} // closed when it is there, or will not be
	host  sandbox.Host
	env   []string // of its image
	err   error
}

// helperName is that of a companion that is the helper.
const helperName = "helper"

// findHelper finds the helper, or starts one: the job's own container is as good if it has the helper's image, or if
// there is nothing to clone. A sandbox that was made for the job has a toolbox for it.
func (r *run) findHelper(ctx context.Context) {
	h := &helper{ready: make(chan struct{}), host: r.on, env: r.image.Env}
	r.helper = h
	found := !r.clones() || r.image.Reference == r.cfg.Helper
	if boxed, ok := ability[sandbox.Toolboxed](r.on); ok && !found {
		if tools, ok := boxed.Toolbox(); ok {
			h.host, h.env, found = tools, tools.ImageConfig().Env, true
		}
	}
	if found {
		close(h.ready)
		return
	}
	r.background.Go(func() {
		defer close(h.ready)
		began := time.Now()
		c := sandbox.Companion{Name: helperName, Volumes: map[string]string{BuildsVolume: r.vars.BuildsDir}}
		member, err := r.add(ctx, c, image{tries: []runner.Image{r.helperImage()}})
		if err != nil {
			h.err = fmt.Errorf("start the helper: %w", err)
			return
		}
		h.host = member
		if imaged, ok := member.(sandbox.Imaged); ok {
			h.env = imaged.ImageConfig().Env
		}
		r.debug("helper", began)
	})
}

func (p *plan) helperImage() runner.Image {
	return runner.Image{Ref: p.cfg.Helper, Pull: sandbox.Pull{Policy: p.cfg.Pull, Asking: p.asking}}
}

// debug logs how long something took that runs beside the stages.
func (r *run) debug(what string, since time.Time) {
	if r.cfg.Log != nil {
		r.cfg.Log.Debug("a part of a job is ready", "job", r.id, "part", what, "took", time.Since(since))
	}
}

func (p *plan) clones() bool {
	return p.settings.Strategy == script.GitClone || p.settings.Strategy == script.GitFetch
}

// await returns the helper when it is there.
func (h *helper) await(ctx context.Context) (sandbox.Host, error) {
	select {
	case <-h.ready:
		return h.host, h.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// sources gets the project's files, as root: the job's user may be another one, so all may write them.
func (r *run) sources(ctx context.Context) (sandbox.Exit, error) {
	at, err := r.helper.await(ctx)
	if err != nil {
		return sandbox.Exit{}, err
	}
	env, inEnv := environment(r.helper.env, r.vars)
	text, err := script.Sources(script.SourcesOptions{
		Variables: r.vars, Job: r.Job, Settings: r.settings, ServerURL: r.Runner.URL, CloneURL: r.Runner.CloneURL,
		CorrelationID: r.CorrelationID, Scripts: r.Runner.Scripts, Sections: r.sections, InEnvironment: inEnv,
	})
	if err != nil {
		return sandbox.Exit{}, configurationError("%w", err)
	}
	return at.Exec(ctx, sandbox.Process{
		Args: script.ShellCommand(nil), Env: env, Dir: "/", User: rootUser, Stdin: strings.NewReader(text), Stdout: r.w, Stderr: r.w,
	})
}

// restore brings the job's caches and the artifacts of the jobs that it depends on.
func (r *run) restore(ctx context.Context) error {
	r.kept = r.newKept()
	caches := which(r.Job.Cache, Restores)
	if len(caches) > 0 && r.kept.Caches != nil {
		err := r.stage(script.StageRestoreCache, func() error {
			for _, c := range caches {
				if err := r.kept.RestoreCache(ctx, c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	dependencies := which(r.Job.Dependencies, Downloads)
	if len(dependencies) == 0 {
		return nil
	}
	return r.stage(script.StageDownloadArtifacts, func() error {
		for _, d := range dependencies {
			if err := r.kept.Download(ctx, d); err != nil {
				return err
			}
		}
		return nil
	})
}

func (r *run) newKept() *Kept {
	k := &Kept{
		On: r.on, Helper: r.helper.host, Dir: r.vars.ProjectDir, User: r.own.user,
		JobID: r.Job.ID, JobName: r.Job.JobInfo.Name, Ref: r.Job.GitInfo.Ref,
		Variables: r.vars, Archiver: r.cfg.Archiver, Forge: r.Forge, CacheTimeout: r.cfg.CacheTimeout,
		Say: func(line string) { r.write(line + "\n") },
	}
	if r.cfg.Caches != nil {
		k.Caches = r.cfg.Caches(r.request)
	}
	return k
}

// keep saves the caches and uploads the artifacts of a job whose script has ended. Caches that cannot be saved fail no
// job.
func (r *run) keep(ctx context.Context, succeeded bool) error {
	if r.kept == nil {
		return nil
	}
	cacheStage, uploadStage := script.StageArchiveCache, script.StageUpload
	if !succeeded {
		cacheStage, uploadStage = script.StageArchiveCacheFail, script.StageUploadFail
	}
	caches := which(r.Job.Cache, func(c spec.Cache) bool { return Saves(c, succeeded) })
	if len(caches) > 0 && r.kept.Caches != nil {
		err := r.stage(cacheStage, func() error {
			for _, c := range caches {
				if err := r.kept.SaveCache(ctx, c); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	artifacts := which(r.Job.Artifacts, func(a spec.Artifact) bool { return Uploads(a, succeeded) })
	if len(artifacts) == 0 {
		return nil
	}
	return r.stage(uploadStage, func() error {
		var errs []error
		for _, a := range artifacts {
			errs = append(errs, r.kept.Upload(ctx, a))
		}
		return errors.Join(errs...)
	})
}

// which are those for which want holds.
func which[T any](all []T, want func(T) bool) (some []T) {
	for _, x := range all {
		if want(x) {
			some = append(some, x)
		}
	}
	return some
}

// result is how the scripts ended.
type result struct {
	exit   sandbox.Exit
	err    error
	status string // for CI_JOB_STATUS
}

func (r result) success() bool { return r.err == nil && r.exit.Success() }

// The values of CI_JOB_STATUS in after_script (gitlab-runner, common/build.go).
const (
	statusSuccess  = "success"
	statusFailed   = "failed"
	statusCanceled = "canceled"
	statusTimedOut = "timedout"
)

// scripts runs the steps but after_script.
func (r *run) scripts(ctx context.Context) result {
	all := result{status: statusSuccess}
	began := time.Now()
	for _, step := range r.Job.Steps {
		if step.Name == spec.StepAfterScript || !due(step, all.success()) {
			continue
		}
		one := r.script(ctx, step, r.scriptTimeout(step, began))
		switch {
		case one.success() || ctx.Err() != nil:
		case one.err == nil && step.AllowFailure:
			r.warn("%s failed with %s, and is allowed to", script.StageOf(step.Name), one.exit)
		case all.success():
			all = one
		}
		if one.err != nil {
			break
		}
	}
	return all
}

// due reports whether a step runs after those before it.
func due(step spec.Step, succeeded bool) bool {
	return step.When == "always" || succeeded == (step.When == "" || step.When == "on_success")
}

// scriptTimeout is how long a step may take; 0: as long as the job. RUNNER_SCRIPT_TIMEOUT is for all steps together.
func (r *run) scriptTimeout(step spec.Step, began time.Time) time.Duration {
	timeout := r.settings.ScriptTimeout
	if timeout > 0 {
		timeout = max(timeout-time.Since(began), time.Nanosecond)
	}
	// The forge gives each step the job's timeout, which ends more than the step.
	if own := time.Duration(step.Timeout) * time.Second; own > 0 && step.Timeout < r.Job.RunnerInfo.Timeout && (timeout == 0 || own < timeout) {
		timeout = own
	}
	return timeout
}

// script runs one step.
func (r *run) script(ctx context.Context, step spec.Step, timeout time.Duration) (out result) {
	ctx, cancel := r.stoppable(ctx)
	defer cancel()
	stage := script.StageOf(step.Name)
	if timeout > 0 {
		var done context.CancelFunc
		ctx, done = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: %s took longer than %s", runner.ErrTimeout, stage, timeout.Round(time.Second)))
		defer done()
	}
	out.err = r.stage(stage, func() (err error) {
		out.exit, err = r.exec(ctx, r.vars, step)
		return err
	})
	out.status = statusSuccess
	switch {
	case out.err == nil && out.exit.Success():
	case out.err == nil:
		out.status = statusFailed
	case errors.Is(context.Cause(ctx), errStopped):
		out.err, out.status = errStopped, statusCanceled
		r.warn("script canceled externally (UI, API)")
	case errors.Is(context.Cause(ctx), runner.ErrTimeout):
		out.err, out.status = context.Cause(ctx), statusTimedOut
		r.warn("%s could not run to completion because the timeout was exceeded. For more control over job and script timeouts see: https://docs.gitlab.com/ci/runners/configure_runners/#set-script-and-after_script-timeouts", stage)
	default:
		out.err, out.status = failure(spec.RunnerSystemFailure, out.err), statusFailed
	}
	return out
}

// exec runs a step's script in the job's container, below its entrypoint.
func (r *run) exec(ctx context.Context, v *script.Variables, step spec.Step) (sandbox.Exit, error) {
	env := r.env
	if v != r.vars {
		env, _ = environment(r.image.Env, v)
	}
	text := script.Step(v, step, script.StepOptions{Settings: r.settings, Scripts: r.Runner.Scripts, Sections: r.sections, InEnvironment: r.inEnv})
	return r.on.Exec(ctx, sandbox.Process{
		Args: script.ShellCommand(r.entrypoint()), Env: env, Dir: r.vars.ProjectDir, User: r.own.user,
		Stdin: strings.NewReader(text), Stdout: r.w, Stderr: r.w,
	})
}

// entrypoint is what the job says, else its image's.
func (r *run) entrypoint() []string {
	if r.own.entrypoint != nil {
		return r.own.entrypoint
	}
	return r.image.Entrypoint
}

// afterScript runs after_script, if there is one. What becomes of it is no matter, unless the job says otherwise.
func (r *run) afterScript(ctx context.Context, before result) result {
	for _, step := range r.Job.Steps {
		if step.Name != spec.StepAfterScript || len(step.Script) == 0 {
			continue
		}
		timeout := r.settings.AfterScriptTimeout
		running, cancel := ctx, func() {}
		if timeout > 0 {
			running, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: after_script took longer than %s", runner.ErrTimeout, timeout))
		}
		defer cancel()
		var exit sandbox.Exit
		err := r.stage(script.StageAfterScript, func() (err error) {
			exit, err = r.exec(running, r.vars.With("CI_JOB_STATUS", before.status), step)
			return err
		})
		if ctx.Err() != nil || err == nil && exit.Success() {
			continue
		}
		why := exit.String()
		if err != nil {
			why = err.Error()
		}
		if r.settings.AfterScriptIgnoreErrors {
			r.warn("after_script failed, but job will continue unaffected: %s", why)
			continue
		}
		if before.success() {
			before = result{exit: exit, err: failure(spec.RunnerSystemFailure, err), status: statusFailed}
		}
	}
	return before
}
