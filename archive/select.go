package archive

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"golang.org/x/sys/unix"
)

// Selection says which files below a directory are meant.
type Selection struct {
	// Patterns are paths relative to the directory or below it, and may have *, **, ?, [a-z] and {a,b}. A directory is
	// meant with all that is in it. Links are not followed.
	Patterns []string
	// Exclude takes away what it matches, the name as a whole: "dir" takes a directory and leaves what is in it, which
	// "dir/**" takes (GitLab, artifacts:exclude).
	Exclude []string
	// Further has more names, each ended by a NUL, as git ls-files -z lists them; nil: none. Of a directory only itself.
	Further io.Reader
	// Beneath takes names that links lead out of the directory for such that are not there. It is for who may read more
	// than those who have made the links.
	Beneath bool
}

// Found is what a Selection means.
type Found struct {
	Names              []string // sorted, each once; "." is the directory itself
	Patterns, Excluded []Match  // in the order of the Selection's
	Further            int64
}

// Match is what one pattern matches, whatever others do.
type Match struct {
	Entries int64 // files, directories and links
	Err     error // it leads out of the directory, or is no pattern
}

// Git reports whether some of it is in a directory .git at the top.
func (f Found) Git() bool {
	_, exact := slices.BinarySearch(f.Names, ".git")
	i, _ := slices.BinarySearch(f.Names, ".git/")
	return exact || i < len(f.Names) && strings.HasPrefix(f.Names[i], ".git/")
}

// Select finds what a Selection means. Of the Limits only Entries counts.
func Select(dir string, s Selection, limits Limits) (Found, error) {
	in, err := openPlace(dir, s.Beneath)
	if err != nil {
		return Found{}, err
	}
	defer in.close()
	f := &finder{in: in, dir: dir, budget: budget{Limits: limits}, next: 1000}
	f.found.Excluded = make([]Match, len(s.Exclude))
	for i, pattern := range s.Exclude {
		rel, err := Within(dir, pattern)
		if err == nil && !doublestar.ValidatePattern(rel) {
			err = &fs.PathError{Op: "exclude", Path: pattern, Err: doublestar.ErrBadPattern}
		}
		f.found.Excluded[i].Err = err
		f.exclude = append(f.exclude, rel)
	}
	for _, pattern := range s.Patterns {
		m, err := f.pattern(pattern)
		if err != nil {
			return f.found, err
		}
		f.found.Patterns = append(f.found.Patterns, m)
	}
	if s.Further != nil {
		if err := f.further(s.Further); err != nil {
			return f.found, err
		}
	}
	return f.found, f.compact()
}

type finder struct {
	in      *place
	dir     string
	exclude []string
	budget  budget
	found   Found
	next    int // how many names there are when those that are there twice are next taken away
}

// Within makes a pattern relative to dir, or says that it leads out of it.
func Within(dir, pattern string) (string, error) {
	rel := path.Clean(pattern)
	if path.IsAbs(rel) {
		in, ok := strings.CutPrefix(rel, path.Clean(dir))
		if !ok || in != "" && in[0] != '/' && dir != "/" {
			return "", outside(pattern)
		}
		if rel = strings.TrimPrefix(in, "/"); rel == "" {
			rel = "."
		}
	}
	if pattern == "" || rel == ".." || strings.HasPrefix(rel, "../") || strings.ContainsRune(rel, 0) {
		return "", outside(pattern)
	}
	return rel, nil
}

func outside(pattern string) error {
	return &fs.PathError{Op: "pack", Path: pattern, Err: errors.New("the path is not within the working directory")}
}

func (f *finder) pattern(pattern string) (m Match, err error) {
	rel, err := Within(f.dir, pattern)
	if err != nil {
		return Match{Err: err}, nil
	}
	if !strings.ContainsAny(rel, `*?[{\`) {
		m.Entries, err = f.tree(rel)
		if gone(err) {
			err = nil
		}
		return m, err
	}
	if !doublestar.ValidatePattern(rel) {
		return Match{Err: &fs.PathError{Op: "pack", Path: pattern, Err: doublestar.ErrBadPattern}}, nil
	}
	err = doublestar.GlobWalk(os.DirFS(f.dir), rel, func(name string, _ fs.DirEntry) error {
		n, err := f.tree(name)
		if m.Entries += n; gone(err) {
			err = nil // since it was listed
		}
		return err
	}, doublestar.WithNoFollow())
	return m, err
}

func gone(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) }

// tree adds one name and all below it.
func (f *finder) tree(name string) (n int64, err error) {
	var st unix.Stat_t
	if err := f.in.lstat(name, &st); err != nil {
		return 0, &fs.PathError{Op: "pack", Path: name, Err: err}
	}
	return f.below(name, st.Mode&unix.S_IFMT == unix.S_IFDIR)
}

// below adds one name that is there, and all below it, and says how many that are.
func (f *finder) below(name string, isDir bool) (n int64, err error) {
	if n, err = f.add(name); err != nil || !isDir {
		return n, err
	}
	dir, err := os.Open(path.Join(f.dir, name))
	if err != nil {
		if gone(err) {
			err = nil // since it was listed
		}
		return n, err
	}
	entries, err := dir.ReadDir(-1)
	_ = dir.Close()
	if err != nil {
		return n, err
	}
	for _, e := range entries {
		in, err := f.below(path.Join(name, e.Name()), e.IsDir())
		n += in
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// add adds a name, unless it is excluded.
func (f *finder) add(name string) (int64, error) {
	for i, pattern := range f.exclude {
		if f.found.Excluded[i].Err == nil && doublestar.MatchUnvalidated(pattern, name) {
			f.found.Excluded[i].Entries++
			return 0, nil
		}
	}
	f.found.Names = append(f.found.Names, name)
	if len(f.found.Names) > f.next {
		return 1, f.compact()
	}
	return 1, nil
}

// compact sorts the names and leaves one of each.
func (f *finder) compact() error {
	slices.Sort(f.found.Names)
	f.found.Names = slices.Compact(f.found.Names)
	f.next = max(1000, 2*len(f.found.Names))
	n := int64(len(f.found.Names))
	if _, root := slices.BinarySearch(f.found.Names, "."); root {
		n--
	}
	if f.budget.Entries > 0 && n > f.budget.Entries {
		return f.budget.tooMany()
	}
	return nil
}

func (f *finder) further(r io.Reader) error {
	names := bufio.NewReaderSize(r, maxName+1)
	for {
		text, err := names.ReadSlice(0)
		if errors.Is(err, io.EOF) && len(text) == 0 {
			return nil
		}
		if err != nil {
			return errors.Join(errors.New("read the names of further files"), err)
		}
		name, err := Within(f.dir, string(bytes.TrimSuffix(text, []byte{0})))
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if f.in.lstat(name, &st) != nil {
			continue
		}
		n, err := f.add(name)
		if err != nil {
			return err
		}
		f.found.Further += n
	}
}
