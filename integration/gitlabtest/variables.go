package gitlabtest

import (
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// What the double says that it is.
const (
	serverVersion  = "18.6.0"
	serverRevision = "runnerd"
	userID         = 1
)

// list builds variables in GitLab's order: what comes later wins, in the runner.
type list []spec.Variable

func (l *list) add(key, value string) {
	*l = append(*l, spec.Variable{Key: key, Value: value, Public: true})
}

// addSet is add, if there is a value.
func (l *list) addSet(key, value string) {
	if value != "" {
		l.add(key, value)
	}
}

func (l *list) addSecret(key, value string) {
	*l = append(*l, spec.Variable{Key: key, Value: value, Masked: true})
}

// pipelineVariables are those that do not depend on the job, as in GitLab's Ci::Pipeline#predefined_variables and
// Project#predefined_variables.
func (s *Server) pipelineVariables(p *pipeline) []spec.Variable {
	var l list
	l.add("CI", "true")
	l.add("GITLAB_CI", "true")
	s.serverVariables(&l)
	s.projectVariables(&l, s.defaultBranch(p))
	l.add("CI_PIPELINE_IID", strconv.Itoa(p.iid))
	l.add("CI_PIPELINE_SOURCE", p.Source)
	l.add("CI_PIPELINE_CREATED_AT", p.Created.UTC().Format(time.RFC3339))
	l.add("CI_COMMIT_SHA", p.SHA)
	l.add("CI_COMMIT_SHORT_SHA", p.SHA[:min(8, len(p.SHA))])
	l.add("CI_COMMIT_BEFORE_SHA", p.commit.before)
	l.add("CI_COMMIT_REF_NAME", p.Ref)
	l.add("CI_COMMIT_REF_SLUG", ciyaml.Slug(p.Ref))
	if p.tag {
		l.add("CI_COMMIT_TAG", p.Ref)
	} else {
		l.add("CI_COMMIT_BRANCH", p.Ref)
	}
	title, description, _ := strings.Cut(p.commit.message, "\n")
	l.add("CI_COMMIT_MESSAGE", p.commit.message)
	l.add("CI_COMMIT_TITLE", title)
	l.add("CI_COMMIT_DESCRIPTION", strings.TrimSpace(description))
	l.add("CI_COMMIT_REF_PROTECTED", strconv.FormatBool(!s.o.Project.Unprotected))
	l.add("CI_COMMIT_TIMESTAMP", p.commit.timestamp)
	l.add("CI_COMMIT_AUTHOR", p.commit.author)
	l.add("GITLAB_USER_ID", strconv.Itoa(userID))
	l.add("GITLAB_USER_EMAIL", "user@example.com")
	l.add("GITLAB_USER_LOGIN", "user")
	l.add("GITLAB_USER_NAME", "User")
	return l
}

func (s *Server) serverVariables(l *list) {
	u, err := url.Parse(s.URL)
	if err != nil {
		u = &url.URL{Scheme: "http", Host: "gitlab.invalid"}
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"https": "443"}[u.Scheme]
		port = defaulted(port, "80")
	}
	l.add("CI_SERVER_URL", s.URL)
	l.add("CI_SERVER_HOST", u.Hostname())
	l.add("CI_SERVER_FQDN", u.Host)
	l.add("CI_SERVER_PORT", port)
	l.add("CI_SERVER_PROTOCOL", u.Scheme)
	l.add("CI_SERVER_SHELL_SSH_HOST", u.Hostname())
	l.add("CI_SERVER_SHELL_SSH_PORT", "22")
	l.add("CI_SERVER_NAME", "GitLab")
	l.add("CI_SERVER_VERSION", serverVersion)
	for i, part := range strings.Split(serverVersion, ".") {
		l.add("CI_SERVER_VERSION_"+[]string{"MAJOR", "MINOR", "PATCH"}[i], part)
	}
	l.add("CI_SERVER_REVISION", serverRevision)
	l.add("CI_API_V4_URL", s.URL+"/api/v4")
	l.add("CI_API_GRAPHQL_URL", s.URL+"/api/graphql")
}

func (s *Server) projectVariables(l *list, defaultBranch string) {
	full := s.o.Project.Path
	root, _, _ := strings.Cut(full, "/")
	l.add("CI_PROJECT_ID", strconv.FormatInt(s.o.Project.ID, 10))
	l.add("CI_PROJECT_NAME", path.Base(full))
	l.add("CI_PROJECT_TITLE", path.Base(full))
	l.add("CI_PROJECT_DESCRIPTION", "")
	l.add("CI_PROJECT_PATH", full)
	l.add("CI_PROJECT_PATH_SLUG", ciyaml.Slug(full))
	l.add("CI_PROJECT_NAMESPACE", path.Dir(full))
	l.add("CI_PROJECT_NAMESPACE_SLUG", ciyaml.Slug(path.Dir(full)))
	l.add("CI_PROJECT_NAMESPACE_ID", "1")
	l.add("CI_PROJECT_ROOT_NAMESPACE", root)
	l.add("CI_PROJECT_URL", s.URL+"/"+full)
	l.add("CI_PROJECT_VISIBILITY", "private")
	l.add("CI_PROJECT_REPOSITORY_LANGUAGES", "")
	l.add("CI_PROJECT_CLASSIFICATION_LABEL", "")
	l.add("CI_DEFAULT_BRANCH", defaultBranch)
	l.add("CI_CONFIG_PATH", ".gitlab-ci.yml")
}

