package api

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Runners are this machine's, at the forges. Errors that are a forge's are *ForgeProblem; those of a name that is not
// known wrap ErrNoRunner, of one that is taken ErrRunnerExists, of what cannot be ErrInvalid.
type Runners interface {
	Runners(ctx context.Context) ([]Runner, error)
	Register(ctx context.Context, n NewRunner) (Runner, error)
	Verify(ctx context.Context, name string) (Runner, error)
	Rotate(ctx context.Context, name string) (Runner, error)
	// Unregister removes it at the forge, unless keep, and here. Forget removes an ephemeral one, here only.
	Unregister(ctx context.Context, name string, keep bool) error
	Forget(name string)
}

// The errors of Runners.
var (
	ErrNoRunner     = errors.New("there is no runner of that name")
	ErrRunnerExists = errors.New("there is such a runner already")
)

// ForgeProblem is a forge's refusal or silence.
type ForgeProblem struct {
	Status int // the forge's, of HTTP; 0: it did not answer
	Text   string
}

func (e *ForgeProblem) Error() string { return e.Text }

// status is ours: refusals are passed on, all else is a gateway's.
func (e *ForgeProblem) status() int {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusForbidden:
		return http.StatusForbidden
	case http.StatusGone, http.StatusUnprocessableEntity:
		return e.Status
	}
	return http.StatusBadGateway
}

// Runner is what is known of a runner of this machine. Its token is not.
type Runner struct {
	Name         string             `json:"name"`
	Forge        string             `json:"forge" enum:"gitlab"`
	URL          string             `json:"url"`
	CloneURL     string             `json:"clone_url,omitempty"`
	Description  string             `json:"description,omitempty"`
	ID           int64              `json:"id,omitempty" doc:"The runner's at the forge."`
	SystemID     string             `json:"system_id" doc:"This machine's: runners of several machines may share a token."`
	Token        string             `json:"token" doc:"Its beginning, as the forge shows it."`
	TokenExpires time.Time          `json:"token_expires,omitzero"`
	TokenRenewal time.Time          `json:"token_renewal,omitzero" doc:"When it is to be renewed."`
	Concurrent   int                `json:"concurrent,omitempty" doc:"Jobs at once; 0: as many as fit."`
	Sandbox      sandbox.Nesting    `json:"sandbox"`
	Image        string             `json:"image,omitempty"`
	Pull         sandbox.PullPolicy `json:"pull,omitempty"`
	Limits       sandbox.Limits     `json:"limits,omitzero"`
	Builds       string             `json:"builds,omitempty"`
	OutputLimit  int64              `json:"output_limit,omitempty" doc:"The size of a job's log, in bytes, at which no more of it is sent; 0: 4 MiB."`
	CAFile       string             `json:"ca_file,omitempty"`
	Ephemeral    bool               `json:"ephemeral,omitempty"`
	State        string             `json:"state" enum:"new,online,failing,unreachable,refused"`
	Why          string             `json:"why,omitempty" doc:"Why it gets no jobs, and how to mend it."`
	LastContact  time.Time          `json:"last_contact,omitzero" doc:"When the forge has answered last."`
	Failing      time.Time          `json:"failing,omitzero" doc:"Since when it gets no jobs."`
	Answers      map[string]uint64  `json:"answers,omitempty" doc:"To requests for a job since the daemon's start, by kind."`
}

// NewRunner asks for this machine to become a forge's runner.
type NewRunner struct {
	Forge         string            `json:"forge" enum:"gitlab"`
	URL           string            `json:"url" minLength:"1" maxLength:"2000" doc:"Such as https://gitlab.example.com."`
	Token         string            `json:"token" minLength:"8" maxLength:"500" doc:"A runner's authentication token (glrt-…), or a registration token."`
	TokenIs       string            `json:"token_is,omitempty" enum:"authentication,registration" doc:"Empty: told by its beginning."`
	TokenObtained time.Time         `json:"token_obtained,omitzero" doc:"When it was made; zero: now."`
	Name          string            `json:"name,omitempty" maxLength:"63" doc:"On this machine; empty: made of the forge's and the runner's id."`
	SystemID      string            `json:"system_id,omitempty" doc:"Empty: this machine's."`
	CloneURL      string            `json:"clone_url,omitempty" doc:"Takes the place of url in the repositories' URLs."`
	CAFile        string            `json:"ca_file,omitempty" doc:"The certificates (PEM) of who signs the forge's."`
	Concurrent    int               `json:"concurrent,omitempty" minimum:"0" doc:"Jobs at once; 0: as many as fit."`
	Sandbox       sandbox.Nesting   `json:"sandbox,omitempty" doc:"The nesting of the jobs' sandboxes; empty: container."`
	Image         string            `json:"image,omitempty" maxLength:"500" doc:"Of a job that names none; empty: the configured one."`
	Pull          string            `json:"pull,omitempty" enum:"if-not-present,always,never" doc:"Of a job that does not say; empty: the configured policy."`
	Limits        sandbox.Limits    `json:"limits,omitzero" doc:"Of each job."`
	Env           []string          `json:"env,omitempty" maxItems:"10000" doc:"KEY=value, for each job."`
	Builds        string            `json:"builds,omitempty" doc:"The directory of the jobs' projects; empty: as configured."`
	OutputLimit   int64             `json:"output_limit,omitempty" minimum:"0" doc:"The size of a job's log, in bytes, at which no more of it is sent; 0: 4 MiB."`
	Scripts       RunnerScripts     `json:"scripts,omitzero" doc:"Commands that are put into each job."`
	Registration  RegistrationOfNew `json:"registration,omitzero" doc:"What the forge is told of a new runner; only with a registration token."`
	Ephemeral     bool              `json:"ephemeral,omitempty" doc:"The runner is not written down. The answer does not end: when its connection does, so does the runner."`
}

