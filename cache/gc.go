package cache

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"gocloud.dev/blob"
	"gocloud.dev/gcerrors"

	"github.com/runnerd/runnerd/scope"
)

// object is one in the bucket.
type object struct {
	path     string
	size     int64
	modified time.Time
}

// list calls fn for all objects below a prefix, which ends with a slash.
func (s *Store) list(ctx context.Context, prefix string, fn func(object) error) error {
	if s.Local() {
		return s.walk(ctx, prefix, fn)
	}
	objects := s.bucket.List(&blob.ListOptions{Prefix: prefix})
	for {
		o, err := objects.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := fn(object{o.Key, o.Size, o.ModTime}); err != nil {
			return err
		}
	}
}

// walk is list of a directory. The bucket's own reads the whole of it and fails when a file goes away meanwhile.
func (s *Store) walk(ctx context.Context, prefix string, fn func(object) error) error {
	return filepath.WalkDir(filepath.Join(s.dir, prefix), func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		fi, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil {
			name, err = filepath.Rel(s.dir, name)
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fn(object{name, fi.Size(), fi.ModTime()})
	})
}

// projects lists the projects that have anything.
func (s *Store) projects(ctx context.Context) (ids []string, err error) {
	if s.Local() {
		all, err := os.ReadDir(s.dir)
		for _, d := range all {
			if d.IsDir() && len(d.Name()) == scope.IDLen {
				ids = append(ids, d.Name())
			}
		}
		return ids, err
	}
	objects := s.bucket.List(&blob.ListOptions{Delimiter: "/"})
	for {
		o, err := objects.Next(ctx)
		if errors.Is(err, io.EOF) {
			return ids, nil
		}
		if err != nil {
			return nil, err
		}
		if id := strings.TrimSuffix(o.Key, "/"); o.IsDir && len(id) == scope.IDLen {
			ids = append(ids, id)
		}
	}
}

// indexes calls fn for all entries below a prefix. Damaged ones are dropped.
func (s *Store) indexes(ctx context.Context, prefix string, fn func(*Entry) error) error {
	return s.list(ctx, prefix, func(o object) error {
		if len(path.Base(o.path)) != 64 {
			return s.stray(ctx, o)
		}
		e, err := s.read(ctx, o.path)
		if errors.Is(err, ErrDamaged) {
			s.log.Warn("a damaged cache entry was dropped", "path", o.path, "error", err)
			return nil
		}
		if e == nil || err != nil {
			return err
		}
		return fn(e)
	})
}

// strayAge is how old a file has to be that is none of ours, such as the temporary one of a daemon that was killed.
const strayAge = time.Hour

func (s *Store) stray(ctx context.Context, o object) error {
	if s.now().Sub(o.modified) < strayAge {
		return nil
	}
	return s.discard(ctx, o.path)
}

// Tidy removes expired artifacts, entries that nobody has used for Config.Keep, and chunks that nothing names. It
// returns the bytes of the objects that it has removed.
func (s *Store) Tidy(ctx context.Context) (freed int64, err error) {
	projects, err := s.projects(ctx)
	errs := []error{err}
	for _, id := range projects {
		expired := func(e *Entry) error {
			last := e.Created
			if u := s.lastUse(ctx, e.path); u.Last.After(last) {
				last = u.Last
			}
			if !e.Expires.IsZero() && e.Expires.After(s.now()) || e.Expires.IsZero() && s.now().Sub(last) < s.keep || s.used(e.path) {
				return nil
			}
			return s.remove(ctx, e.path)
		}
		errs = append(errs, s.indexes(ctx, id+entriesDir, expired), s.indexes(ctx, id+artifactsDir, expired))
		n, err := s.collect(ctx, id)
		freed += n
		errs = append(errs, err)
	}
	return freed, errors.Join(errs...)
}

func (s *Store) used(path string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[path] > 0
}

func (s *Store) lastUse(ctx context.Context, path string) use {
	s.mu.Lock()
	u, ok := s.uses[path]
	s.mu.Unlock()
	if ok {
		return u
	}
	return s.readUse(ctx, path)
}

// remove deletes an entry and what is known of its use.
func (s *Store) remove(ctx context.Context, path string) error {
	s.mu.Lock()
	delete(s.uses, path)
	s.mu.Unlock()
	return errors.Join(s.discard(ctx, path), s.discard(ctx, usePath(path)))
}

// collect removes the chunks of a project that no index names, but for those that a save or restore under way has
// pinned. Of a bucket that others may write to, it leaves what is younger than their saves can be. A save of
// another daemon may have found a chunk that is older and nobody's just before it is removed here: then its entry
// is a damaged one, which is a miss.
func (s *Store) collect(ctx context.Context, project string) (freed int64, err error) {
	s.gc.Lock()
	defer s.gc.Unlock()
	defer s.pins.collect()()
	named := map[digest]struct{}{}
	for _, dir := range []string{entriesDir, artifactsDir} {
		err := s.indexes(ctx, project+dir, func(e *Entry) error {
			for _, p := range e.Chunks {
				named[p.Digest] = struct{}{}
			}
			return nil
		})
		if err != nil {
			return 0, err // what is not known to be named may be
		}
	}
	err = s.list(ctx, project+chunksDir, func(o object) error {
		c := chunk{project: project}
		if c.digest.UnmarshalText([]byte(path.Base(o.path))) != nil || c.path() != o.path {
			return s.stray(ctx, o)
		}
		if _, ok := named[c.digest]; ok || s.now().Sub(o.modified) < s.grace {
			return nil
		}
		err := s.pins.delete(c, func() error { return s.bucket.Delete(ctx, o.path) })
		if errors.Is(err, errPinned) || gcerrors.Code(err) == gcerrors.NotFound {
			return nil
		}
		if err == nil {
			freed += onDisk(o.size)
		}
		return err
	})
	return freed, err
}