// jobVariables are all of a job's, in GitLab's order (Ci::Build#variables): what the job is, the project and pipeline,
// the runner, the file's, dotenv reports, the project's own, and those of whoever started the pipeline.
func (s *Server) jobVariables(j *job, r *runner) []spec.Variable {
	p := j.pipeline
	var l list
	l.add("CI_PIPELINE_ID", strconv.FormatInt(p.ID, 10))
	l.add("CI_PIPELINE_URL", s.URL+"/"+s.o.Project.Path+"/-/pipelines/"+strconv.FormatInt(p.ID, 10))
	s.identity(&l, j)
	l.add("CI_JOB_STARTED_AT", j.Clock.Assigned.UTC().Format(time.RFC3339))
	if s.o.Registry != "" {
		l.add("CI_REGISTRY_USER", tokenUser)
		l.addSecret("CI_REGISTRY_PASSWORD", j.token)
	}
	l = append(l, spec.Variable{Key: "CI_REPOSITORY_URL", Value: s.repositoryURL(j)})
	l.add("CI_JOB_NAME", j.Name)
	l.add("CI_JOB_NAME_SLUG", ciyaml.Slug(j.Name))
	l.add("CI_JOB_STAGE", j.Stage)
	l.add("CI_JOB_GROUP_NAME", defaulted(j.def.Group, j.Name))
	if j.def.When == "manual" {
		l.add("CI_JOB_MANUAL", "true")
	}
	if timeout := s.timeout(j, r); timeout > 0 {
		l.add("CI_JOB_TIMEOUT", strconv.Itoa(timeout))
	}
	if s.o.Registry != "" {
		l.add("CI_REGISTRY", s.o.Registry)
		l.add("CI_REGISTRY_IMAGE", s.o.Registry+"/"+strings.ToLower(s.o.Project.Path))
	}
	l = append(l, p.variables...)
	l.add("CI_RUNNER_ID", strconv.FormatInt(r.ID, 10))
	l.addSet("CI_RUNNER_DESCRIPTION", r.Description)
	l.add("CI_RUNNER_TAGS", tagList(r.Tags))
	if e := j.def.Environment; e != nil {
		l.add("CI_ENVIRONMENT_NAME", e.Name)
		l.add("CI_ENVIRONMENT_SLUG", e.Slug)
		l.addSet("CI_ENVIRONMENT_URL", e.URL)
		l.addSet("CI_ENVIRONMENT_ACTION", e.Action)
		l.addSet("CI_ENVIRONMENT_TIER", e.Tier)
	}
	l = append(l, s.fileVariables(j, l)...)
	for _, name := range j.def.Dependencies {
		if d := p.byName[name]; d != nil {
			l = append(l, d.dotenv...)
		}
	}
	l = append(l, s.o.Variables...)
	for _, key := range slices.Sorted(maps.Keys(p.given)) {
		l = append(l, spec.Variable{Key: key, Value: p.given[key]})
	}
	return l
}

// identity says which job it is, and how it speaks with GitLab.
func (s *Server) identity(l *list, j *job) {
	l.add("CI_JOB_ID", strconv.FormatInt(j.ID, 10))
	l.add("CI_JOB_URL", s.URL+"/"+s.o.Project.Path+"/-/jobs/"+strconv.FormatInt(j.ID, 10))
	l.addSecret("CI_JOB_TOKEN", j.token)
}

// fileVariables are those of the pipeline's file: what the parser knows beside what it was told.
func (s *Server) fileVariables(j *job, predefined list) []spec.Variable {
	told := map[string]string{}
	for _, v := range predefined {
		told[v.Key] = v.Value
	}
	others := map[string]bool{}
	for _, v := range s.o.Variables {
		others[v.Key] = true
	}
	for k := range j.pipeline.given {
		others[k] = true
	}
	var out []spec.Variable
	for _, v := range j.def.Variables {
		if value, ok := told[v.Key]; others[v.Key] || ok && value == v.Value {
			continue
		}
		v.Public = true
		out = append(out, v)
	}
	return out
}

func tagList(tags []string) string {
	quoted := make([]string, len(tags))
	for i, t := range tags {
		quoted[i] = strconv.Quote(t)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