// RunnerScripts are commands that are put into each job of a runner, where gitlab-runner's keys of these names put them.
type RunnerScripts struct {
	PreGetSources  string `json:"pre_get_sources_script,omitempty" maxLength:"65536"`
	PostGetSources string `json:"post_get_sources_script,omitempty" maxLength:"65536"`
	PreBuild       string `json:"pre_build_script,omitempty" maxLength:"65536"`
	PostBuild      string `json:"post_build_script,omitempty" maxLength:"65536"`
}

// RegistrationOfNew is what a forge is told of a runner that it makes of a registration token. Of a runner with an
// authentication token all of this is set at the forge.
type RegistrationOfNew struct {
	Description    string          `json:"description,omitempty" maxLength:"1024"`
	Tags           []string        `json:"tags,omitempty" maxItems:"50"`
	RunUntagged    bool            `json:"run_untagged,omitempty"`
	Locked         bool            `json:"locked,omitempty"`
	AccessLevel    string          `json:"access_level,omitempty" enum:"not_protected,ref_protected"`
	MaximumTimeout runner.Duration `json:"maximum_timeout,omitempty"`
	Paused         bool            `json:"paused,omitempty"`
}

type runnerName struct {
	Name string `path:"name" maxLength:"63" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A runner's name."`
}

func (s *Server) runnerRoutes() {
	if s.cfg.Runners == nil {
		return
	}
	rs := s.cfg.Runners
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/runners", "list-runners", "List this machine's runners"),
		func(ctx context.Context, _ *struct{}) (*body[[]Runner], error) {
			all, err := rs.Runners(ctx)
			return runnerAnswer(append([]Runner{}, all...), err)
		})
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/runners/{name}", "get-runner", "Look at a runner", 404),
		func(ctx context.Context, in *runnerName) (*body[Runner], error) {
			all, err := rs.Runners(ctx)
			for _, r := range all {
				if r.Name == in.Name {
					return &body[Runner]{r}, nil
				}
			}
			if err == nil {
				err = ErrNoRunner
			}
			return runnerAnswer(Runner{}, err)
		})
	register := s.operation(http.MethodPost, "/v1/runners", "register-runner", "Become a forge's runner", 403, 409, 410, 422, 502, 503)
	register.DefaultStatus = http.StatusCreated
	huma.Register(s.api, register, s.register)
	huma.Register(s.api, s.operation(http.MethodPost, "/v1/runners/{name}/verify", "verify-runner", "Ask the forge whether it knows a runner", 403, 404, 410, 422, 502),
		func(ctx context.Context, in *runnerName) (*body[Runner], error) {
			return runnerAnswer(rs.Verify(ctx, in.Name))
		})
	huma.Register(s.api, s.operation(http.MethodPost, "/v1/runners/{name}/rotate", "rotate-runner", "Have the forge give a runner another token", 403, 404, 410, 422, 502),
		func(ctx context.Context, in *runnerName) (*body[Runner], error) {
			return runnerAnswer(rs.Rotate(ctx, in.Name))
		})
	huma.Register(s.api, s.operation(http.MethodDelete, "/v1/runners/{name}", "unregister-runner", "Be a runner no more", 403, 404, 410, 422, 502),
		func(ctx context.Context, in *struct {
			Name string `path:"name" maxLength:"63" pattern:"^[A-Za-z0-9][A-Za-z0-9._-]*$" doc:"A runner's name."`
			Keep bool   `query:"keep_on_server" doc:"Do not tell the forge."`
		},
		) (*struct{}, error) {
			if err := rs.Unregister(ctx, in.Name, in.Keep); err != nil {
				return nil, problem(err)
			}
			return nil, nil
		})
}

func runnerAnswer[T any](answer T, err error) (*body[T], error) {
	if err != nil {
		return nil, problem(err)
	}
	return &body[T]{answer}, nil
}

// register answers when the forge has. Of an ephemeral runner the answer goes on until the client ends it.
func (s *Server) register(ctx context.Context, in *body[NewRunner]) (*huma.StreamResponse, error) {
	if s.draining.Load() {
		return nil, problem(ErrDraining)
	}
	r, err := s.cfg.Runners.Register(ctx, in.Body)
	if err != nil {
		return nil, problem(err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		if r.Ephemeral {
			defer s.cfg.Runners.Forget(r.Name)
		}
		w := hc.BodyWriter().(http.ResponseWriter)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusCreated)
		_ = json.NewEncoder(w).Encode(r)
		if !r.Ephemeral {
			return
		}
		noDeadlines(w)
		if http.NewResponseController(w).Flush() == nil {
			<-ctx.Done()
		}
	}}, nil
}
