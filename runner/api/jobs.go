package api

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/distribution/reference"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

type body[T any] struct{ Body T }

type jobID struct {
	ID string `path:"id" maxLength:"40" pattern:"^[a-z0-9][a-z0-9-]*$" doc:"A job's id."`
}

// Filter says which jobs to list.
type Filter struct {
	State   string `query:"state" json:"state,omitempty" doc:"Only those in this state." enum:"queued,waiting,opening,running,closing,finished"`
	Outcome string `query:"outcome" json:"outcome,omitempty" doc:"Only those that ended so." enum:"succeeded,failed,errored,rejected,cancelled,timed_out"`
	Group   string `query:"group" json:"group,omitempty" doc:"Only those submitted together under this name."`
	Project string `query:"project" json:"project,omitempty" doc:"Only those of this project."`
	Prefix  string `query:"prefix" json:"prefix,omitempty" doc:"Only those whose id begins so." maxLength:"40"`
	Active  bool   `query:"active" json:"active,omitempty" doc:"Only those that are not finished."`
	Limit   int    `query:"limit" json:"limit,omitempty" doc:"At most so many, the newest first; 0: 1000." minimum:"0" maximum:"10000"`
}

const defaultLimit = 1000

func (s *Server) operation(method, path, id, summary string, errors ...int) huma.Operation {
	return huma.Operation{
		Method: method, Path: path, OperationID: id, Summary: summary,
		MaxBodyBytes: maxBody, BodyReadTimeout: -1,
		Errors: append(errors, http.StatusInternalServerError),
	}
}

func (s *Server) jobRoutes() {
	submit := s.operation(http.MethodPost, "/v1/jobs", "submit-job", "Submit a job", 403, 413, 422, 503)
	submit.DefaultStatus = http.StatusCreated
	huma.Register(s.api, submit, s.submit)
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs", "list-jobs", "List jobs, newest first", 422), s.list)
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs/{id}", "get-job", "Look at a job", 404), s.get)
	cancel := s.operation(http.MethodPost, "/v1/jobs/{id}/cancel", "cancel-job", "Cancel a job", 404, 409)
	huma.Register(s.api, cancel, s.cancel)
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs/{id}/wait", "wait-for-job", "Wait until a job is finished", 404, 503), s.wait)
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/version", "version", "What this daemon is"), s.version)
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/health", "health", "Whether this daemon takes jobs"), s.health)
}

func (s *Server) submit(ctx context.Context, in *body[Submission]) (*body[Job], error) {
	if s.draining.Load() {
		return nil, problem(ErrDraining)
	}
	sub := in.Body
	if len(sub.Sandbox) == 0 {
		sub.Sandbox = sandbox.Nesting{sandbox.Container}
	}
	if sub.Name == "" {
		sub.Name = clip(strings.Join(sub.Script.Command, " "), 200)
	}
	if err := errors.Join(checkSubmission(sub), sub.Kept.complete()); err != nil {
		return nil, problem(fmt.Errorf("%w: %w", ErrInvalid, err))
	}
	payload, err := json.Marshal(struct {
		Script
		Kept
	}{sub.Script, sub.Kept})
	if err != nil {
		return nil, problem(err)
	}
	whose, err := sub.scope()
	if err != nil {
		return nil, problem(err)
	}
	r := runner.Request{
		ID: newID(), Name: sub.Name, Scope: whose, Nesting: sub.Sandbox, Image: sub.Image, Env: sub.Env,
		Limits: sub.Limits, Module: sub.Module, Timeout: sub.Timeout, Attach: sub.Attach, Pull: sandbox.PullPolicy(sub.Pull),
		Kind: KindScript, Payload: payload,
	}
	if err := s.cfg.Prepare(&r); err != nil {
		return nil, problem(err)
	}
	secrets := imageSecrets(&r, sub)
	if r.Attach {
		s.cfg.Attachments.expect(r.ID, s.cancelFor)
	}
	if err := s.cfg.Backend.Submit(ctx, []runner.Request{r}, map[string][]string{r.ID: secrets}); err != nil {
		s.cfg.Attachments.forget(r.ID)
		return nil, problem(err)
	}
	return s.found(ctx, r.ID)
}

// imageSecrets are a job's secrets, with the credentials for its image's registry at their end if it has some.
func imageSecrets(r *runner.Request, sub Submission) []string {
	named, err := reference.ParseNormalizedNamed(r.Image)
	if err != nil {
		return sub.Secrets
	}
	host := reference.Domain(named)
	c, ok := sub.Registries[host]
	if !ok || c.Password == "" {
		return sub.Secrets
	}
	r.Registry = host
	return append(slices.Clone(sub.Secrets), c.Secrets()...)
}

// ImageCredentials are what imageSecrets has put at the end of a job's secrets.
func ImageCredentials(r runner.Request, secrets []string) (c Credentials, err error) {
	if r.Registry == "" {
		return c, nil
	}
	if len(secrets) < 2 {
		return c, fmt.Errorf("the credentials for %s are gone: submit the job again", r.Registry)
	}
	return ReadCredentials(r.Registry, secrets[len(secrets)-2:])
}

