package buildkit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// Disks are the disks that outlive sandboxes, by name.
type Disks interface {
	StateDisks() ([]sandbox.StateDisk, error)
	// RemoveState removes a disk that no sandbox uses, and says how many bytes that has freed; 0 if it is in use
	// or gone.
	RemoveState(name string) (freed int64, err error)
}

var _ budget.Store = (*Workers)(nil)

// wholeDisk is what the entry of a state disk is called, in place of a record of BuildKit.
const wholeDisk = "disk"

// Name is "builders". See budget.Store.
func (ws *Workers) Name() string { return "builders" }

// Usage is what the disks of the trusted scopes' workers take. What clones write lies on scratch disks, as that of
// other sandboxes does.
func (ws *Workers) Usage(context.Context) (int64, error) {
	disks, err := ws.cfg.Disks.StateDisks()
	var sum int64
	for _, d := range disks {
		sum += d.Bytes
	}
	return sum, err
}

// Entries are, of a worker that runs, BuildKit's records, and of one that does not, its disk as a whole. Their ids
// are "SCOPE/RECORD" and "SCOPE/disk", with scope.Scope.ID.
func (ws *Workers) Entries(ctx context.Context) ([]budget.Entry, error) {
	disks, err := ws.cfg.Disks.StateDisks()
	if err != nil {
		return nil, err
	}
	var all []budget.Entry
	var errs []error
	for _, d := range disks {
		id, ok := strings.CutPrefix(d.Name, workerPrefix)
		if !ok {
			continue
		}
		if l, busy := ws.borrow(id); l != nil {
			records, err := recordsOf(ctx, l, id, busy)
			l.give()
			if err == nil {
				all = append(all, records...)
				continue
			}
			errs = append(errs, fmt.Errorf("list the records of %s: %w", l.w.scope, err))
		}
		o := ws.cfg.owner(id)
		e := budget.Entry{
			ID: id + "/" + wholeDisk, Description: "all that an idle builder keeps", Bytes: d.Bytes,
			Created: o.Created, LastUsed: d.Changed, Uses: o.Uses, InUse: d.InUse,
		}
		if !o.Scope.IsZero() {
			e.Scope = o.Scope.String()
		}
		all = append(all, e)
	}
	return all, errors.Join(errs...)
}

// recordsOf are the records of a running worker. While a clone is busy none can be removed.
func recordsOf(ctx context.Context, l *Lease, id string, busy bool) ([]budget.Entry, error) {
	usage, err := l.Client.DiskUsage(ctx)
	if err != nil {
		return nil, err
	}
	entries := make([]budget.Entry, 0, len(usage))
	for _, u := range usage {
		e := budget.Entry{
			ID: id + "/" + u.ID, Scope: l.w.scope.String(), Description: u.Description, Bytes: u.Size,
			Created: u.CreatedAt, LastUsed: u.CreatedAt, Uses: int64(u.UsageCount), InUse: u.InUse || busy,
		}
		if u.LastUsedAt != nil {
			e.LastUsed = *u.LastUsedAt
		}
		for _, parent := range u.Parents {
			e.Needs = append(e.Needs, id+"/"+parent)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Remove removes records and whole disks. See budget.Store.
func (ws *Workers) Remove(ctx context.Context, ids []string) (freed int64, err error) {
	byScope := map[string][]string{}
	for _, id := range ids {
		of, record, ok := strings.Cut(id, "/")
		if !ok {
			err = errors.Join(err, fmt.Errorf("remove %q from the builders: there is no such entry", id))
			continue
		}
		byScope[of] = append(byScope[of], record)
	}
	for of, records := range byScope {
		n, removeErr := ws.remove(ctx, of, records)
		freed += n
		if removeErr != nil {
			err = errors.Join(err, fmt.Errorf("remove from the builder %s: %w", of, removeErr))
		}
	}
	return freed, err
}

// remove removes what one scope has. Nobody may stand on it.
func (ws *Workers) remove(ctx context.Context, id string, records []string) (freed int64, err error) {
	l, _ := ws.borrow(id)
	of := ws.cfg.owner(id).Scope
	if l != nil {
		defer l.give()
		of = l.w.scope
	}
	if !of.IsZero() {
		done, ok := ws.alone(ctx, of, false)
		if !ok {
			return 0, nil
		}
		defer done()
	}
	var filter []string
	for _, r := range records {
		switch {
		case r != wholeDisk:
			filter = append(filter, "id=="+r)
		case l == nil:
			if freed, err = ws.cfg.Disks.RemoveState(workerPrefix + id); err == nil && freed > 0 {
				err = ws.cfg.forget(id)
			}
			return freed, err
		}
	}
	if l == nil || len(filter) == 0 {
		return 0, nil
	}
	removed := make(chan client.UsageInfo)
	var count sync.WaitGroup
	count.Go(func() {
		for u := range removed {
			freed += u.Size
		}
	})
	err = l.Client.Prune(ctx, removed, client.PruneAll, client.WithFilter(filter))
	close(removed)
	count.Wait()
	return freed, err
}

// borrow is a lease of the trusted scope's worker that has this id, if it runs. It is no use that counts. busy tells
// whether an untrusted build stands on it.
func (ws *Workers) borrow(id string) (_ *Lease, busy bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for of, w := range ws.all {
		if of.ID() != id {
			continue
		}
		select {
		case <-w.ready:
		default:
			return nil, false
		}
		if w.err != nil {
			return nil, false
		}
		of.Trust = scope.Untrusted
		clone := ws.all[of]
		w.leases++
		return ws.lease(w, false), clone != nil && clone.leases > 0
	}
	return nil, false
}

// owner says whose a state disk is, and is kept beside it: the disk's name does not tell.
type owner struct {
	Scope   scope.Scope `json:"scope"`
	Created time.Time   `json:"created"`
	Uses    int64       `json:"uses"`
}

func (cfg WorkersConfig) ownerFile(id string) string { return filepath.Join(cfg.Dir, id+".json") }

// owner reads whose a state disk is; the zero owner when that is not known.
func (cfg WorkersConfig) owner(id string) owner {
	var o owner
	text, err := os.ReadFile(cfg.ownerFile(id))
	if err == nil {
		err = json.Unmarshal(text, &o)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		cfg.Log.Warn("it is not known whose a builder's disk is", "disk", workerPrefix+id, "error", err)
	}
	return o
}

// addUses counts uses of a trusted scope's state, and writes down whose it is.
func (cfg WorkersConfig) addUses(of scope.Scope, n int64) {
	if _, untrusted := of.Above(); untrusted || cfg.Dir == "" {
		return
	}
	o := cfg.owner(of.ID())
	if o.Scope != of {
		o = owner{Scope: of, Created: time.Now()}
	}
	o.Uses += n
	text, err := json.Marshal(o)
	if err == nil {
		err = os.MkdirAll(cfg.Dir, 0o700)
	}
	file := cfg.ownerFile(of.ID())
	if err == nil {
		err = os.WriteFile(file+".new", text, 0o600)
	}
	if err == nil {
		err = os.Rename(file+".new", file)
	}
	if err != nil {
		cfg.Log.Warn("write down whose a builder's disk is", "scope", of, "error", err)
	}
}

// forget removes what is known of a disk that is gone.
func (cfg WorkersConfig) forget(id string) error {
	if err := os.Remove(cfg.ownerFile(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
