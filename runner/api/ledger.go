package api

import (
	"context"
	"errors"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/scope"
)

// Ledger tells where the results of builds came from, and removes them.
type Ledger interface {
	// Explain returns an error that wraps ledger.ErrUnknown if it does not know the job's build.
	Explain(ctx context.Context, job string) (ledger.Explanation, error)
	// Revoke returns an error that wraps ledger.ErrUnknown if there is no such entry.
	Revoke(ctx context.Context, r Revoke) (Revoked, error)
}

// Revoke asks for a cache entry to be removed.
type Revoke struct {
	Entry  string `json:"entry" minLength:"1" maxLength:"1000" doc:"A step as an explanation numbers it, JOB:STEP, its vertex or its key; or the id of an entry of another store."`
	DryRun bool   `json:"dry_run,omitempty" doc:"Tell only what would be removed, and who has read it."`
}

// Revoked is what was removed and who has read it.
type Revoked struct {
	ledger.Revocation
	DryRun  bool            `json:"dry_run,omitempty"`
	Removed []RemovedRecord `json:"removed"`
}

// RemovedRecord is a thing that was removed.
type RemovedRecord struct {
	Store       string      `json:"store,omitempty" doc:"Empty: the builder of the scope."`
	Scope       scope.Scope `json:"scope,omitzero"`
	ID          string      `json:"id"`
	Description string      `json:"description"`
	Bytes       int64       `json:"bytes"`
}

func (s *Server) ledgerRoutes() {
	huma.Register(s.api, s.operation(http.MethodGet, "/v1/jobs/{id}/explain", "explain-job", "Tell where the result of each step of a build came from, and why", 404, 501), s.explain)
	huma.Register(s.api, s.operation(http.MethodPost, "/v1/cache/revoke", "revoke", "Remove a cache entry, and tell who has read it", 404, 422, 501), s.revoke)
}

func (s *Server) explain(ctx context.Context, in *jobID) (*body[ledger.Explanation], error) {
	if s.cfg.Ledger == nil {
		return nil, errNoLedger()
	}
	e, err := s.cfg.Ledger.Explain(ctx, in.ID)
	if err != nil {
		return nil, ledgerProblem(err)
	}
	return &body[ledger.Explanation]{e}, nil
}

func (s *Server) revoke(ctx context.Context, in *body[Revoke]) (*body[Revoked], error) {
	if s.cfg.Ledger == nil {
		return nil, errNoLedger()
	}
	r, err := s.cfg.Ledger.Revoke(ctx, in.Body)
	if err != nil {
		return nil, ledgerProblem(err)
	}
	return &body[Revoked]{r}, nil
}

func errNoLedger() error { return huma.Error501NotImplemented("this runnerd keeps no ledger") }

func ledgerProblem(err error) error {
	if errors.Is(err, ledger.ErrUnknown) {
		return huma.Error404NotFound(err.Error())
	}
	return problem(err)
}
