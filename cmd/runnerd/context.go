package main

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/client"
)

// bakeNames are the files that docker buildx bake looks for.
var bakeNames = []string{
	"compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml",
	"docker-bake.json", "docker-bake.hcl", "docker-bake.override.json", "docker-bake.override.hcl",
}

// upload sends a build's context.
func upload(ctx context.Context, c *client.Client, dir string, files []string) (api.Workspace, error) {
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := writeContext(ctx, w, dir, files)
		_ = w.CloseWithError(err)
		written <- err
	}()
	ws, err := c.Upload(ctx, r)
	_ = r.CloseWithError(errUploaded)
	// What is closed by the transport is closed since the daemon has answered, or is gone.
	if local := <-written; local != nil && !errors.Is(local, errUploaded) && !(err != nil && errors.Is(local, io.ErrClosedPipe)) {
		return ws, local
	}
	return ws, err
}

var errUploaded = errors.New("the daemon has answered")

// writeContext writes the context as a tar stream: without .git, unless .dockerignore says !.git, and without
// what .dockerignore excludes. A directory that holds a Dockerfile may be another target's context, so what
// counts in it is its own .dockerignore. Build files are always sent. Owners are not.
func writeContext(ctx context.Context, w io.Writer, dir string, files []string) error {
	buffered := bufio.NewWriterSize(w, 256<<10)
	t := tar.NewWriter(buffered)
	p := packer{ctx: ctx, dir: dir, files: files, tar: t, bake: isBake(dir, files)}
	if err := p.walk(".", nil); err != nil {
		return err
	}
	return errors.Join(t.Close(), buffered.Flush())
}

func isBake(dir string, files []string) bool {
	if len(files) == 0 {
		return slices.ContainsFunc(bakeNames, func(name string) bool {
			_, err := os.Stat(filepath.Join(dir, name))
			return err == nil
		})
	}
	return slices.Contains([]string{".hcl", ".json", ".yaml", ".yml"}, path.Ext(files[0]))
}

type packer struct {
	ctx   context.Context //nolint:containedctx // of one walk
	dir   string
	files []string
	tar   *tar.Writer
	bake  bool
}

// ignore is a context's .dockerignore.
type ignore struct {
	root    string // the context's directory, relative
	matcher *patternmatcher.PatternMatcher
}

// excludes tells whether a path is excluded, and whether something below it may not be.
func (i *ignore) excludes(p string, parent patternmatcher.MatchInfo) (bool, patternmatcher.MatchInfo, error) {
	rel := p
	if i.root != "." {
		rel = strings.TrimPrefix(p, i.root+"/")
	}
	return i.matcher.MatchesUsingParentResults(rel, parent)
}

func (p *packer) readIgnore(root string) (*ignore, error) {
	patterns := []string{".git"}
	names := []string{".dockerignore"}
	if root == "." && !p.bake && len(p.files) == 1 {
		names = []string{p.files[0] + ".dockerignore", ".dockerignore"}
	} else if root == "." && !p.bake {
		names = []string{"Dockerfile.dockerignore", ".dockerignore"}
	}
	for _, name := range names {
		f, err := os.Open(filepath.Join(p.dir, root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		more, err := ignorefile.ReadAll(f)
		_ = f.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path.Join(root, name), err)
		}
		patterns = append(patterns, more...)
		break
	}
	m, err := patternmatcher.New(patterns)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path.Join(root, ".dockerignore"), err)
	}
	return &ignore{root, m}, nil
}

type inherited struct {
	ignore *ignore
	info   patternmatcher.MatchInfo
}

