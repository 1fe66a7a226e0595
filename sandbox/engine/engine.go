// Package engine knows the programs that hold sandboxes: containerd, runc, dockerd, buildkitd and the
// rest, as engines/build.sh pins and builds them. It finds them, tells whether they are the ones that were
// built, and whether a version is known to let a payload out.
package engine

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/mod/semver"
	"golang.org/x/sync/errgroup"
)

// mend is how every trouble with an engine is mended.
const mend = `run "make engines"`

// Engine is one program.
type Engine struct {
	Name    string // of its file, such as "runc"
	Version string // of its Go module, such as "v1.5.2"
	Digest  string // SHA-256 of the file, in hexadecimal
}

// Set is the engines of one directory, made by Load. The zero value has none.
type Set struct {
	dir     string
	engines []Engine // sorted by name
}

// Load reads the file MANIFEST in dir, which engines/build.sh writes: a line "NAME VERSION SHA256" for each
// engine, and comments that start with #. The engines themselves are not read; Verify does that. A line
// that is not understood is an error, so that no engine goes unchecked because of it.
func Load(dir string) (Set, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Set{}, fmt.Errorf("load engines: %w", err)
	}
	manifest := filepath.Join(dir, "MANIFEST")
	data, err := os.ReadFile(manifest)
	if errors.Is(err, fs.ErrNotExist) {
		return Set{}, fmt.Errorf("load engines: there is no %s: %s: %w", manifest, mend, err)
	}
	if err != nil {
		return Set{}, fmt.Errorf("load engines: %w", err)
	}
	s := Set{dir: dir}
	var problems []error
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		e, err := parse(line)
		if err == nil && slices.ContainsFunc(s.engines, func(have Engine) bool { return have.Name == e.Name }) {
			err = fmt.Errorf("%s is there twice", e.Name)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("load engines: %s:%d: %w: %s", manifest, n, err, mend))
			continue
		}
		s.engines = append(s.engines, e)
	}
	if err := lines.Err(); err != nil {
		problems = append(problems, fmt.Errorf("load engines: %s: %w: %s", manifest, err, mend))
	}
	if len(problems) == 0 && len(s.engines) == 0 {
		problems = append(problems, fmt.Errorf("load engines: %s names none: %s", manifest, mend))
	}
	if err := errors.Join(problems...); err != nil {
		return Set{}, err
	}
	slices.SortFunc(s.engines, func(a, b Engine) int { return strings.Compare(a.Name, b.Name) })
	return s, nil
}

func parse(line string) (Engine, error) {
	words := strings.Fields(line)
	if len(words) != 3 {
		return Engine{}, fmt.Errorf("%q is not NAME VERSION SHA256", line)
	}
	e := Engine{Name: words[0], Version: words[1], Digest: words[2]}
	switch {
	case e.Name != filepath.Base(e.Name) || strings.HasPrefix(e.Name, "."):
		return Engine{}, fmt.Errorf("%q is not the name of a file", e.Name)
	case !semver.IsValid(e.Version):
		return Engine{}, fmt.Errorf("%q is not a version like v1.2.3", e.Version)
	case len(e.Digest) != 64 || strings.Trim(e.Digest, "0123456789abcdef") != "":
		return Engine{}, fmt.Errorf("%q is not a SHA-256 digest", e.Digest)
	}
	return e, nil
}

// Engines returns all of them, sorted by name.
func (s Set) Engines() []Engine { return slices.Clone(s.engines) }

// Dir is the directory they are in, an absolute path. It holds nothing else to execute, so that it can be
// the PATH of a program that starts others of them.
func (s Set) Dir() string { return s.dir }

// Path returns the absolute path of the engine called name. It fails if the manifest does not name it; that
// the file is there is for Verify to say.
func (s Set) Path(name string) (string, error) {
	for _, e := range s.engines {
		if e.Name == name {
			return filepath.Join(s.dir, name), nil
		}
	}
	return "", fmt.Errorf("engine %s is not among those in %s: %s", name, s.dir, mend)
}

// Verify reads every engine and returns an error for each that is missing, cannot be executed or is not the
// file that was built. It reads some 350 MB, at as many cores as there are.
func (s Set) Verify(ctx context.Context) error {
	problems := make([]error, len(s.engines))
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i, e := range s.engines {
		g.Go(func() error {
			if err := e.verify(ctx, s.dir); err != nil {
				problems[i] = fmt.Errorf("engine %s: %w", e.Name, err)
			}
			return nil
		})
	}
	_ = g.Wait() // the errors are in problems
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("verify engines: %w", err)
	}
	return errors.Join(problems...)
}

func (e Engine) verify(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, e.Name))
	if err != nil {
		return fmt.Errorf("%w: %s", err, mend)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return fmt.Errorf("%s (%s) is no program: %s", f.Name(), info.Mode(), mend)
	}
	h := sha256.New()
	if _, err := io.Copy(h, reader{ctx, f}); err != nil {
		return fmt.Errorf("read %s: %w", f.Name(), err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != e.Digest {
		return fmt.Errorf("%s is not the file that was built: its digest is %.12s…, MANIFEST says %.12s…: %s", f.Name(), got, e.Digest, mend)
	}
	return nil
}

// reader ends with the context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}
