package ciyaml

import (
	"cmp"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Parse reads the file and what it includes from fsys, which is the repository's root. Its error is an Errors, with all
// that is wrong, if that lies in the files; ErrFiltered and ErrEmpty come with a pipeline.
func Parse(fsys fs.FS, file string, o Options) (*Pipeline, error) {
	o.Source = cmp.Or(o.Source, "push")
	o.DefaultBranch = cmp.Or(o.DefaultBranch, "main")
	p := &parser{fsys: fsys, o: o}
	root := p.load(path.Clean(file), place{file: file}, nil)
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	root = p.extend(root)
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	root = p.references(root)
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	return p.pipeline(root)
}

func (p *parser) pipeline(root *node) (*Pipeline, error) {
	pl := &Pipeline{Stages: p.stages(root.get("stages"))}
	workflow := p.workflow(root.get("workflow"))
	global := p.vars(root.get("variables"), "variables")
	defaults := p.defaults(root)
	in := true
	if workflow.hasRules {
		var extra []variable
		in, extra = p.admitted(workflow, global)
		global = append(slices.Clip(global), extra...)
	}
	pl.Name = strings.TrimSpace(expandNested(workflow.name, p.variables(nil, global)))
	if pl.Name != "" && p.o.Predefined["CI_PIPELINE_NAME"] == "" {
		p.o.Predefined = with(p.o.Predefined, "CI_PIPELINE_NAME", pl.Name)
	}
	definitions := p.definitions(root, defaults, global)
	if len(p.errs) == 0 {
		p.check(definitions, pl.Stages)
	}
	if len(p.errs) > 0 {
		return nil, p.errs
	}
	for _, d := range definitions {
		if in {
			p.evaluate(d, workflow.hasRules, pl)
			continue
		}
		for _, i := range d.instances {
			pl.Excluded = append(pl.Excluded, Excluded{i.name, d.job.Stage, "workflow:rules, " + workflow.at.String()})
		}
	}
	slices.SortStableFunc(pl.Jobs, func(a, b *Job) int { return pl.index(a.Stage) - pl.index(b.Stage) })
	p.link(pl, definitions)
	pl.Warnings, pl.Files = p.warnings, p.files
	switch {
	case len(p.errs) > 0:
		return nil, p.errs
	case !in:
		return pl, ErrFiltered
	case !slices.ContainsFunc(pl.Jobs, func(j *Job) bool { return j.Stage != ".pre" && j.Stage != ".post" }):
		return pl, ErrEmpty // a pipeline of .pre and .post alone is not made either
	}
	return pl, nil
}

func with(m map[string]string, key, value string) map[string]string {
	all := map[string]string{key: value}
	for k, v := range m {
		all[k] = v
	}
	return all
}

// stages gives them all in order; .pre is always the first, .post the last.
func (p *parser) stages(n *node) []string {
	middle := []string{"build", "test", "deploy"}
	if n != nil {
		if given := p.list(n, "stages config"); len(given) > 0 {
			middle = given
		}
	}
	stages := []string{".pre"}
	for _, s := range middle {
		if s != ".pre" && s != ".post" && !slices.Contains(stages, s) {
			stages = append(stages, s)
		}
	}
	return append(stages, ".post")
}

type workflow struct {
	at       place
	name     string
	rules    []rule
	hasRules bool
}

func (p *parser) workflow(n *node) workflow {
	var w workflow
	if n == nil {
		return w
	}
	if n.kind != mapping {
		p.fail(n.at, "workflow config should be a hash, but is %s", n.kind)
		return w
	}
	p.known(n, "workflow", "rules", "name", "auto_cancel")
	w.at, w.name = n.at, p.str(n.get("name"), "workflow name")
	if rules := n.get("rules"); rules != nil {
		w.hasRules = true
		w.rules = p.rules(rules, "workflow:rules", "always", "never")
	}
	return w
}

// admitted reports whether workflow:rules want a pipeline, and the variables of the one that does.
func (p *parser) admitted(w workflow, global []variable) (bool, []variable) {
	c := &context{parser: p, variables: p.variables(nil, global)}
	for _, r := range w.rules {
		if c.matches(r) {
			return r.when != "never", r.variables
		}
	}
	return false, nil
}

func (p *parser) definitions(root, defaults *node, global []variable) []*definition {
	var all []*definition
	visible, jobs := 0, 0
	for _, f := range root.fields {
		if slices.Contains(rootKeys, f.key) || strings.HasPrefix(f.key, ".") {
			continue
		}
		visible++
		d := p.define(f, defaults, global)
		if d == nil {
			continue
		}
		if jobs += len(d.instances); jobs > maxJobs {
			p.fail(f.at, "Pipeline has too many jobs! Requested more than %d, but the limit is %d.", maxJobs, maxJobs)
			return nil
		}
		all = append(all, d)
	}
	if visible == 0 {
		p.fail(root.at, "jobs config should contain at least one visible job: one whose name does not start with a dot")
	}
	return all
}
