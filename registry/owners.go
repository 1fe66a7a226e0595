package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/runnerd/runnerd/scope"
)

// owner is whose a repository is: the machine operator's, who alone writes it and lets all read it, or a scope's.
type owner struct {
	Repository string      `json:"repository"`
	Operator   bool        `json:"operator,omitempty"`
	Scope      scope.Scope `json:"scope,omitzero"`
}

func (o owner) String() string {
	if o.Operator {
		return "the machine's operator"
	}
	return o.Scope.String()
}

// owners remembers whose each repository is, in one small file each, and who writes it now.
type owners struct {
	dir string
	// drop empties a repository.
	drop func(repository string) error

	mu      sync.Mutex
	changed *sync.Cond // a write has ended, or a repository was emptied
	all     map[string]*record
}

// record is a repository. Its fields are guarded by owners.mu.
type record struct {
	owner
	emptying bool                                // it is being taken over
	writers  map[*context.CancelCauseFunc]func() // what interrupts each
}

func openOwners(dir string, drop func(string) error) (*owners, error) {
	o := &owners{dir: dir, drop: drop, all: map[string]*record{}}
	o.changed = sync.NewCond(&o.mu)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		var w owner
		if err := json.Unmarshal(text, &w); err != nil || file != o.file(w.Repository) {
			return nil, fmt.Errorf("%s does not say whose a repository is (%v): remove it, and the repository is empty and nobody's", file, err)
		}
		o.all[w.Repository] = &record{owner: w}
	}
	return o, nil
}

// file is named by a hash: a repository's name may be longer than a file's, and one the directory of another.
func (o *owners) file(repository string) string {
	sum := sha256.Sum256([]byte(repository))
	return filepath.Join(o.dir, hex.EncodeToString(sum[:16])+".json")
}

// of returns whose a repository is; false: nobody's. It waits while the repository changes hands.
func (o *owners) of(repository string) (owner, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for {
		r := o.all[repository]
		if r == nil {
			return owner{}, false
		}
		if !r.emptying {
			return r.owner, true
		}
		o.changed.Wait()
	}
}

// list returns all, by name.
func (o *owners) list() []owner {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []owner
	for _, name := range slices.Sorted(maps.Keys(o.all)) {
		all = append(all, o.all[name].owner)
	}
	return all
}

var errTakenOver = errors.New("a trusted job has taken the repository over")

// write begins a write to a repository: by its owner, or by one who becomes it. What a repository held that was
// nobody's, or untrusted when a trusted scope of the same project writes, is dropped first, and who was writing it is
// interrupted. The context ends when the write has to; interrupt, which may be nil, is called then too. On success
// the caller calls end when it has written.
func (o *owners) write(ctx context.Context, a actor, repository string, interrupt func()) (_ context.Context, end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	var r *record
	for r = o.all[repository]; r != nil && r.emptying; r = o.all[repository] {
		o.changed.Wait()
	}
	switch {
	case a.operator && r == nil:
		r, err = o.claim(owner{Repository: repository, Operator: true})
	case a.operator || r != nil && !r.Operator && a.scope.MayWrite(r.Scope):
	case r == nil:
		r, err = o.claim(owner{Repository: repository, Scope: a.scope})
	case r.Operator || !a.scope.SameProject(r.Scope) || a.scope.Trust != scope.Trusted:
		return nil, nil, denied("%s belongs to %s, %s may not write it: push to another name", repository, r.owner, a.scope)
	default:
		r, err = o.claim(owner{Repository: repository, Scope: a.scope})
	}
	if err != nil {
		return nil, nil, fmt.Errorf("record whose %s is: %w", repository, err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if r.writers == nil {
		r.writers = map[*context.CancelCauseFunc]func(){}
	}
	r.writers[&cancel] = interrupt
	return ctx, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		cancel(nil)
		delete(r.writers, &cancel)
		o.changed.Broadcast()
	}, nil
}

// claim makes w the owner, of an empty repository. The lock is held, but not while others are waited for.
func (o *owners) claim(w owner) (*record, error) {
	r := o.all[w.Repository]
	if r == nil {
		r = &record{}
		o.all[w.Repository] = r
	}
	before := r.owner
	r.owner, r.emptying = w, true // nobody else may write from here on
	for cancel, interrupt := range r.writers {
		(*cancel)(errTakenOver)
		if interrupt != nil {
			interrupt()
		}
	}
	for len(r.writers) > 0 {
		o.changed.Wait()
	}
	err := o.drop(w.Repository)
	if err == nil {
		err = o.save(w)
	}
	r.emptying = false
	if err != nil {
		if r.owner = before; before.Repository == "" {
			delete(o.all, w.Repository)
		}
	}
	o.changed.Broadcast()
	return r, err
}

// save writes an owner's file: whole, or not at all.
func (o *owners) save(w owner) error {
	text, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return writeFile(o.file(w.Repository), text)
}

// adopt makes the operator the owner of a repository; what somebody else has pushed there does not become everybody's.
func (o *owners) adopt(repository string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for r := o.all[repository]; r != nil; r = o.all[repository] {
		if r.Operator && !r.emptying {
			return nil
		}
		if !r.emptying {
			break
		}
		o.changed.Wait()
	}
	_, err := o.claim(owner{Repository: repository, Operator: true})
	return err
}

// forget makes an empty repository nobody's, unless somebody writes it.
func (o *owners) forget(repository string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.all[repository]
	if r == nil || r.emptying || len(r.writers) > 0 {
		return nil
	}
	if err := os.Remove(o.file(repository)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	delete(o.all, repository)
	return nil
}

// writeFile replaces a file as a whole, and returns when that outlives a crash of the machine.
func writeFile(name string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
