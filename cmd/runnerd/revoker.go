package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/scope"
)

// ledgerOf is the api.Ledger: what the ledger knows, and the removal of what it knows of.
type ledgerOf struct {
	*ledger.Ledger
	// lease gives out a scope's worker, which it starts if need be.
	lease  func(ctx context.Context, of scope.Scope) (*buildkit.Lease, error)
	share  *sharing
	stores []budget.Store // with entries of their own
	log    *slog.Logger
}

// Revoke removes a step's result and what was built on it from the builders of its project, or an entry from the
// store that has it.
func (l ledgerOf) Revoke(ctx context.Context, r api.Revoke) (api.Revoked, error) {
	found, err := l.Step(ctx, r.Entry)
	if errors.Is(err, ledger.ErrUnknown) {
		if out, ok, storeErr := l.revokeEntry(ctx, r); ok {
			return out, storeErr
		}
	}
	if err != nil {
		return api.Revoked{}, err
	}
	out := api.Revoked{Revocation: found, DryRun: r.DryRun, Removed: []api.RemovedRecord{}}
	var written []buildkit.Written
	for _, t := range found.Traces {
		written = append(written, buildkit.Written{Name: t.Name, Args: t.Args, From: t.Started, To: t.Ended})
	}
	if !r.DryRun { // before a build imports it again
		if err := l.share.forget(ctx, found.Scopes[0], found.Targets); err != nil {
			return out, err
		}
	}
	// Trusted first: what an untrusted builder would copy from it is gone by then. Whether that one has copied what no
	// job of its own has used, the ledger does not know.
	for _, of := range found.Scopes {
		removed, err := l.revokeIn(ctx, of, written, r.DryRun)
		for _, record := range removed {
			out.Removed = append(out.Removed, api.RemovedRecord{Scope: of, ID: record.ID, Description: record.Description, Bytes: record.Bytes})
		}
		if err != nil {
			return out, fmt.Errorf("revoke %s in %s: %w", r.Entry, of, err)
		}
	}
	if r.DryRun {
		return out, nil
	}
	l.log.Warn("revoked", "entry", r.Entry, "step", found.Step, "records", len(out.Removed), "jobs", len(out.Users))
	return out, l.Revoked(ctx, found)
}

func (l ledgerOf) revokeIn(ctx context.Context, of scope.Scope, written []buildkit.Written, dry bool) ([]buildkit.Removed, error) {
	lease, err := l.lease(ctx, of)
	if err != nil {
		return nil, err
	}
	defer func() { _ = lease.Close(ctx) }()
	return buildkit.Revoke(ctx, lease.Client, written, dry)
}

// revokeEntry removes an entry of a store other than BuildKit's. It is not ok if no store has one of that name.
func (l ledgerOf) revokeEntry(ctx context.Context, r api.Revoke) (out api.Revoked, ok bool, err error) {
	out = api.Revoked{Revocation: ledger.Revocation{Entry: r.Entry, Users: []ledger.User{}}, DryRun: r.DryRun, Removed: []api.RemovedRecord{}}
	for _, store := range l.stores {
		entries, err := store.Entries(ctx)
		if err != nil {
			return out, true, fmt.Errorf("look for %s in %s: %w", r.Entry, store.Name(), err)
		}
		for _, e := range entries {
			if e.ID != r.Entry {
				continue
			}
			ok = true
			if !r.DryRun {
				if _, err := store.Remove(ctx, []string{e.ID}); err != nil {
					return out, true, fmt.Errorf("revoke %s in %s: %w", r.Entry, store.Name(), err)
				}
			}
			out.Removed = append(out.Removed, api.RemovedRecord{Store: store.Name(), ID: e.ID, Description: e.Description, Bytes: e.Bytes})
		}
	}
	uses, err := l.Users(ctx, r.Entry)
	for _, u := range uses {
		out.Users = append(out.Users, ledger.User{Job: u.Job, Scope: u.Scope, At: u.At, Wrote: u.Wrote})
	}
	return out, ok || len(uses) > 0, err
}
