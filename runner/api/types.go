package api

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// Version is the API's; its paths begin with /v1.
const Version = "1.0.0"

// The kinds of payloads of a runner.Request.
const (
	KindScript = "script" // Payload is a Script
	KindBuild  = "build"  // Payload is what the Builder made
)

// Whose says whose caches a job shares; the daemon computes its scope from it. Who may open the socket is the
// machine's operator, and trusted.
type Whose struct {
	Project   string        `json:"project,omitempty" maxLength:"500" doc:"Of this machine's own; empty: default."`
	Untrusted bool          `json:"untrusted,omitempty" doc:"The job reads what trusted jobs of its project have cached, and writes nothing that they read."`
	Origin    *scope.Origin `json:"origin,omitempty" doc:"Where the job comes from, for one who speaks for a forge. It excludes project and untrusted."`
}

func (w Whose) scope() (scope.Scope, error) {
	o := scope.Origin{Project: w.Project, Protected: !w.Untrusted}
	if w.Origin != nil {
		if w.Project != "" || w.Untrusted {
			return scope.Scope{}, fmt.Errorf("%w: origin excludes project and untrusted", ErrInvalid)
		}
		o = *w.Origin
	}
	s, err := scope.Of(o)
	if err != nil {
		return s, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return s, nil
}

// Submission asks for a job that runs one command.
type Submission struct {
	Name string `json:"name,omitempty" maxLength:"200" doc:"For people; the command if empty."`
	Whose
	Sandbox    sandbox.Nesting        `json:"sandbox,omitempty" doc:"The nesting of its sandbox: container (the default), container/dind or container/wasm."`
	Module     sandbox.Module         `json:"module,omitzero" doc:"What WebAssembly modules may see and use, in container/wasm. There script.command begins with the module: its path in the sandbox, or oci:REFERENCE."`
	Image      string                 `json:"image,omitempty" maxLength:"500" doc:"Empty: the configured one."`
	Env        []string               `json:"env,omitempty" maxItems:"10000" doc:"KEY=value, added to the image's."`
	Pull       string                 `json:"pull,omitempty" enum:"if-not-present,always,never" doc:"When the image's registry is asked for it; empty: the configured policy. Whether the job may have the image is asked on every use."`
	Limits     sandbox.Limits         `json:"limits,omitzero"`
	Timeout    runner.Duration        `json:"timeout,omitempty" doc:"Such as 30m; empty: the configured one."`
	Attach     bool                   `json:"attach,omitempty" doc:"The job waits for a client at /v1/jobs/{id}/attach and ends with it."`
	Secrets    []string               `json:"secrets,omitempty" maxItems:"1000" doc:"Texts to hide in the log. Kept in memory only."`
	Script     Script                 `json:"script"`
	Registries map[string]Credentials `json:"registries,omitempty" doc:"By host, docker.io for Docker Hub; only those of the image's are used. Kept in memory only, and hidden in logs."`
	Kept
}

// Kept is what outlives a job. It is part of the payload of a request of KindScript.
type Kept struct {
	Caches    []Cache    `json:"caches,omitempty" maxItems:"20" doc:"Restored before the script, saved after it."`
	Artifacts []Artifact `json:"artifacts,omitempty" maxItems:"20" doc:"Files to keep, as outputs of the job."`
}

// Cache is a cache of files between jobs of one project, in GitLab's words.
type Cache struct {
	Key      string   `json:"key" minLength:"1" maxLength:"1024" doc:"Its name, within what the job's scope sees. Matched byte by byte."`
	Fallback []string `json:"fallback_keys,omitempty" maxItems:"20" doc:"Keys to restore from when there is nothing under key, in this order."`
	Paths    []string `json:"paths" minItems:"1" maxItems:"200" doc:"Files and directories below the job's working directory (script.dir, or /workspace). They may have *, **, ?, [a-z] and {a,b}."`
	Policy   string   `json:"policy,omitempty" enum:"pull,push,pull-push" doc:"Restore, save, or both; empty: both."`
	When     string   `json:"when,omitempty" enum:"on_success,on_failure,always" doc:"After which scripts it is saved; empty: on_success."`
}

// Artifact is what a job leaves.
type Artifact struct {
	Name  string          `json:"name,omitempty" maxLength:"200" doc:"Of the output; empty: artifacts.tar, the second artifacts-2.tar and so on."`
	Paths []string        `json:"paths" minItems:"1" maxItems:"200" doc:"As those of a cache."`
	When  string          `json:"when,omitempty" enum:"on_success,on_failure,always" doc:"After which scripts it is kept; empty: on_success."`
	Keep  runner.Duration `json:"keep,omitempty" doc:"For how long; empty: the configured time."`
}

// Script is one command. It is the payload of a request of KindScript.
type Script struct {
	Command []string `json:"command" minItems:"1" maxItems:"10000" doc:"The argument vector."`
	User    string   `json:"user,omitempty" doc:"user, uid, user:group or uid:gid; empty: the image's."`
	Dir     string   `json:"dir,omitempty" doc:"The working directory; empty: the image's."`
	TTY     bool     `json:"tty,omitempty" doc:"Give the command a pseudo-terminal. Only for attached jobs."`
	Stdin   bool     `json:"stdin,omitempty" doc:"Its standard input comes from the attached client; otherwise it is empty."`
	Rows    uint16   `json:"rows,omitempty" doc:"The terminal's size."`
	Cols    uint16   `json:"cols,omitempty"`
}

// Build asks for the targets of a bake file or of a Dockerfile to be built, each as a job.
type Build struct {
	Workspace string `json:"workspace" doc:"The context, as /v1/workspaces has named it. A build uses it up."`
	Whose
	Files       []string               `json:"files,omitempty" maxItems:"100" doc:"Bake files or one Dockerfile, relative to the workspace. Empty: as docker buildx bake looks for them, then Dockerfile."`
	Targets     []string               `json:"targets,omitempty" maxItems:"1000" doc:"Targets or groups of a bake file; of a Dockerfile one stage."`
	Set         []string               `json:"set,omitempty" maxItems:"1000" doc:"Overrides as docker buildx bake --set has them: target.key=value."`
	Vars        map[string]string      `json:"vars,omitempty" doc:"Values of the bake file's variables."`
	Tags        []string               `json:"tags,omitempty" maxItems:"100"`
	BuildArgs   map[string]string      `json:"build_args,omitempty"`
	Labels      map[string]string      `json:"labels,omitempty"`
	Annotations []string               `json:"annotations,omitempty" maxItems:"1000"`
	Platforms   []string               `json:"platforms,omitempty" maxItems:"100"`
	Outputs     []string               `json:"outputs,omitempty" maxItems:"100" doc:"As docker buildx build --output has them."`
	CacheFrom   []string               `json:"cache_from,omitempty" maxItems:"100"`
	CacheTo     []string               `json:"cache_to,omitempty" maxItems:"100"`
	Secrets     map[string][]byte      `json:"secrets,omitempty" doc:"By id. Kept in memory only, and hidden in logs."`
	Registries  map[string]Credentials `json:"registries,omitempty" doc:"By host, docker.io for Docker Hub; what the build does not name is ignored. Kept in memory only, and hidden in logs."`
	SSH         []string               `json:"ssh,omitempty" maxItems:"100" doc:"The ids of the ssh agents that the client serves at /v1/jobs/{id}/agents/{agent}."`
	Push        bool                   `json:"push,omitempty"`
	NoCache     bool                   `json:"no_cache,omitempty"`
	Pull        bool                   `json:"pull,omitempty"`
	Timeout     runner.Duration        `json:"timeout,omitempty" doc:"Of each target."`
	Limits      sandbox.Limits         `json:"limits,omitzero"`
}

// Credentials are what a registry asks for.
type Credentials struct {
	Username string `json:"username,omitempty" doc:"Empty: the password is an identity token."`
	Password string `json:"password"`
}

// Accepted are the jobs of a build.
type Accepted struct {
	Group string `json:"group" doc:"What they have in common."`
	Jobs  []Job  `json:"jobs" doc:"One a target."`
}

// Job is what is known of a job.
type Job struct {
	ID        string          `json:"id"`
	Name      string          `json:"name,omitempty"`
	Scope     scope.Scope     `json:"scope" doc:"Whose caches it shares."`
	Group     string          `json:"group,omitempty"`
	Kind      string          `json:"kind"`
	Sandbox   sandbox.Nesting `json:"sandbox,omitempty"`
	Image     string          `json:"image,omitempty"`
	Limits    sandbox.Limits  `json:"limits"`
	Timeout   runner.Duration `json:"timeout,omitempty"`
	Attach    bool            `json:"attach,omitempty"`
	State     runner.State    `json:"state" enum:"queued,waiting,opening,running,closing,finished"`
	Detail    string          `json:"detail,omitempty" doc:"Why it is in this state, for people."`
	Result    *Result         `json:"result,omitempty" doc:"Absent until the job is finished."`
	Submitted time.Time       `json:"submitted"`
	Finished  time.Time       `json:"finished,omitzero"`
}

// Result is how a job ended; see runner.Result.
type Result struct {
	Outcome  runner.Outcome  `json:"outcome" enum:"succeeded,failed,errored,rejected,cancelled,timed_out"`
	Reason   string          `json:"reason,omitempty" doc:"A word for programs, such as oom."`
	Message  string          `json:"message,omitempty" doc:"A sentence for people."`
	ExitCode int             `json:"exit_code"`
	Step     string          `json:"step,omitempty" doc:"The step that did not succeed."`
	Usage    sandbox.Usage   `json:"usage"`
	Times    runner.Times    `json:"times"`
	Detail   json.RawMessage `json:"detail,omitempty" doc:"What a step tells beyond its exit code, such as a build's digest."`
}

// jobOf is what clients see of a job: neither its environment nor its payload.
func jobOf(i queue.Info) Job {
	j := Job{
		ID: i.ID, Name: i.Name, Scope: i.Scope, Group: i.Group, Kind: i.Kind,
		Sandbox: i.Nesting, Image: i.Image, Limits: i.Limits, Timeout: i.Timeout, Attach: i.Attach,
		State: i.State, Detail: i.Detail, Submitted: i.Submitted, Finished: i.Finished,
	}
	if r := i.Result; r != nil {
		j.Result = &Result{r.Outcome, r.Reason, r.Message, r.ExitCode, r.Step, r.Usage, r.Times, r.Detail}
	}
	return j
}

// Workspace is an uploaded context.
type Workspace struct {
	ID      string `json:"id"`
	Bytes   int64  `json:"bytes"`
	Entries int64  `json:"entries"`
}

// VersionInfo says what a daemon is.
type VersionInfo struct {
	Version string `json:"version"`
	API     string `json:"api"`
	Go      string `json:"go"`
	Engines any    `json:"engines,omitempty"`
}

// Health says whether a daemon can run jobs.
type Health struct {
	Status string `json:"status" enum:"ok,draining"`
	Active int    `json:"active" doc:"Jobs that are not finished."`
}
