package ciyaml

import (
	"errors"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// load reads a file with all that it includes, which comes under it.
func (p *parser) load(file string, at place, given *node) *node {
	nothing := newMapping(place{file: file}, nil)
	if len(p.files) > maxIncludes {
		if len(p.files) == maxIncludes+1 {
			p.fail(at, "Maximum of %d nested includes are allowed!", maxIncludes)
			p.files = append(p.files, file)
		}
		return nothing
	}
	p.files = append(p.files, file)
	content, err := p.read(file)
	if err != nil {
		p.fail(at, "%s", err)
		return nothing
	}
	docs, err := parseYAML(file, content)
	if err != nil {
		var e *Error
		if errors.As(err, &e) {
			p.errs = append(p.errs, e)
		}
		return nothing
	}
	root := p.withInputs(docs, file, at, given)
	switch {
	case root == nil || root.kind == null:
		if at.line == 0 {
			p.fail(place{file: file}, "Please provide content of .gitlab-ci.yml")
		}
		return nothing
	case root.kind != mapping:
		p.fail(root.at, "Invalid configuration format: the file should be a hash of jobs and keywords, but is %s", root.kind)
		return nothing
	}
	include := root.get("include")
	if include == nil {
		return root
	}
	under := nothing
	for _, i := range flatten(include) {
		for _, in := range p.included(i) {
			under = p.deepMerge(under, p.load(in.file, i.at, in.inputs))
		}
	}
	return p.deepMerge(under, root)
}

func (p *parser) read(file string) ([]byte, error) {
	if !fs.ValidPath(file) {
		return nil, errors.New("`" + file + "` is not a path in the repository")
	}
	f, err := p.fsys.Open(file)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errors.New("Local file `" + file + "` does not exist!")
		}
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = errors.New("`" + file + "` is too big: a file may have 1 MiB")
	}
	return content, err
}

type included struct {
	file   string
	inputs *node
}

// elsewhere says of includes that need a server how to do without.
var elsewhere = map[string]string{
	"remote":    "include:remote needs the network, and files are read from the repository only: save %s in the repository and include it with `local`",
	"project":   "include:project needs a GitLab, and files are read from the repository only: copy the file from %s into the repository and include it with `local`",
	"template":  "include:template needs a GitLab, and files are read from the repository only: copy %s from gitlab.com/gitlab-org/gitlab, lib/gitlab/ci/templates, into the repository and include it with `local`",
	"component": "include:component needs a GitLab, and files are read from the repository only: copy the template of %s into the repository and include it with `local`",
	"artifact":  "include:artifact is for child pipelines of a GitLab: include %s with `local`",
}

// included says which files one entry of include stands for.
func (p *parser) included(n *node) []included {
	switch n.kind {
	case text:
		if strings.HasPrefix(n.text, "http://") || strings.HasPrefix(n.text, "https://") {
			p.fail(n.at, elsewhere["remote"], n.text)
			return nil
		}
		return p.local(n, n.text, nil)
	case mapping:
	default:
		p.fail(n.at, "include config should be a string, a hash, or a list of these, but has %s in it", n.kind)
		return nil
	}
	p.known(n, "include", "local", "file", "remote", "template", "component", "artifact", "job", "project", "ref", "rules", "inputs", "integrity", "cache")
	if rules := n.get("rules"); rules != nil && !p.includeRules(rules) {
		return nil
	}
	for _, kind := range []string{"remote", "project", "template", "component", "artifact"} {
		if f := n.field(kind); f != nil {
			p.fail(f.at, elsewhere[kind], "`"+p.str(f.value, "include:"+kind)+"`")
			return nil
		}
	}
	f := n.field("local")
	if f == nil {
		p.fail(n.at, "include config must use exactly one of these keys: local, project, remote, template, component, artifact")
		return nil
	}
	return p.local(f.value, p.str(f.value, "include:local"), n.get("inputs"))
}

func (p *parser) local(n *node, name string, inputs *node) []included {
	name = strings.TrimPrefix(path.Clean("/"+expand(name, p.variables(nil, nil))), "/")
	if !strings.HasSuffix(name, ".yml") && !strings.HasSuffix(name, ".yaml") {
		p.fail(n.at, "Included file `%s` does not have YAML extension!", name)
		return nil
	}
	if !strings.Contains(name, "*") {
		return []included{{name, inputs}}
	}
	var files []included
	for _, f := range p.all() {
		if matches(name, f) {
			files = append(files, included{f, inputs})
		}
	}
	if len(files) == 0 {
		p.fail(n.at, "Local file `%s` does not exist!", name)
	}
	return files
}

// includeRules reports whether one of the rules of an include lets it in.
func (p *parser) includeRules(n *node) bool {
	c := &context{parser: p, variables: p.variables(nil, nil)}
	for _, r := range p.rules(n, "include:rules", "always", "always", "never") {
		if c.matches(r) {
			return r.when != "never"
		}
	}
	return false
}

// all has the repository's files, sorted. Reading it ends at a limit, and rules:exists then take it that there are more.
func (p *parser) all() []string {
	if p.tree != nil {
		return p.tree
	}
	if p.o.Files != nil {
		p.tree = slices.Sorted(slices.Values(p.o.Files))
		return p.tree
	}
	p.tree = []string{}
	err := fs.WalkDir(p.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return fs.SkipDir // what cannot be read is not there
		case d.IsDir() && name == ".git":
			return fs.SkipDir
		case !d.IsDir():
			p.tree = append(p.tree, name)
		}
		if len(p.tree) >= maxFiles {
			return fs.SkipAll
		}
		return nil
	})
	if err != nil {
		p.fail(place{file: "."}, "read the repository: %s", err)
	}
	slices.Sort(p.tree)
	return p.tree
}

// matches is Ruby's File.fnmatch as GitLab calls it: ** stands for directories only where it is all between two
// slashes, {a,b} for either, and a leading dot is nothing special.
func matches(pattern, name string) bool {
	if strings.Contains(pattern, "**") {
		parts := strings.Split(pattern, "/")
		for i, part := range parts {
			if part != "**" || i == len(parts)-1 {
				for strings.Contains(part, "**") {
					part = strings.ReplaceAll(part, "**", "*")
				}
				parts[i] = part
			}
		}
		pattern = strings.Join(parts, "/")
	}
	ok, err := doublestar.Match(pattern, name)
	return err == nil && ok
}