// Secrets are the credentials as a job's secrets have them: as HTTP's basic authentication has them, and the password
// by itself, so that both are hidden in logs.
func (c Credentials) Secrets() []string {
	return []string{base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password)), c.Password}
}

// ReadCredentials reads what Secrets has made of the credentials for a host.
func ReadCredentials(host string, secrets []string) (c Credentials, err error) {
	basic, err := base64.StdEncoding.DecodeString(secrets[0])
	if err != nil {
		return c, fmt.Errorf("read the credentials for %s: %w", host, err)
	}
	c.Username, c.Password, _ = strings.Cut(string(basic), ":")
	return c, nil
}

func checkSubmission(s Submission) error {
	for _, e := range s.Env {
		if key, _, ok := strings.Cut(e, "="); !ok || key == "" || strings.ContainsRune(e, 0) {
			return fmt.Errorf("env: %q is not KEY=value", clip(e, 100))
		}
	}
	for _, a := range s.Script.Command {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("command: an argument holds a zero byte")
		}
	}
	switch l := s.Limits; {
	case len(s.Script.Command) == 0 || s.Script.Command[0] == "":
		return fmt.Errorf("script.command: the command is missing")
	case s.Script.TTY && !s.Attach, s.Script.Stdin && !s.Attach:
		return fmt.Errorf("script: tty and stdin need attach")
	case s.Timeout < 0:
		return fmt.Errorf("timeout: must not be negative")
	case l.CPU < 0 || l.Memory < 0 || l.PIDs < 0 || l.Disk < 0 || l.Inodes < 0:
		return fmt.Errorf("limits: must not be negative")
	}
	return nil
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n-3], "") + "..."
}

// cancelFor cancels a job that nobody waits for any more.
func (s *Server) cancelFor(id, reason string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.ctx), answerTimeout)
	defer cancel()
	if err := s.cfg.Backend.Cancel(ctx, id, reason); err != nil && problem(err).GetStatus() >= 500 {
		s.cfg.Log.Error("a job was not cancelled", "id", id, "reason", reason, "error", err)
	}
}

func (s *Server) found(ctx context.Context, id string) (*body[Job], error) {
	i, err := s.cfg.Backend.Get(ctx, id)
	if err != nil {
		return nil, problem(err)
	}
	return &body[Job]{jobOf(i)}, nil
}

func (s *Server) get(ctx context.Context, in *jobID) (*body[Job], error) { return s.found(ctx, in.ID) }

func (s *Server) list(ctx context.Context, f *Filter) (*body[[]Job], error) {
	limit := f.Limit
	if limit == 0 {
		limit = defaultLimit
	}
	q := queue.Filter{State: runner.State(f.State), Group: f.Group, Project: f.Project, Active: f.Active}
	if f.Prefix == "" && f.Outcome == "" {
		q.Limit = limit
	}
	infos, err := s.cfg.Backend.List(ctx, q)
	if err != nil {
		return nil, problem(err)
	}
	jobs := []Job{}
	for _, i := range infos {
		if strings.HasPrefix(i.ID, f.Prefix) && (f.Outcome == "" || i.Result != nil && string(i.Result.Outcome) == f.Outcome) && len(jobs) < limit {
			jobs = append(jobs, jobOf(i))
		}
	}
	return &body[[]Job]{jobs}, nil
}

func (s *Server) cancel(ctx context.Context, in *struct {
	ID     string `path:"id" maxLength:"40" pattern:"^[a-z0-9][a-z0-9-]*$" doc:"A job's id."`
	Reason string `query:"reason" maxLength:"500" doc:"A sentence for people."`
},
) (*body[Job], error) {
	reason := in.Reason
	if reason == "" {
		reason = "the job was cancelled"
	}
	if err := s.cfg.Backend.Cancel(ctx, in.ID, reason); err != nil {
		return nil, problem(err)
	}
	return s.found(ctx, in.ID)
}

// wait answers when the job is finished. It is no stream, but may take as long as one.
func (s *Server) wait(ctx context.Context, in *jobID) (*huma.StreamResponse, error) {
	infos, err := s.cfg.Backend.Watch(ctx, in.ID)
	if err != nil {
		return nil, problem(err)
	}
	return &huma.StreamResponse{Body: func(hc huma.Context) {
		w := hc.BodyWriter().(http.ResponseWriter)
		noDeadlines(w)
		var last queue.Info
		for i := range infos {
			last = i
		}
		if last.State != runner.Finished {
			writeProblem(w, ErrDraining)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(jobOf(last))
	}}, nil
}

func (s *Server) version(context.Context, *struct{}) (*body[VersionInfo], error) {
	return &body[VersionInfo]{s.cfg.Version}, nil
}

func (s *Server) health(ctx context.Context, _ *struct{}) (*body[Health], error) {
	active, err := s.cfg.Backend.List(ctx, queue.Filter{Active: true})
	if err != nil {
		return nil, problem(err)
	}
	h := Health{Status: "ok", Active: len(active)}
	if s.draining.Load() {
		h.Status = "draining"
	}
	return &body[Health]{h}, nil
}
