// Package budget keeps all that the daemon stores within one budget of disk space.
package budget

import (
	"context"
	"time"
)

// Store is one kind of thing that takes up the disk, such as the registry or the builders' state. Its methods
// may be called concurrently, and while jobs run.
type Store interface {
	// Name is the store's, a word: "registry".
	Name() string
	// Usage is how many bytes of disk the store takes, whole: what du(1) says, not the sum of file sizes.
	Usage(ctx context.Context) (int64, error)
	// Entries are the things in the store that can be removed one by one.
	Entries(ctx context.Context) ([]Entry, error)
	// Remove removes entries and says how many bytes of disk that has freed. It skips those that are in use by
	// now or are gone. An entry that cannot be removed does not keep the others; the errors are joined.
	Remove(ctx context.Context, ids []string) (freed int64, err error)
}

// Entry is something that can be removed.
type Entry struct {
	ID          string    `json:"id"`              // unique in its store
	Scope       string    `json:"scope,omitempty"` // scope.Scope.String of whom it belongs to; "" for all
	Description string    `json:"description"`     // for people
	Bytes       int64     `json:"bytes"`           // that removing it would free, at least about
	Created     time.Time `json:"created"`
	LastUsed    time.Time `json:"last_used"`
	Uses        int64     `json:"uses"`             // since it was made
	InUse       bool      `json:"in_use,omitempty"` // it cannot be removed now
	// Needs are the entries of the same store that this one keeps from being removed, such as the layers below it.
	Needs []string `json:"needs,omitempty"`
}

// LastUse is when the entry was used last: making it counts.
func (e Entry) LastUse() time.Time {
	if e.LastUsed.Before(e.Created) {
		return e.Created
	}
	return e.LastUsed
}
