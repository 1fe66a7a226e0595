package job

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// plan is a job, read: what of it is to be done, and what is not.
type plan struct {
	cfg Config
	Assigned

	id       string
	scope    scope.Scope
	nesting  sandbox.Nesting
	vars     *script.Variables
	settings script.Settings
	auths    auths
	asking   map[string]string
	pull     sandbox.PullPolicy

	own       image
	services  []service
	engine    *engine // nil if the job has no service that is one
	endpoints []endpoint
	notes     []string // for the log
	request   runner.Request
}

// note says something of the job in its log.
func (p *plan) note(format string, args ...any) {
	p.notes = append(p.notes, fmt.Sprintf(format, args...))
}

// Prepare makes a job ready to run. Its error wraps a *Failure if the job's configuration is the reason. ctx is not
// used after it.
func Prepare(_ context.Context, c Config, a Assigned) (runner.Job, error) {
	p := &plan{cfg: c, Assigned: a}
	if err := p.read(); err != nil {
		return runner.Job{}, fmt.Errorf("prepare job %d: %w", a.Job.ID, err)
	}
	return p.job()
}

func (p *plan) read() (err error) {
	if err := p.supported(); err != nil {
		return err
	}
	r, j := p.Runner, p.Job
	if p.id = p.ID; p.id == "" {
		if p.id, err = newID(j.ID); err != nil {
			return err
		}
	}
	if p.scope, err = scopeOf(r, j); err != nil {
		return err
	}
	p.vars, err = script.NewVariables(j, script.Runner{
		BuildsDir: r.Builds, ConcurrentID: p.ConcurrentID, ConcurrentProjectID: p.ConcurrentProjectID,
		Version: p.cfg.Version, Revision: p.cfg.Revision, ShortToken: p.shortToken(), Environment: r.Env, CAChain: r.CAChain,
	})
	if err != nil {
		return configurationError("%w", err)
	}
	p.settings = p.vars.Settings(j)
	if p.auths, err = readAuths(p.settings.DockerAuthConfig, j.Credentials, p.cfg.Credentials); err != nil {
		p.note("%s is not used: %v", authVariable, err)
	} else if p.auths.helpers() {
		p.note("%s: credHelpers and credsStore are not used: there is nowhere to run them", authVariable)
	}
	p.asking = p.cfg.Asking(p.scope)
	if p.pull = r.Pull; p.pull == "" {
		p.pull = p.cfg.Pull
	}
	p.nesting = r.Nesting
	if len(p.nesting) == 0 {
		p.nesting = sandbox.Nesting{sandbox.Container}
	}
	p.flags()
	if err := p.images(); err != nil {
		return err
	}
	p.endpoints = endpoints([]string{r.URL, r.CloneURL}, j.GitInfo.RepoURL)
	return nil
}

// shortToken is as much of the runner's token as is shown. Its prefix is not, by which logs know tokens, to hide them.
func (p *plan) shortToken() string {
	if prefix, rest, ok := strings.Cut(p.Runner.ShortToken, "-"); ok && strings.HasPrefix(prefix, "gl") {
		return rest
	}
	return p.Runner.ShortToken
}

// supported refuses jobs that ask for what is not done.
func (p *plan) supported() error {
	switch j := p.Job; {
	case j.Run != "":
		return configurationError("the job has run: (CI/CD steps), which this runner does not do: write it as script:")
	case len(j.Secrets) > 0:
		return configurationError("the job has secrets: of a vault, which this runner does not fetch: use masked variables, or fetch them in the script with an id_token")
	case len(j.Steps) == 0:
		return configurationError("the job has no script")
	}
	return nil
}

