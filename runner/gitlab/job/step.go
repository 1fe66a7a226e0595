package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// Step is all that a job does in its sandbox.
type Step struct {
	plan *plan

	mu     sync.Mutex
	detail Detail
}

var (
	_ runner.Step     = (*Step)(nil)
	_ runner.Detailer = (*Step)(nil)
)

// Name is the step's name in the job's result.
func (s *Step) Name() string { return "job" }

// Detail is a Detail.
func (s *Step) Detail() json.RawMessage {
	s.mu.Lock()
	defer s.mu.Unlock()
	text, err := json.Marshal(s.detail)
	if err != nil {
		return nil
	}
	return text
}

// Run does it. See runner.Step.
func (s *Step) Run(ctx context.Context, on sandbox.Host, out runner.Output) (exit sandbox.Exit, err error) {
	life, end := context.WithCancel(ctx)
	r := &run{
		plan: s.plan, trace: &trace{w: out.Stream(runner.Stdout), sections: s.plan.Job.Features.TraceSections},
		on: on, life: life, began: time.Now(), hosts: map[string]string{},
	}
	r.read()
	defer func() {
		r.Session.Close()
		end()
		r.background.Wait()
		s.mu.Lock()
		s.detail = Detail{FailureReason: reasonOf(exit, err), Stages: r.stages}
		s.mu.Unlock()
		if log := r.cfg.Log; log != nil {
			log.Debug("job's stages", "job", r.id, "stages", r.stages)
		}
	}()
	exit, err = r.all(ctx)
	r.linger(ctx)
	r.took("job", r.began)
	return exit, err
}

// reasonOf is what the forge is told of a job's end; nothing if it succeeded or was cancelled.
func reasonOf(exit sandbox.Exit, err error) spec.FailureReason {
	var f *Failure
	switch {
	case err == nil && exit.Success(), errors.Is(err, runner.ErrCancelled):
		return ""
	case err == nil:
		return spec.ScriptFailure
	case errors.As(err, &f):
		return f.Reason
	case errors.Is(err, runner.ErrTimeout):
		return spec.JobExecutionTimeout
	case errors.Is(err, runner.ErrShutdown):
		return spec.RunnerInterrupted
	default:
		return spec.RunnerSystemFailure
	}
}

// failure gives an error a reason, if it has none.
func failure(reason spec.FailureReason, err error) error {
	var f *Failure
	if err == nil || errors.As(err, &f) {
		return err
	}
	return &Failure{Reason: reason, Err: err}
}

// run is a job while it runs.
type run struct {
	*plan
	*trace
	on    sandbox.Host
	began time.Time
	// life ends with the job, and with it all that is in background.
	life       context.Context
	background sync.WaitGroup

	hosts   map[string]string // names that the sandbox gets
	started []*running
	helper  *helper
	kept    *Kept
	image   sandbox.ImageConfig
	env     []string // of the scripts
	inEnv   bool     // they need not repeat it
}

// read finds out how the job's container runs processes.
func (r *run) read() {
	if imaged, ok := ability[sandbox.Imaged](r.on); ok {
		r.image = imaged.ImageConfig()
	}
	r.env, r.inEnv = environment(r.image.Env, r.vars)
	if len(r.entrypoint()) > 0 { // it may change the environment
		r.inEnv = false
	}
}

// ability finds an ability of a sandbox.
func ability[T any](on sandbox.Host) (T, bool) {
	if a, ok := on.(T); ok {
		return a, true
	}
	if sb, ok := on.(sandbox.Sandbox); ok {
		return sandbox.As[T](sb)
	}
	var none T
	return none, false
}

// maxEntry is how long an entry of an environment may be for Linux to pass it on (MAX_ARG_STRLEN), in bytes.
const maxEntry = 128<<10 - 1

// environment joins what an image has with the job's variables. whole is false if some of those do not fit in.
func environment(base []string, v *script.Variables) (env []string, whole bool) {
	whole = true
	at := map[string]int{}
	for _, entry := range slices.Concat(base, v.Env()) {
		key, _, _ := strings.Cut(entry, "=")
		if len(entry) > maxEntry {
			whole = false
			continue
		}
		if i, ok := at[key]; ok {
			env[i] = entry
			continue
		}
		at[key] = len(env)
		env = append(env, entry)
	}
	return env, whole
}

// errStopped is why a job ends that its forge cancels.
var errStopped = fmt.Errorf("%w by GitLab", runner.ErrCancelled)

