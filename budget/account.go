package budget

import (
	"context"
	"fmt"
	"time"
)

// Account is what takes up the disk.
type Account struct {
	Stores     []StoreAccount `json:"stores"`
	Bytes      int64          `json:"bytes"` // of all stores
	Removable  int64          `json:"removable"`
	Marks      Marks          `json:"marks"`
	FileSystem FileSystem     `json:"file_system"`
	Gap        Gap            `json:"gap"`
}

// StoreAccount is that of one store.
type StoreAccount struct {
	Name      string    `json:"name"`
	Bytes     int64     `json:"bytes"`
	Measured  time.Time `json:"measured,omitzero"` // when Bytes was true
	Removable int64     `json:"removable"`         // bytes, of the entries that are not in use
	Entries   int       `json:"entries"`
	OldestUse time.Time `json:"oldest_use,omitzero"` // of the entry that was not used for the longest time
	Error     string    `json:"error,omitempty"`     // why a figure is old or missing
}

// Gap is by how much the file system has grown that the account does not know of. When others write on the file
// system too, their part is in it.
type Gap struct {
	Since     time.Time `json:"since"`     // the first account of this process
	Grown     int64     `json:"grown"`     // bytes, as df has it
	Accounted int64     `json:"accounted"` // bytes
	Bytes     int64     `json:"bytes"`     // Grown without Accounted
	Tolerance int64     `json:"tolerance"` // bytes, up to which a gap is no reason to look
	Large     bool      `json:"large"`
}

// The tolerance: the file system's own records and what is written while the stores are asked one after the other.
const (
	gapBytes = 64 << 20
	gapShare = 50 // a 50th of the account
)

func (b *Budget) gap(f FileSystem) Gap {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.base == nil {
		return Gap{}
	}
	g := Gap{Since: b.base.at, Grown: b.last.used - b.base.used, Accounted: b.last.sum - b.base.sum}
	g.Bytes = g.Grown - g.Accounted
	g.Tolerance = max(gapBytes, b.last.sum/gapShare)
	g.Large = g.Bytes > g.Tolerance
	return g
}

// Account measures every store and lists its entries. A store that fails has its error in the account.
func (b *Budget) Account(ctx context.Context) (Account, error) {
	f, measureErr := b.measure(ctx)
	if ctx.Err() != nil {
		return Account{}, context.Cause(ctx)
	}
	if f.Size == 0 {
		return Account{}, measureErr
	}
	a := Account{FileSystem: f, Marks: b.marks(f), Gap: b.gap(f), Stores: []StoreAccount{}}
	for _, g := range b.gauges {
		bytes, at, err := g.read()
		s := StoreAccount{Name: g.store.Name(), Bytes: bytes, Measured: at}
		entries, listErr := g.store.Entries(ctx)
		if err == nil {
			err = listErr
		}
		if err != nil {
			s.Error = err.Error()
		}
		for _, e := range entries {
			s.Entries++
			if e.InUse {
				continue
			}
			s.Removable += e.Bytes
			if used := e.LastUse(); s.OldestUse.IsZero() || used.Before(s.OldestUse) {
				s.OldestUse = used
			}
		}
		a.Stores = append(a.Stores, s)
		a.Bytes += s.Bytes
		a.Removable += s.Removable
	}
	return a, nil
}

// Figures are what is known of the disk without asking any store.
type Figures struct {
	Stores     map[string]int64 // bytes, as they were measured last
	Marks      Marks
	FileSystem FileSystem
}

// Figures asks the file system, and nobody else.
func (b *Budget) Figures() (Figures, error) {
	f, err := b.look()
	if err != nil {
		return Figures{}, err
	}
	out := Figures{Stores: map[string]int64{}, Marks: b.marks(f), FileSystem: f}
	for _, g := range b.gauges {
		if bytes, at, _ := g.read(); !at.IsZero() {
			out.Stores[g.store.Name()] = bytes
		}
	}
	return out, nil
}

// Listed is an entry and its store.
type Listed struct {
	Store string `json:"store"`
	Entry
}

// ErrNoStore is wrapped by the error of a request for a store that there is not.
var ErrNoStore = fmt.Errorf("no such store")

// Entries lists the entries of a store, "" for all, that belong to a scope, "" for all; see Request.Scope.
func (b *Budget) Entries(ctx context.Context, store, scope string) ([]Listed, error) {
	if err := b.known(store); err != nil {
		return nil, err
	}
	out := []Listed{}
	for _, g := range b.gauges {
		if store != "" && store != g.store.Name() {
			continue
		}
		entries, err := g.store.Entries(ctx)
		if err != nil {
			return nil, fmt.Errorf("list the entries of %s: %w", g.store.Name(), err)
		}
		for _, e := range entries {
			if inScope(scope, e) {
				out = append(out, Listed{g.store.Name(), e})
			}
		}
	}
	return out, nil
}

func (b *Budget) known(store string) error {
	if store == "" {
		return nil
	}
	var names []string
	for _, g := range b.gauges {
		if g.store.Name() == store {
			return nil
		}
		names = append(names, g.store.Name())
	}
	return fmt.Errorf("%w: %q: there are %v", ErrNoStore, store, names)
}

// inScope reports whether an entry belongs to a scope, or to a project at whatever level of trust.
func inScope(scope string, e Entry) bool {
	return scope == "" || e.Scope == scope || e.Scope == scope+" (untrusted)"
}
