// Package job runs a GitLab job in a sandbox: it turns what the forge says into a runner.Job, whose one step does
// everything in the order that gitlab-runner does it.
package job

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/runner/gitlab/terminal"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// Kind is that of a request that is a job of GitLab.
const Kind = "gitlab"

// Where repositories are, in all containers of a sandbox: the volume, and where it is seen if a runner does not say.
const (
	BuildsVolume  = "builds"
	DefaultBuilds = "/builds"
)

// rootUser is the root of a sandbox, whatever its image says.
const rootUser = "0:0"

// Config is what running jobs needs of the daemon. All fields but Credentials, Archiver, Caches and Log are needed.
type Config struct {
	Version, Revision string // of runnerd

	// Image is that of a job that names none, here or in its runner's registration. Helper has git and Bash 5, and is
	// what a job gets that asks for Docker's image where no registry has that.
	Image, Helper string
	// Pull is how images are got for those who do not say.
	Pull sandbox.PullPolicy
	// Limits fills in the limits that are not said, and refuses those that may not be.
	Limits func(*sandbox.Limits) error
	// Asking tells the machine's registry who asks.
	Asking func(scope.Scope) map[string]string
	// Credentials are the operator's for a registry.
	Credentials func(host string) (username, password string, ok bool)

	// Archiver and Caches keep what outlives a job; see Kept.
	Archiver Archiver
	Caches   func(r runner.Request) CacheStore
	// CacheTimeout bounds how long saving or restoring one cache may take.
	CacheTimeout time.Duration
	// ServiceTimeout is how long services are waited for; negative: not at all.
	ServiceTimeout time.Duration

	// Dial connects on the machine; Files, Resolver and Addresses say which addresses hosts have there, and which are
	// the machine's own. See Machine.
	Dial            func(ctx context.Context, network, address string) (net.Conn, error)
	Files, Resolver Resolver
	Addresses       func() ([]net.Addr, error)

	Log *slog.Logger // nil: nothing is logged
}

// DefaultServiceTimeout is gitlab-runner's (common/consts.go, DefaultWaitForServicesTimeout).
const DefaultServiceTimeout = 30 * time.Second

// Machine sets how c sees the machine that it is on.
func (c Config) Machine() Config {
	c.Dial = (&net.Dialer{}).DialContext
	c.Files, c.Resolver, c.Addresses = FilesResolver(), net.DefaultResolver, net.InterfaceAddrs
	return c
}

// Runner is what of a runner's registration concerns its jobs.
type Runner struct {
	Name       string
	ShortToken string // as much of its token as may be shown
	SystemID   string
	URL        string // of the forge, without a slash at its end
	CloneURL   string // of repositories, if not as the forge says
	CAChain    string // certificates of the forge, PEM; empty: those of the system

	Nesting sandbox.Nesting
	Image   string
	Pull    sandbox.PullPolicy
	Limits  sandbox.Limits
	Env     []string // KEY=value
	Builds  string   // where repositories are; empty: DefaultBuilds
	Scripts script.Scripts
}

// Assigned is a job of a runner.
type Assigned struct {
	// ID is what the job is called on this machine; empty: a new name is made.
	ID     string
	Runner Runner
	Job    spec.Job
	Forge  Forge
	// Session is the job's terminal; nil: it has none. It is closed when the job ends.
	Session *terminal.Session
	// Stop is closed when the forge says that the job is to be cancelled: its script is stopped, and its after_script
	// still runs. May be nil.
	Stop <-chan struct{}
	// ConcurrentID is which of the runner's jobs this is, ConcurrentProjectID which of the project's, from 0.
	ConcurrentID, ConcurrentProjectID int
	// CorrelationID is the id of the request that brought the job.
	CorrelationID string
}

// Failure is why a job failed, where it was not its script.
type Failure struct {
	Reason spec.FailureReason
	Err    error
}

func (f *Failure) Error() string { return f.Err.Error() }

// FailureReason is what the forge is told.
func (f *Failure) FailureReason() spec.FailureReason { return f.Reason }

// Unwrap returns what has failed.
func (f *Failure) Unwrap() error { return f.Err }

// ImageFailure is the Failure of an image that cannot be had.
func ImageFailure(err error) error { return failure(spec.ImagePullFailure, err) }

// Payload is what a request of Kind holds, for people and for the journal. It holds no secret.
type Payload struct {
	ID       int64  `json:"id"`
	Pipeline int64  `json:"pipeline"`
	Runner   string `json:"runner"`
	URL      string `json:"url"` // of the forge
	Project  string `json:"project"`
	Ref      string `json:"ref"`
	SHA      string `json:"sha"`
}

// Detail is what a job tells at its end, beyond its outcome (runner.Result.Detail).
type Detail struct {
	// FailureReason is empty for a job that succeeded or was cancelled.
	FailureReason spec.FailureReason `json:"failure_reason,omitempty"`
	// Stages are how long each took, in the order they ended in; some ran at once.
	Stages []Stage `json:"stages"`
}

func (a Assigned) String() string {
	return fmt.Sprintf("%s %s (%s)", a.Job.JobInfo.ProjectFullPath, a.Job.JobInfo.Name, a.Job.GitInfo.Ref)
}
