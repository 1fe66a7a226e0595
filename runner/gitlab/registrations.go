package gitlab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/atomicwriter"
)

// The errors of Registrations.
var (
	ErrUnknown = errors.New("there is no runner of that name")
	ErrExists  = errors.New("there is such a runner already")
)

// maxRegistration bounds a registration's file, in bytes.
const maxRegistration = 1 << 20

// Registrations are the runners of this machine: a file each, NAME.json, which root alone may read, and the ephemeral
// ones in memory. It is safe for use by several goroutines.
type Registrations struct {
	dir      string
	systemID string

	mu      sync.Mutex
	all     map[string]Registration
	changed chan struct{}
}

// OpenRegistrations reads those of a directory, and makes it if there is none. An error names each file that cannot be
// used: a runner must not vanish unnoticed.
func OpenRegistrations(dir string) (*Registrations, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open the runners: %w", err)
	}
	rs := &Registrations{dir: dir, all: map[string]Registration{}, changed: make(chan struct{})}
	all, err := ReadRegistrations(dir)
	for _, r := range all {
		rs.all[r.Name] = r
	}
	errs := []error{err}
	cutOff, err := filepath.Glob(filepath.Join(dir, ".tmp-*")) // of writes
	errs = append(errs, err)
	for _, file := range cutOff {
		errs = append(errs, os.Remove(file))
	}
	rs.systemID, err = systemID(dir)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("open the runners: %w", err)
	}
	return rs, nil
}

// ReadRegistrations reads those of a directory, by name, and changes nothing. Without a directory there are none. The
// error names each file that cannot be used.
func ReadRegistrations(dir string) (all []Registration, err error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	errs := []error{err}
	for _, e := range entries {
		name, isRunner := strings.CutSuffix(e.Name(), ".json")
		if !isRunner || strings.HasPrefix(name, ".") {
			continue
		}
		file := filepath.Join(dir, e.Name())
		r, err := readRegistration(file)
		if err == nil && r.Name != name {
			err = fmt.Errorf("it holds the runner %q", cut(r.Name))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w: mend it, or remove it and register the runner again", file, err))
			continue
		}
		all = append(all, r)
	}
	return all, errors.Join(errs...)
}

func readRegistration(file string) (r Registration, err error) {
	f, err := os.Open(file)
	if err != nil {
		return r, err
	}
	defer func() { _ = f.Close() }()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0 {
		return r, errors.Join(err, errors.New("others may read it, which holds a token: run chmod 600"))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxRegistration))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, err
	}
	return r, r.Check()
}

// SystemID is this machine's, for new registrations. It stays the same for as long as the directory is there.
func (rs *Registrations) SystemID() string { return rs.systemID }

// List returns all of them, by name.
func (rs *Registrations) List() []Registration {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	all := make([]Registration, 0, len(rs.all))
	for _, name := range slices.Sorted(maps.Keys(rs.all)) {
		all = append(all, clone(rs.all[name]))
	}
	return all
}

// Get returns one; the error wraps ErrUnknown if there is none of that name.
func (rs *Registrations) Get(name string) (Registration, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r, ok := rs.all[name]
	if !ok {
		return r, fmt.Errorf("runner %q: %w", cut(name), ErrUnknown)
	}
	return clone(r), nil
}

// Add adds one. What it does not say, its system id, sandbox and executor, is filled in. The error wraps ErrExists if
// the name is taken, or the token is that of another one.
func (rs *Registrations) Add(r Registration) error {
	r = rs.Complete(r)
	if err := r.Check(); err != nil {
		return err
	}
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for _, other := range rs.all {
		switch {
		case other.Name == r.Name:
			return fmt.Errorf("runner %q: %w: use another name, or unregister it first", r.Name, ErrExists)
		case other.Token == r.Token && other.URL == r.URL:
			return fmt.Errorf("runner %q: %w: %q has the same token", r.Name, ErrExists, other.Name)
		}
	}
	return rs.put(r)
}

// Complete fills in what r does not say.
func (rs *Registrations) Complete(r Registration) Registration {
	if r.SystemID == "" {
		r.SystemID = rs.systemID
	}
	if len(r.Nesting) == 0 {
		r.Nesting = DefaultNesting()
	}
	if r.Executor == "" {
		r.Executor = DefaultExecutor
	}
	return r
}

// Update changes one; nobody sees it half changed. Its name stays. The error wraps ErrUnknown if there is none.
func (rs *Registrations) Update(name string, change func(*Registration)) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	old, ok := rs.all[name]
	if !ok {
		return fmt.Errorf("runner %q: %w", cut(name), ErrUnknown)
	}
	r := clone(old)
	change(&r)
	r.Name, r.Ephemeral = old.Name, old.Ephemeral
	if err := r.Check(); err != nil {
		return err
	}
	return rs.put(r)
}

// Remove forgets one, on this machine only. The error wraps ErrUnknown if there is none.
func (rs *Registrations) Remove(name string) error {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	r, ok := rs.all[name]
	if !ok {
		return fmt.Errorf("runner %q: %w", cut(name), ErrUnknown)
	}
	if !r.Ephemeral {
		if err := os.Remove(rs.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove runner %s: %w", name, err)
		}
		if err := syncDir(rs.dir); err != nil {
			return fmt.Errorf("remove runner %s: %w", name, err)
		}
	}
	delete(rs.all, name)
	rs.tell()
	return nil
}

// Changed returns a channel that is closed at the next change of any of them. Ask for it before List, so as to miss
// none.
func (rs *Registrations) Changed() <-chan struct{} {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.changed
}

// put writes one down. rs.mu is held.
func (rs *Registrations) put(r Registration) error {
	if !r.Ephemeral {
		text, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			return fmt.Errorf("write runner %s: %w", r.Name, err)
		}
		if err := errors.Join(atomicwriter.WriteFile(rs.file(r.Name), append(text, '\n'), 0o600), syncDir(rs.dir)); err != nil {
			return fmt.Errorf("write runner %s: %w", r.Name, err)
		}
	}
	rs.all[r.Name] = clone(r)
	rs.tell()
	return nil
}

func (rs *Registrations) tell() {
	close(rs.changed)
	rs.changed = make(chan struct{})
}

func (rs *Registrations) file(name string) string { return filepath.Join(rs.dir, name+".json") }

// syncDir makes the names in a directory outlive a crash of the machine: a token that was just renewed is the only one.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// clone shares nothing with r.
func clone(r Registration) Registration {
	r.Env, r.Nesting = slices.Clone(r.Env), slices.Clone(r.Nesting)
	return r
}
