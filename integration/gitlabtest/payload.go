package gitlabtest

import (
	"net/url"
	"path"
	"slices"
	"strconv"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// tokenUser is who a job is for git and registries.
const tokenUser = "gitlab-ci-token"

// template is what a pipeline's file says of a job.
func (s *Server) template(p *pipeline, def *ciyaml.Job) spec.Job {
	protected := !s.o.Project.Unprotected
	j := spec.Job{
		AllowGitFetch: true,
		JobInfo: spec.JobInfo{
			Name: def.Name, Stage: def.Stage, PipelineID: p.ID, ProjectID: s.o.Project.ID,
			ProjectName: path.Base(s.o.Project.Path), ProjectFullPath: s.o.Project.Path,
			NamespaceID: 1, RootNamespaceID: 1, UserID: userID,
		},
		GitInfo: spec.GitInfo{
			RepoObjectFormat: "sha1", Ref: p.Ref, SHA: p.SHA, BeforeSHA: p.commit.before, RefType: "branch",
			Depth: max(0, s.o.Depth), Protected: &protected,
		},
		Image: def.Image, Services: def.Services, Artifacts: def.Artifacts, Cache: def.Cache, Hooks: def.Hooks,
		Steps: slices.Clone(def.Steps),
	}
	if len(p.SHA) == 64 {
		j.GitInfo.RepoObjectFormat = "sha256"
	}
	for _, v := range def.Variables {
		if n, err := strconv.Atoi(v.Value); v.Key == "GIT_DEPTH" && err == nil && n >= 0 {
			j.GitInfo.Depth = n
		}
	}
	if p.tag {
		j.GitInfo.RefType = "tag"
	}
	j.GitInfo.Refspecs = refspecs(j.GitInfo, p.ID)
	return j
}

// refspecs are as in GitLab's Ci::BuildRunnerPresenter.
func refspecs(g spec.GitInfo, pipeline int64) []string {
	own := "refs/pipelines/" + strconv.FormatInt(pipeline, 10)
	out := []string{"+" + own + ":" + own}
	switch {
	case g.Depth == 0:
		return append(out, "+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
	case g.RefType == "tag":
		return append(out, "+refs/tags/"+g.Ref+":refs/tags/"+g.Ref)
	}
	return append(out, "+refs/heads/"+g.Ref+":refs/remotes/origin/"+g.Ref)
}

// fill makes the payload of a job that was just assigned. The lock is held.
func (s *Server) fill(j *job, r *runner) spec.Job {
	out := j.spec
	out.ID, out.Token = j.ID, j.token
	out.JobInfo.Name, out.JobInfo.Stage = j.Name, j.Stage
	out.JobInfo.ProjectID = defaulted(out.JobInfo.ProjectID, s.o.Project.ID)
	out.JobInfo.ProjectName = defaulted(out.JobInfo.ProjectName, path.Base(s.o.Project.Path))
	out.JobInfo.ProjectFullPath = defaulted(out.JobInfo.ProjectFullPath, s.o.Project.Path)
	out.JobInfo.TimeInQueueSeconds = time.Since(j.Clock.Offered).Seconds()
	for _, o := range s.jobs {
		if o.Status == Pending && !o.waitsForAck {
			out.JobInfo.QueueSize++
		}
	}
	out.RunnerInfo.Timeout = s.timeout(j, r)
	out.RunnerInfo.RunnerUUID = r.UUID
	out.Features.TraceSections = true
	out.Features.TokenMaskPrefixes = append(slices.Clone(out.Features.TokenMaskPrefixes), s.o.MaskPrefixes...)
	if out.Features.FailureReasons == nil {
		out.Features.FailureReasons = s.o.FailureReasons
	}
	out.Steps = slices.Clone(out.Steps)
	for i := range out.Steps {
		out.Steps[i].Timeout = defaulted(out.Steps[i].Timeout, out.RunnerInfo.Timeout)
	}
	if j.pipeline == nil {
		var l list
		s.identity(&l, j)
		l.add("CI_SERVER_URL", s.URL)
		l.add("CI_API_V4_URL", s.URL+"/api/v4")
		out.Variables = append(l, out.Variables...)
		return out
	}
	out.GitInfo.RepoURL = s.repositoryURL(j)
	out.Variables = s.jobVariables(j, r)
	if s.o.Registry != "" {
		out.Credentials = append(out.Credentials, spec.Credential{
			Type: "registry", URL: s.o.Registry, Username: tokenUser, Password: j.token,
		})
	}
	for _, name := range j.def.Dependencies {
		if d := j.pipeline.byName[name]; d != nil {
			out.Dependencies = append(out.Dependencies, j.dependency(d))
		}
	}
	return out
}

// dependency lets the runner have another job's archive, by a token of its own: a runner that sends the job's is wrong.
func (j *job) dependency(d *job) spec.Dependency {
	out := spec.Dependency{ID: d.ID, Name: d.Name, Token: "glcbt-64_" + random(12)}
	j.depTokens[out.Token] = d
	if a := d.artifact("archive"); a != nil {
		out.ArtifactsFile.Filename, out.ArtifactsFile.Size = a.Name, a.Size
	}
	return out
}

// timeout is how long a job may take, in seconds.
func (s *Server) timeout(j *job, r *runner) int {
	t := defaulted(j.spec.RunnerInfo.Timeout, int(defaulted(j.def.Timeout, s.o.Timeout).Seconds()))
	if r.MaximumTimeout > 0 {
		t = min(t, r.MaximumTimeout)
	}
	return t
}

// repositoryURL has the job's token in it.
func (s *Server) repositoryURL(j *job) string {
	u, err := url.Parse(s.URL)
	if err != nil {
		return s.URL
	}
	u.User = url.UserPassword(tokenUser, j.token)
	u.Path += "/" + s.o.Project.Path + ".git"
	return u.String()
}