// images reads the job's image and its services.
func (p *plan) images() (err error) {
	own := spec.Image{Name: p.cfg.Image}
	if p.Runner.Image != "" {
		own.Name = p.Runner.Image
	}
	if i := p.Job.Image; i != nil && i.Name != "" {
		own = *i
	}
	if p.own, err = p.image("Image", own); err != nil {
		return err
	}
	if isDocker(p.own.String()) {
		p.own.tries = append(p.own.tries, p.helperImage())
	}
	if len(p.Job.Services) > maxServices {
		return configurationError("the job has %d services: at most %d", len(p.Job.Services), maxServices)
	}
	for _, s := range p.Job.Services {
		if name := p.vars.Expand(s.Name); isEngine(name, s) {
			p.flatten(name, s)
		} else if err := p.service(s); err != nil {
			return err
		}
	}
	if slices.Contains(p.nesting, sandbox.WASM) {
		return configurationError("the sandbox %s of runner %s runs modules, and a job of GitLab is scripts: register it with container or container/dind", p.nesting, p.Runner.Name)
	}
	if p.engine != nil && !slices.Contains(p.nesting, sandbox.DinD) {
		p.nesting = append(slices.Clone(p.nesting), sandbox.DinD)
	}
	return nil
}

// job is the plan as the runner runs it.
func (p *plan) job() (runner.Job, error) {
	payload, err := json.Marshal(Payload{
		ID: p.Job.ID, Pipeline: p.Job.JobInfo.PipelineID, Runner: p.Runner.Name, URL: p.Runner.URL,
		Project: p.Job.JobInfo.ProjectFullPath, Ref: p.Job.GitInfo.Ref, SHA: p.Job.GitInfo.SHA,
	})
	if err != nil {
		return runner.Job{}, err
	}
	limits := p.Runner.Limits
	if err := p.cfg.Limits(&limits); err != nil {
		return runner.Job{}, configurationError("the limits of runner %s: %w", p.Runner.Name, err)
	}
	first := p.own.tries[0]
	j := runner.Job{
		Request: runner.Request{
			ID: p.id, Name: p.Job.JobInfo.Name, Scope: p.scope, Nesting: p.nesting, Image: first.Ref, Pull: first.Pull.Policy,
			Limits: limits, Timeout: runner.Duration(time.Duration(p.Job.RunnerInfo.Timeout) * time.Second), Kind: Kind, Payload: payload,
		},
		Pull: first.Pull, Else: p.own.tries[1:],
		Secrets: slices.Concat(p.vars.Masked(), p.auths.secrets()),
		Steps:   []runner.Step{&Step{plan: p}},
	}
	p.request = j.Request
	if p.vars.BuildsDir != DefaultBuilds {
		j.Volumes = map[string]string{BuildsVolume: p.vars.BuildsDir}
	}
	if p.clones() && first.Ref != p.cfg.Helper {
		j.Toolbox = &sandbox.Toolbox{Image: p.cfg.Helper, Pull: p.helperImage().Pull}
	}
	if p.engine != nil {
		j.EngineArgs = p.engine.args
		for _, name := range append([]string{"localhost", loopback}, p.engine.names...) {
			j.EngineAt = append(j.EngineAt, "tcp://"+name+":"+plainPort, "tcp://"+name+":"+tlsPort)
		}
	}
	return j, nil
}

// newID is an id for a job, which is run once: with one of a forge, another forge's may have the same number.
func newID(job int64) (string, error) {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	id := fmt.Sprintf("gitlab-%d-%s", job, hex.EncodeToString(b[:]))
	return id, sandbox.CheckID(id)
}

// mergeRequests begins the refs of merge requests.
const mergeRequests = "refs/merge-requests/"

// scopeOf is whose caches a job shares, by what the forge says of it.
func scopeOf(r Runner, j spec.Job) (scope.Scope, error) {
	u, err := url.Parse(r.URL)
	if err != nil || u.Host == "" {
		return scope.Scope{}, fmt.Errorf("the forge's URL %q is none: register the runner again", r.URL)
	}
	kind := scope.Branch
	switch {
	case strings.HasPrefix(j.GitInfo.Ref, mergeRequests):
		kind = scope.MergeRequest
	case j.GitInfo.RefType == string(scope.Tag):
		kind = scope.Tag
	}
	s, err := scope.Of(scope.Origin{
		Forge: u.Host, Project: j.JobInfo.ProjectFullPath, Kind: kind, Ref: j.GitInfo.Ref,
		Protected: j.GitInfo.Protected != nil && *j.GitInfo.Protected,
	})
	if err != nil {
		return s, fmt.Errorf("find whose caches the job shares: %w", err)
	}
	return s, nil
}
