// Package ciyaml reads a .gitlab-ci.yml as GitLab does: included files, extended and referenced parts, rules, matrices
// and needs become a pipeline of jobs whose parts are those of the messages that a runner gets.
//
// Sources: GitLab's documentation, "CI/CD YAML syntax reference", and its editor's schema (v19.4). It reads from an
// fs.FS only, starts nothing, and asks no server: what would need one is refused, or warned of.
package ciyaml

import (
	"errors"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Options say what a pipeline is made for.
type Options struct {
	Source        string // CI_PIPELINE_SOURCE: push, web, schedule, merge_request_event, api, …; empty: push
	Branch        string // of the commit; empty for a tag
	Tag           string // of the commit; empty for a branch
	DefaultBranch string // empty: main
	ProjectPath   string // group/project, for only: branches@group/project
	Protected     bool   // the ref is protected: its caches have a suffix of their own

	// Predefined are the variables that all jobs have, and that the file may overwrite: CI_COMMIT_SHA and so on. Those that
	// follow from the fields above (CI_COMMIT_BRANCH, CI_COMMIT_REF_SLUG, CI_PIPELINE_SOURCE, …) need not be in it.
	Predefined map[string]string
	// Variables are those of the project and of whoever starts the pipeline. They overwrite those of the file.
	Variables map[string]string

	// Files are the repository's, by their paths, for rules:exists and globs. Nil: all that there are in the file system.
	Files []string
	// Changed are the files that the push changed, for rules:changes. Nil: not known, and then all rules:changes match, as
	// they do in GitLab for a new branch.
	Changed []string
	// ChangedSince tells what changed since a ref, for rules:changes:compare_to. Nil: not known.
	ChangedSince func(ref string) ([]string, error)
}

// Pipeline is what a file makes of a push.
type Pipeline struct {
	Name     string     `json:"name,omitempty"` // workflow:name
	Stages   []string   `json:"stages"`         // all, in order, .pre and .post among them
	Jobs     []*Job     `json:"jobs"`           // in the order of their stages, then of the file
	Excluded []Excluded `json:"excluded,omitempty"`
	Warnings []string   `json:"warnings,omitempty"` // what is ignored, and where; FILE:LINE: MESSAGE
	Files    []string   `json:"files"`              // that it was read from, the included ones after the first

	order map[string]int // of Stages
}

// Job is one job of a pipeline.
type Job struct {
	Name  string `json:"name"`            // test, or of several: test 1/3, test: [linux, amd64]
	Group string `json:"group,omitempty"` // its key in the file, if it is one of several
	Stage string `json:"stage"`
	Place string `json:"place"` // FILE:LINE

	// DAG says that the job has needs, and waits for those only. Without it, it waits for all jobs of the stages before.
	DAG   bool   `json:"dag,omitempty"`
	Needs []Need `json:"needs,omitempty"`
	// Dependencies are the jobs whose artifacts it gets, in the order of the pipeline.
	Dependencies []string `json:"dependencies,omitempty"`

	When          string        `json:"when"` // on_success, on_failure, always, manual, delayed
	StartIn       time.Duration `json:"start_in,omitempty"`
	AllowFailure  AllowFailure  `json:"allow_failure,omitzero"`
	Retry         Retry         `json:"retry,omitzero"`
	Timeout       time.Duration `json:"timeout,omitempty"` // 0: the project's
	Tags          []string      `json:"tags,omitempty"`
	Interruptible bool          `json:"interruptible,omitempty"`
	ResourceGroup string        `json:"resource_group,omitempty"`
	Coverage      string        `json:"coverage,omitempty"` // a regular expression between slashes
	Environment   *Environment  `json:"environment,omitempty"`
	Rule          string        `json:"rule,omitempty"` // which rule let it in: FILE:LINE
	Confirmation  string        `json:"manual_confirmation,omitempty"`

	// What follows goes into spec.Job as it is. Variables are all of them: the predefined first, then the file's, then the
	// given ones; each name is there once. Their values are not expanded.
	Image     *spec.Image     `json:"image,omitempty"`
	Services  []spec.Image    `json:"services,omitempty"`
	Variables []spec.Variable `json:"variables,omitempty"`
	Steps     []spec.Step     `json:"steps,omitempty"` // script, release, after_script
	Cache     []spec.Cache    `json:"cache,omitempty"`
	Artifacts []spec.Artifact `json:"artifacts,omitempty"` // the archive first, then reports
	Hooks     []spec.Hook     `json:"hooks,omitempty"`

	needs *needs // as in the file
}

// Need is a job that another waits for.
type Need struct {
	Job       string `json:"job"`
	Artifacts bool   `json:"artifacts"`
	Optional  bool   `json:"optional,omitempty"`
}

// AllowFailure says when a failed job does not make its pipeline fail.
type AllowFailure struct {
	Always    bool  `json:"always,omitempty"`
	ExitCodes []int `json:"exit_codes,omitempty"`
}

// Allows reports whether a job may fail with that exit code; -1: it failed without one.
func (a AllowFailure) Allows(code int) bool {
	for _, c := range a.ExitCodes {
		if c == code {
			return true
		}
	}
	return a.Always
}

// Retry says how often, and after which failures, a job runs again.
type Retry struct {
	Max       int      `json:"max,omitempty"`  // 0 to 2
	When      []string `json:"when,omitempty"` // failure reasons, or always; none: always
	ExitCodes []int    `json:"exit_codes,omitempty"`
}

// Again reports whether a job that failed for that reason, with that exit code, for the tries-th time, runs again.
func (r Retry) Again(tries int, reason spec.FailureReason, code int) bool {
	if tries > r.Max {
		return false
	}
	for _, c := range r.ExitCodes {
		if c == code {
			return true
		}
	}
	for _, w := range r.When {
		if w == "always" || w == string(reason) {
			return true
		}
	}
	return len(r.When) == 0 && len(r.ExitCodes) == 0
}

// Environment is where a job deploys to.
type Environment struct {
	Name   string `json:"name"`
	Slug   string `json:"slug"`
	URL    string `json:"url,omitempty"`
	Action string `json:"action"` // start, prepare, stop, verify, access
	Tier   string `json:"deployment_tier,omitempty"`
	OnStop string `json:"on_stop,omitempty"`
}

// Excluded is a job of the file that is not in the pipeline.
type Excluded struct {
	Name   string `json:"name"`
	Stage  string `json:"stage"`
	Reason string `json:"reason"`
}

// ErrFiltered says that workflow:rules want no pipeline, ErrEmpty that the rules of the jobs leave none. The pipeline
// that Parse gives with them says why.
var (
	ErrFiltered = errors.New("Pipeline filtered out by workflow rules.")
	ErrEmpty    = errors.New("The resulting pipeline would have been empty. Review the rules configuration for the relevant jobs.")
)

// Job finds a job by its name.
func (p *Pipeline) Job(name string) *Job {
	for _, j := range p.Jobs {
		if j.Name == name {
			return j
		}
	}
	return nil
}

// Before has the jobs that one waits for, in the order of the pipeline.
func (p *Pipeline) Before(j *Job) []*Job {
	need := map[string]bool{}
	for _, n := range j.Needs {
		need[n.Job] = true
	}
	var before []*Job
	for _, other := range p.Jobs {
		if j.DAG && need[other.Name] || !j.DAG && p.index(other.Stage) < p.index(j.Stage) {
			before = append(before, other)
		}
	}
	return before
}

func (p *Pipeline) index(stage string) int {
	if p.order == nil {
		p.order = make(map[string]int, len(p.Stages))
		for i, s := range p.Stages {
			p.order[s] = i
		}
	}
	return p.order[stage]
}
