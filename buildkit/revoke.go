package buildkit

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/moby/buildkit/client"
)

// Written is a run of a step, by which the records are known that it has left in a worker. BuildKit keeps no link
// from a step to its records, but each record bears its step's command line or name, and when it was made.
type Written struct {
	Name     string    // of the step
	Args     []string  // its command line, of a RUN
	From, To time.Time // zero: it is not known when, or another machine has run it
}

// clockSlack is how far BuildKit's times of a step and of its records may be apart.
const clockSlack = time.Second

// left tells whether the step has left a record.
func (w Written) left(u *client.UsageInfo) bool {
	if !w.From.IsZero() && (u.CreatedAt.Before(w.From.Add(-clockSlack)) || u.CreatedAt.After(w.To.Add(clockSlack))) {
		return false
	}
	if w.From.IsZero() && strings.HasPrefix(u.Description, "imported sha256:") {
		return true // an imported record does not tell its step: rather all of them, they can be imported again
	}
	if len(w.Args) == 0 { // solver/llbsolver/file/refmanager.go, ops/merge.go, ops/diff.go
		return u.Description == w.Name
	}
	// solver/llbsolver/ops/exec.go
	return strings.HasPrefix(u.Description, "mount ") && strings.HasSuffix(u.Description, " from exec "+strings.Join(w.Args, " "))
}

// anyLeft tells whether one of the steps has left a record.
func anyLeft(written []Written, u *client.UsageInfo) bool {
	return slices.ContainsFunc(written, func(w Written) bool { return w.left(u) })
}

// Removed is a record that was taken out of a worker.
type Removed struct {
	ID          string `json:"id"`
	Description string `json:"description"`
	Bytes       int64  `json:"bytes"`
}

// Revoke removes what steps have left in a worker, and all records that are built on it; with dry it only finds
// them. What a build uses now cannot be removed: that is an error, and the rest is removed.
func Revoke(ctx context.Context, c *client.Client, written []Written, dry bool) ([]Removed, error) {
	records, err := c.DiskUsage(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the builder's cache: %w", err)
	}
	doomed := map[string]*client.UsageInfo{}
	for _, u := range records {
		if anyLeft(written, u) {
			doomed[u.ID] = u
		}
	}
	for grown := true; grown; {
		grown = false
		for _, u := range records {
			if doomed[u.ID] == nil && slices.ContainsFunc(u.Parents, func(p string) bool { return doomed[p] != nil }) {
				doomed[u.ID], grown = u, true
			}
		}
	}
	removed := []Removed{}
	var filters []string
	for _, u := range records {
		if doomed[u.ID] != nil {
			removed = append(removed, Removed{ID: u.ID, Description: u.Description, Bytes: u.Size})
			filters = append(filters, "id=="+u.ID)
		}
	}
	if dry || len(filters) == 0 {
		return removed, nil
	}
	if err := c.Prune(ctx, nil, client.PruneAll, client.WithFilter(filters)); err != nil {
		return nil, fmt.Errorf("remove from the builder's cache: %w", err)
	}
	if records, err = c.DiskUsage(ctx); err != nil {
		return removed, fmt.Errorf("list the builder's cache: %w", err)
	}
	kept := 0
	for _, u := range records {
		if doomed[u.ID] != nil {
			kept++
			removed = slices.DeleteFunc(removed, func(r Removed) bool { return r.ID == u.ID })
		}
	}
	if kept > 0 {
		return removed, fmt.Errorf("%d records are used by a build that runs: revoke again when it has ended, or cancel it", kept)
	}
	return removed, nil
}

// Size is how many bytes of a worker's disk steps have written.
func Size(ctx context.Context, c *client.Client, written []Written) (bytes int64, err error) {
	records, err := c.DiskUsage(ctx)
	if err != nil {
		return 0, fmt.Errorf("list the builder's cache: %w", err)
	}
	for _, u := range records {
		if anyLeft(written, u) {
			bytes += u.Size
		}
	}
	return bytes, nil
}
