package api

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner"
)

// Disk is what the daemon keeps on its disk. *budget.Budget is one; its methods say what they promise.
type Disk interface {
	Account(ctx context.Context) (budget.Account, error)
	Entries(ctx context.Context, store, scope string) ([]budget.Listed, error)
	Prune(ctx context.Context, r budget.Request) (budget.Report, error)
}

var _ Disk = (*budget.Budget)(nil)

// EntryFilter says which entries of the caches to list.
type EntryFilter struct {
	Store string `query:"store" json:"store,omitempty" maxLength:"100" doc:"Only those of this store."`
	Scope string `query:"scope" json:"scope,omitempty" maxLength:"1100" doc:"Only those of this scope, or of this project at whatever level of trust."`
}

// Prune asks to remove what is worth least. Without to, older_than and all, it is enough when the stores take no
// more than the low mark.
type Prune struct {
	Store     string          `json:"store,omitempty" maxLength:"100" doc:"Only entries of this store."`
	Scope     string          `json:"scope,omitempty" maxLength:"1100" doc:"Only entries of this scope, or of this project at whatever level of trust."`
	OlderThan runner.Duration `json:"older_than,omitempty" doc:"Only entries that were not used for so long."`
	To        int64           `json:"to,omitempty" minimum:"0" doc:"How many bytes all stores together may go on to take; 0: the low mark or, with older_than or all, as little as can be."`
	All       bool            `json:"all,omitempty" doc:"Whatever is not in use."`
	DryRun    bool            `json:"dry_run,omitempty" doc:"Only say what would be removed."`
}

func (s *Server) cacheRoutes() {
	if s.cfg.Disk == nil {
		return
	}
	long := func(op huma.Operation) huma.Operation { // measuring and removing may take minutes
		op.Middlewares = huma.Middlewares{func(hc huma.Context, next func(huma.Context)) {
			_, w := humago.Unwrap(hc)
			noDeadlines(w)
			next(hc)
		}}
		return op
	}
	huma.Register(s.api, long(s.operation(http.MethodGet, "/v1/cache", "cache-account", "Say what takes up the disk")),
		func(ctx context.Context, _ *struct{}) (*body[budget.Account], error) {
			a, err := s.cfg.Disk.Account(ctx)
			return cacheAnswer(a, err)
		})
	huma.Register(s.api, long(s.operation(http.MethodGet, "/v1/cache/entries", "list-cache-entries", "List what can be removed", 404)),
		func(ctx context.Context, f *EntryFilter) (*body[[]budget.Listed], error) {
			all, err := s.cfg.Disk.Entries(ctx, f.Store, f.Scope)
			return cacheAnswer(all, err)
		})
	huma.Register(s.api, long(s.operation(http.MethodPost, "/v1/cache/prune", "prune-cache", "Remove what is worth least", 404, 422)),
		func(ctx context.Context, in *body[Prune]) (*body[budget.Report], error) {
			p := in.Body
			r, err := s.cfg.Disk.Prune(ctx, budget.Request{
				Store: p.Store, Scope: p.Scope, OlderThan: time.Duration(max(0, p.OlderThan)), To: p.To, All: p.All, DryRun: p.DryRun,
			})
			return cacheAnswer(r, err)
		})
}

func cacheAnswer[T any](answer T, err error) (*body[T], error) {
	if errors.Is(err, budget.ErrNoStore) {
		return nil, huma.Error404NotFound(err.Error())
	} else if err != nil {
		return nil, problem(err)
	}
	return &body[T]{answer}, nil
}