// walk sends what is in a directory.
func (p *packer) walk(dir string, from *inherited) error {
	if err := p.ctx.Err(); err != nil {
		return context.Cause(p.ctx)
	}
	entries, err := os.ReadDir(filepath.Join(p.dir, dir))
	if err != nil {
		return fmt.Errorf("read the context: %w", err)
	}
	own := slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return p.bake && e.Name() == "Dockerfile" })
	if from == nil || own {
		i, err := p.readIgnore(dir)
		if err != nil {
			return err
		}
		from = &inherited{ignore: i}
	}
	for _, e := range entries {
		name := path.Join(dir, e.Name())
		out, info, err := from.ignore.excludes(name, from.info)
		if err != nil {
			return fmt.Errorf("%s: .dockerignore: %w", name, err)
		}
		if e.IsDir() {
			// Below what is excluded there may be what is not, and contexts of other targets.
			if out && (e.Name() == ".git" || e.Name() == "node_modules" || !p.bake && !from.ignore.matcher.Exclusions() && !p.below(name)) {
				continue
			}
			if !out {
				if err := p.add(name, e); err != nil {
					return err
				}
			}
			if err := p.walk(name, &inherited{from.ignore, info}); err != nil {
				return err
			}
			continue
		}
		if !out || p.always(name) {
			if err := p.add(name, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// below tells whether one of the build files is in dir.
func (p *packer) below(dir string) bool {
	return slices.ContainsFunc(p.files, func(f string) bool { return strings.HasPrefix(f, dir+"/") })
}

// always tells whether a file is needed to understand the build.
func (p *packer) always(name string) bool {
	base := path.Base(name)
	return slices.Contains(p.files, name) || base == "Dockerfile" || strings.HasSuffix(base, ".dockerignore") || base == ".dockerignore" ||
		strings.HasPrefix(base, "Dockerfile.") || strings.HasSuffix(base, ".Dockerfile") || path.Dir(name) == "." && slices.Contains(bakeNames, base)
}

func (p *packer) add(name string, e fs.DirEntry) error {
	fi, err := e.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // it was there a moment ago
	}
	if err != nil {
		return err
	}
	h := &tar.Header{Name: name, Mode: int64(fi.Mode().Perm()), ModTime: fi.ModTime(), Format: tar.FormatPAX}
	switch {
	case fi.IsDir():
		h.Typeflag, h.Name = tar.TypeDir, name+"/"
	case fi.Mode()&fs.ModeSymlink != 0:
		h.Typeflag = tar.TypeSymlink
		if h.Linkname, err = os.Readlink(filepath.Join(p.dir, name)); err != nil {
			return err
		}
	case fi.Mode().IsRegular():
		h.Typeflag, h.Size = tar.TypeReg, fi.Size()
	default: // sockets, devices: docker does not send them either
		return nil
	}
	if h.Typeflag != tar.TypeReg {
		return p.tar.WriteHeader(h)
	}
	f, err := os.Open(filepath.Join(p.dir, name))
	if err != nil {
		return fmt.Errorf("read the context: %w", err)
	}
	defer func() { _ = f.Close() }()
	if err := p.tar.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.CopyN(p.tar, f, h.Size); errors.Is(err, io.EOF) {
		return fmt.Errorf("read the context: %s became shorter meanwhile: try again", name)
	} else if err != nil {
		return err
	}
	return nil
}

var (
	hclVariable     = regexp.MustCompile(`(?m)^\s*variable\s+"([A-Za-z_][A-Za-z0-9_]*)"`)
	composeVariable = regexp.MustCompile(`\$\{?([A-Za-z_][A-Za-z0-9_]*)`)
)

// bakeVariables returns those of a bake file's variables that the environment sets.
func bakeVariables(dir string, files []string) map[string]string {
	out := map[string]string{}
	if len(files) == 0 {
		files = bakeNames
	}
	for _, file := range files {
		pattern := hclVariable
		switch path.Ext(file) {
		case ".hcl":
		case ".yaml", ".yml":
			pattern = composeVariable
		case ".json":
			pattern = regexp.MustCompile(`"([A-Za-z_][A-Za-z0-9_]*)"\s*:`)
		default:
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			continue
		}
		for _, m := range pattern.FindAllSubmatch(text, 1000) {
			if value, ok := os.LookupEnv(string(m[1])); ok {
				out[string(m[1])] = value
			}
		}
	}
	return out
}