// stoppable returns a context that ends, too, when the forge cancels the job.
func (r *run) stoppable(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-r.Stop:
			cancel(errStopped)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// all does everything, in order. Its exit and error are a step's.
func (r *run) all(ctx context.Context) (sandbox.Exit, error) {
	r.write(script.Banner("runnerd", r.cfg.Version, r.cfg.Revision, r.Runner.Name, r.shortToken(), r.Runner.SystemID))
	exit, err := r.before(ctx)
	if err != nil || !exit.Success() {
		// Nothing of the job's has run, but what keeps it may be told to keep what there is.
		if err == nil {
			err = r.keep(ctx, false)
		}
		return exit, err
	}
	r.Session.Attach(r.beside)
	result := r.scripts(ctx)
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	result = r.afterScript(ctx, result)
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	if err := r.keep(ctx, result.success()); err != nil && result.success() {
		var failed *ArtifactError
		if errors.As(err, &failed) {
			return sandbox.Exit{Code: 1}, nil
		}
		return sandbox.Exit{}, failure(spec.RunnerSystemFailure, err)
	}
	if ctx.Err() != nil {
		return sandbox.Exit{}, context.Cause(ctx)
	}
	return result.exit, result.err
}

// beside runs the shell of a terminal in the job's container, with the environment, directory and user of the script.
func (r *run) beside(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	p.Env, p.Dir, p.User = r.env, r.vars.ProjectDir, r.own.user
	return r.on.Exec(ctx, p)
}

// linger waits for a terminal that is still open: who looks for why the job failed needs its sandbox. What has become of
// the job stands, whatever ends the wait (gitlab-runner, common/build.go, waitForTerminal).
func (r *run) linger(ctx context.Context) {
	ctx, cancel := r.stoppable(ctx)
	defer cancel()
	select {
	case <-r.Stop:
		return
	case <-ctx.Done():
		return
	default:
	}
	r.Session.Linger(ctx, func(timeout time.Duration) {
		r.say("Terminal is connected: the job ends when it is closed, in %s at the latest", timeout)
	})
}

// before does what comes before the script.
func (r *run) before(ctx context.Context) (exit sandbox.Exit, err error) {
	ctx, cancel := r.stoppable(ctx)
	defer cancel()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
			return
		}
		err = failure(spec.RunnerSystemFailure, err)
	}()
	r.findHelper(ctx)
	r.startServices(ctx)
	r.startEngine()
	if err := r.stage(script.StagePrepareExecutor, func() error { return r.prepareExecutor(ctx) }); err != nil {
		return exit, err
	}
	err = r.stage(script.StagePrepare, func() error { r.prepareEnvironment(); return ctx.Err() })
	if err != nil {
		return exit, err
	}
	err = r.stage(script.StageGetSources, func() (err error) { exit, err = r.sources(ctx); return err })
	if err != nil || !exit.Success() {
		return exit, err
	}
	if err := r.restore(ctx); err != nil {
		return r.artifacts(err)
	}
	return exit, r.awaitServices(ctx)
}

// artifacts is how a job ends that could not get its artifacts.
func (r *run) artifacts(err error) (sandbox.Exit, error) {
	var failed *ArtifactError
	if errors.As(err, &failed) {
		return sandbox.Exit{Code: 1}, nil
	}
	return sandbox.Exit{}, err
}

// prepareExecutor says what the job gets, and makes reachable in the sandbox what is to be.
func (r *run) prepareExecutor(ctx context.Context) error {
	for _, w := range r.settings.Warnings {
		r.warn("%s", w)
	}
	for _, n := range r.notes {
		r.say("%s", n)
	}
	for _, s := range r.services {
		r.say("Starting service %s ...", s.image)
	}
	wanted := r.own.String()
	if r.image.Reference != "" && r.image.Reference != wanted {
		r.warn("The image %s cannot be had. The job runs in %s, which has docker, buildx, git and Bash; it is Debian, so there is apt-get and no apk. To use the image itself, push it to runnerd's registry or let runnerd mirror its registry (registry.mirror)",
			wanted, r.image.Reference)
		wanted = r.image.Reference
	}
	r.say("Using image %s (pull policy: %s) in a sandbox of its own: %s", wanted, r.own.tries[0].Pull.Policy, r.nesting)
	r.say("Caches are those of %s", r.scope)
	if r.engine != nil {
		if err := r.offerEngine(ctx); err != nil {
			return err
		}
	}
	if err := r.reach(ctx); err != nil {
		return err
	}
	if len(r.hosts) == 0 {
		return nil
	}
	named, ok := ability[sandbox.Named](r.on)
	if !ok {
		return fmt.Errorf("%T gets no names for hosts", r.on)
	}
	return named.AddHosts(maps.Clone(r.hosts))
}

func (r *run) prepareEnvironment() {
	r.say("Running on %s...", r.id)
}
