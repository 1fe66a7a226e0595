package config

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/goccy/go-yaml/token"
)

// maxFile bounds what is read.
const maxFile = 1 << 20

// Load reads a configuration file and checks it. An empty path is DefaultPath, which need not exist. The
// error is Problems, all that there are, when the file could be read. What depends on the machine is not
// filled in yet; Resolve does that.
func Load(path string) (*Config, error) {
	optional := path == ""
	if optional {
		path = DefaultPath
	}
	text, err := os.ReadFile(path)
	if optional && errors.Is(err, fs.ErrNotExist) {
		return Default(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	return Parse(path, text)
}

// Parse reads and checks a configuration; file is its name in messages.
func Parse(file string, text []byte) (*Config, error) {
	if len(text) > maxFile {
		return nil, Problems{{File: file, Message: fmt.Sprintf("%d bytes are too many for a configuration: at most %d are read", len(text), maxFile)}}
	}
	c := Default()
	d := &decoder{file: file, places: map[string]*token.Position{}}
	d.decode(text, c)
	said := len(d.problems)
	for _, p := range c.check() {
		problem := Problem{File: file, Message: p.path + ": " + p.message}
		if pos := d.nearest(p.path); pos != nil {
			problem.Line, problem.Column = pos.Line, pos.Column
		}
		// What could not be read has its default or is empty: only the first problem of a place is real.
		if !slices.ContainsFunc(d.problems[:said], func(q Problem) bool { return q.Line == problem.Line && q.Column == problem.Column }) {
			d.problems = append(d.problems, problem)
		}
	}
	if len(d.problems) > 0 {
		slices.SortStableFunc(d.problems, func(a, b Problem) int {
			return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
		})
		return nil, d.problems
	}
	return c, nil
}

// nearest is the place of path in the file, or that of what it is in.
func (d *decoder) nearest(path string) *token.Position {
	for path != "" {
		if pos := d.places[path]; pos != nil {
			return pos
		}
		i := len(path) - 1
		for i > 0 && path[i] != '.' && path[i] != '[' {
			i--
		}
		path = path[:i]
	}
	return nil
}
