package api

import (
	"context"
	"fmt"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
)

func (s *Server) buildRoutes() {
	build := s.operation(http.MethodPost, "/v1/builds", "build", "Build the targets of a bake file or Dockerfile, each as a job", 403, 404, 409, 413, 422, 501, 503)
	build.DefaultStatus = http.StatusCreated
	huma.Register(s.api, build, s.build)
}

// build submits a build's jobs. Their group is the workspace's id, so that a later process knows which
// workspaces are in use.
func (s *Server) build(ctx context.Context, in *body[Build]) (_ *body[Accepted], err error) {
	b := in.Body
	switch {
	case s.draining.Load():
		return nil, problem(ErrDraining)
	case s.cfg.Builder == nil:
		return nil, huma.Error501NotImplemented("this runnerd has no builder")
	}
	dir, err := s.cfg.Workspaces.Path(b.Workspace)
	if err != nil {
		return nil, problem(err)
	}
	if !s.claim(b.Workspace) {
		return nil, huma.Error409Conflict(fmt.Sprintf("workspace %s is used by another build: upload it again", b.Workspace))
	}
	defer func() {
		if err != nil {
			s.removeWorkspace(b.Workspace)
			s.release(b.Workspace)
		}
	}()
	targets, err := s.cfg.Builder.Plan(ctx, dir, b)
	if err != nil {
		return nil, problem(err)
	}
	if err := checkAgents(b.SSH); err != nil {
		return nil, problem(err)
	}
	if len(targets) == 0 {
		return nil, problem(fmt.Errorf("%w: there is nothing to build", ErrInvalid))
	}
	whose, err := b.scope()
	if err != nil {
		return nil, problem(err)
	}
	requests := make([]runner.Request, len(targets))
	secrets := map[string][]string{}
	for i, t := range targets {
		r := t.Request
		r.ID, r.Group, r.Scope, r.Kind, r.Timeout = newID(), b.Workspace, whose, KindBuild, b.Timeout
		if err := s.cfg.Prepare(&r); err != nil {
			return nil, problem(err)
		}
		requests[i], secrets[r.ID] = r, t.Secrets
	}
	for _, r := range requests {
		s.cfg.Agents.expect(r.ID, b.SSH)
	}
	if err := s.cfg.Backend.Submit(ctx, requests, secrets); err != nil {
		for _, r := range requests {
			s.cfg.Agents.forget(r.ID)
		}
		return nil, problem(err)
	}
	accepted := Accepted{Group: b.Workspace}
	ids := make([]string, len(requests))
	for i, r := range requests {
		ids[i] = r.ID
		if info, err := s.cfg.Backend.Get(ctx, r.ID); err == nil {
			accepted.Jobs = append(accepted.Jobs, jobOf(info))
		} else {
			accepted.Jobs = append(accepted.Jobs, jobOf(queue.Info{Request: r, State: runner.Queued}))
		}
	}
	s.removeAfter(b.Workspace, ids)
	return &body[Accepted]{accepted}, nil
}

func (s *Server) claim(workspace string) bool {
	_, claimed := s.cfg.Workspaces.claims.LoadOrStore(workspace, true)
	return !claimed
}

func (s *Server) claimed(workspace string) bool {
	_, claimed := s.cfg.Workspaces.claims.Load(workspace)
	return claimed
}

func (s *Server) release(workspace string) { s.cfg.Workspaces.claims.Delete(workspace) }

// removeAfter removes a workspace when the jobs are finished.
func (s *Server) removeAfter(workspace string, ids []string) {
	s.cleanups.Go(func() {
		for _, id := range ids {
			infos, err := s.cfg.Backend.Watch(s.ctx, id)
			if err != nil {
				continue // nobody knows it any more
			}
			var last queue.Info
			for i := range infos {
				last = i
			}
			if last.State != runner.Finished {
				return // runnerd stops; Recover goes on
			}
			s.cfg.Agents.forget(id)
		}
		if s.cfg.Workspaces.holds.wait(s.ctx, workspace) != nil {
			return // runnerd stops; Recover goes on
		}
		s.removeWorkspace(workspace)
		s.release(workspace)
	})
}

// Recover is to be called once before serving: it removes the workspaces of builds that are over, and keeps
// those of builds that wait in the queue. Of outputs it removes those that nobody will fetch.
func (s *Server) Recover(ctx context.Context) error {
	s.recoverOutputs(ctx)
	workspaces, err := s.cfg.Workspaces.list()
	if err != nil {
		return fmt.Errorf("look for old workspaces: %w", err)
	}
	for _, id := range workspaces {
		infos, err := s.cfg.Backend.List(ctx, queue.Filter{Group: id, Active: true})
		if err != nil {
			return fmt.Errorf("look for old workspaces: %w", err)
		}
		if len(infos) == 0 {
			s.removeWorkspace(id)
			continue
		}
		s.claim(id)
		ids := make([]string, len(infos))
		for i, info := range infos {
			ids[i] = info.ID
		}
		s.removeAfter(id, ids)
	}
	return nil
}
