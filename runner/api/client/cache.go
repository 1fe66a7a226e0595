package client

import (
	"context"
	"net/http"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner/api"
)

// Account asks what takes up the daemon's disk.
func (c *Client) Account(ctx context.Context) (budget.Account, error) {
	return call[budget.Account](ctx, c, http.MethodGet, "/v1/cache", nil, nil)
}

// CacheEntries lists what can be removed from the daemon's disk.
func (c *Client) CacheEntries(ctx context.Context, f api.EntryFilter) ([]budget.Listed, error) {
	q := queryOf(map[string]string{"store": f.Store, "scope": f.Scope})
	return call[[]budget.Listed](ctx, c, http.MethodGet, "/v1/cache/entries", q, nil)
}

// Prune removes what is worth least from the daemon's disk.
func (c *Client) Prune(ctx context.Context, p api.Prune) (budget.Report, error) {
	return call[budget.Report](ctx, c, http.MethodPost, "/v1/cache/prune", nil, p)
}
