package script

import (
	"fmt"
	"net/url"
	"path"
	"runtime"
	"strconv"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Runner is what the runner itself tells a job.
type Runner struct {
	BuildsDir           string // where projects are, in the job's container; empty: /builds
	ConcurrentID        int    // which of the runner's jobs at the time this is, from 0
	ConcurrentProjectID int    // which of the project's
	Version, Revision   string
	ShortToken          string   // the first eight characters of the runner's token, without its prefix
	Environment         []string // the registration's: KEY=VALUE
	CAChain             string   // certificates of the forge, PEM; empty: those of the system
}

// envFile is the name of the file that a job may write variables into for its later stages.
const envFile = "gitlab_runner_env"

const defaultTimeout = 2 * 60 * 60 // seconds, gitlab-runner's for a job without one

// CAVariable is the file variable that holds Runner.CAChain.
const CAVariable = "CI_SERVER_TLS_CA_FILE"

// NewVariables are all variables of a job, in gitlab-runner's order of precedence: what the runner tells, the job's
// own, and what the runner insists on; secrets, which were fetched for the job, come last.
func NewVariables(job spec.Job, r Runner, secrets ...spec.Variable) (*Variables, error) {
	builds := path.Join("/", r.BuildsDir)
	if builds == "/" {
		builds = "/builds"
	}
	// Where the project goes may depend on variables, and variables on where it goes.
	early, err := expand(collect(job, r, builds, "", secrets), "")
	if err != nil {
		return nil, err
	}
	dir, err := projectDir(job, builds, early)
	if err != nil {
		return nil, err
	}
	v, err := expand(collect(job, r, builds, dir, secrets), dir+".tmp")
	if err != nil {
		return nil, err
	}
	v.BuildsDir, v.ProjectDir = builds, dir
	v.tokens = tokens(job)
	return v, nil
}

// collect puts all variables into the order of their precedence. Without a dir, those that tell of it are left out.
func collect(job spec.Job, r Runner, builds, dir string, secrets []spec.Variable) []spec.Variable {
	var all []spec.Variable
	own := func(key, value string) {
		all = append(all, spec.Variable{Key: key, Value: value, Public: true})
	}
	if job.Image != nil && job.Image.Name != "" {
		own("CI_JOB_IMAGE", job.Image.Name)
	}
	own("CI_RUNNER_SHORT_TOKEN", r.ShortToken)
	for _, e := range r.Environment {
		if key, value, ok := strings.Cut(e, "="); ok {
			own(key, value)
		}
	}
	own("CI_BUILDS_DIR", builds)
	if dir != "" {
		own("CI_PROJECT_DIR", dir)
	}
	own("CI_CONCURRENT_ID", strconv.Itoa(r.ConcurrentID))
	own("CI_CONCURRENT_PROJECT_ID", strconv.Itoa(r.ConcurrentProjectID))
	own("CI_SERVER", "yes")
	own("CI_JOB_STATUS", string(spec.Running))
	timeout := job.RunnerInfo.Timeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	own("CI_JOB_TIMEOUT", strconv.Itoa(timeout))
	if r.CAChain != "" {
		all = append(all, spec.Variable{Key: CAVariable, Value: r.CAChain, Public: true, File: true, Raw: true})
	}
	all = append(all, job.Variables...)
	own("CI_DISPOSABLE_ENVIRONMENT", "true")
	own("CI_RUNNER_VERSION", r.Version)
	own("CI_RUNNER_REVISION", r.Revision)
	own("CI_RUNNER_EXECUTABLE_ARCH", runtime.GOOS+"/"+runtime.GOARCH)
	all = append(all, secrets...)
	if dir != "" {
		own("RUNNER_TEMP_PROJECT_DIR", dir+".tmp")
		own("GITLAB_ENV", path.Join(dir+".tmp", envFile))
	}
	return all
}

// projectDir is where the project's files are: what GIT_CLONE_PATH says, or the project's path below the builds.
func projectDir(job spec.Job, builds string, v *Variables) (string, error) {
	if custom := v.Value("GIT_CLONE_PATH"); custom != "" {
		dir := path.Clean(custom)
		if !strings.HasPrefix(dir, builds+"/") {
			return "", fmt.Errorf("GIT_CLONE_PATH is %q, which is not in %s: begin it with $CI_BUILDS_DIR/", custom, builds)
		}
		return dir, nil
	}
	slug := "project-" + strconv.FormatInt(job.JobInfo.ProjectID, 10)
	if u, err := url.Parse(job.GitInfo.RepoURL); err == nil && u.Host != "" {
		if s := path.Clean(strings.TrimSuffix(u.Path, ".git")); s != "." && s != "/" && !strings.Contains(s, "..") {
			slug = s
		}
	}
	if v.Value("GIT_STRATEGY") == string(GitEmpty) {
		slug += "-empty"
	}
	return path.Join(builds, slug), nil
}

// tokens are the secrets of a job that need not be variables.
func tokens(job spec.Job) []string {
	var all []string
	add := func(s string) {
		if s != "" {
			all = append(all, s)
		}
	}
	add(job.Token)
	add(repoToken(job))
	for _, d := range job.Dependencies {
		add(d.Token)
	}
	for _, c := range job.Credentials {
		add(c.Password)
	}
	return all
}

// repoToken is the token for the repository: the one in its URL, else the job's.
func repoToken(job spec.Job) string {
	if u, err := url.Parse(job.GitInfo.RepoURL); err == nil && u.User != nil {
		if password, ok := u.User.Password(); ok && password != "" {
			return password
		}
	}
	return job.Token
}
