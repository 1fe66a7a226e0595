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

// groups has the jobs that a name in needs and dependencies stands for.
func groups(definitions []*definition) map[string][]*instance {
	all := map[string][]*instance{}
	for _, d := range definitions {
		for _, i := range d.instances {
			all[i.name] = []*instance{i}
		}
	}
	for _, d := range definitions {
		all[d.name] = d.instances
	}
	return all
}

// check looks at what jobs say of one another, in the pipeline or not.
func (p *parser) check(definitions []*definition, stages []string) {
	byName := groups(definitions)
	stage := map[string]int{}
	byDefinition := map[string]*definition{}
	for _, d := range definitions {
		at := slices.Index(stages, d.job.Stage)
		if at < 0 {
			place := d.at
			if s := d.node.get("stage"); s != nil {
				place = s.at
			}
			p.fail(place, "%s job: chosen stage %s does not exist; available stages are %s%s", d.name, d.job.Stage, join(stages), suggest(d.job.Stage, stages))
		}
		byDefinition[d.name] = d
		for _, i := range d.instances {
			if _, twice := stage[i.name]; twice {
				p.fail(d.at, "%s job: there is another job with the name %s, from parallel", d.name, i.name)
			}
			stage[i.name] = at
		}
	}
	if len(p.errs) > 0 {
		return
	}
	var order []string
	graph, places := map[string][]string{}, map[string]place{}
	for _, d := range definitions {
		at := slices.Index(stages, d.job.Stage)
		for _, n := range d.allNeeds() {
			p.checkNeeds(d, n, at, byName, stage)
		}
		p.checkDependencies(d, at, byName, stage)
		p.checkOnStop(d, byDefinition)
		for _, i := range d.instances {
			order, places[i.name] = append(order, i.name), d.at
			if d.needs == nil {
				continue
			}
			for _, n := range d.needs.jobs {
				graph[i.name] = append(graph[i.name], n.expand(byName)...)
			}
		}
	}
	if len(p.errs) == 0 {
		p.checkCycles(order, graph, places)
	}
}

// allNeeds has the needs of a job and those of its rules.
func (d *definition) allNeeds() []*needs {
	var all []*needs
	if d.needs != nil {
		all = append(all, d.needs)
	}
	for _, r := range d.rules {
		if r.needs != nil {
			all = append(all, r.needs)
		}
	}
	return all
}

func names(groups map[string][]*instance) []string {
	var all []string
	for name := range groups {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func (p *parser) checkNeeds(d *definition, n *needs, at int, groups map[string][]*instance, stage map[string]int) {
	if len(n.jobs) > maxNeeds {
		p.fail(n.at, "%s: one job can only need %d others, but you have listed %d. See needs keyword documentation for more details", d.name, maxNeeds, len(n.jobs))
		return
	}
	seen := map[string]bool{}
	for _, need := range n.jobs {
		p.exists(d, need, "need", at, groups, stage)
		for _, name := range need.expand(groups) {
			if seen[name] {
				p.fail(need.at, "%s has the following needs duplicated: %s.", d.name, name)
			}
			seen[name] = true
		}
		if need.matrix != nil && len(groups[need.Job]) > 0 && len(need.expand(groups)) == 0 {
			p.fail(need.at, "%s job: no job of %s has the values of needs:parallel:matrix", d.name, need.Job)
		}
	}
}

// exists checks that a job is there, and not in a later stage.
func (p *parser) exists(d *definition, n need, what string, at int, groups map[string][]*instance, stage map[string]int) {
	instances := groups[n.Job]
	switch {
	case len(instances) > 0 && stage[instances[0].name] > at:
		p.fail(n.at, "%s job: %s %s is not defined in current or prior stages", d.name, what, n.Job)
	case len(instances) == 0 && !n.Optional:
		p.fail(n.at, "%s job: undefined %s: %s%s", d.name, what, n.Job, suggest(n.Job, names(groups)))
	}
}

func (p *parser) checkDependencies(d *definition, at int, groups map[string][]*instance, stage map[string]int) {
	for _, dep := range d.dependencies {
		p.exists(d, dep, "dependency", at, groups, stage)
		if d.needs == nil {
			continue
		}
		if !slices.ContainsFunc(d.needs.jobs, func(n need) bool { return n.Job == dep.Job || slices.Contains(n.expand(groups), dep.Job) }) {
			p.fail(dep.at, "jobs:%s dependencies the %s should be part of needs", d.name, dep.Job)
		}
	}
}

func (p *parser) checkOnStop(d *definition, all map[string]*definition) {
	if d.environment == nil || d.environment.OnStop == "" {
		return
	}
	at := d.node.get("environment").get("on_stop").at
	other := all[d.environment.OnStop]
	problem := ""
	switch {
	case other == nil:
		problem = "is not defined"
	case other.environment == nil:
		problem = "does not have environment defined"
	case other.environment.Name != d.environment.Name:
		problem = "have different environment name"
	case other.environment.Action != "stop":
		problem = "needs to have action stop defined"
	default:
		return
	}
	p.fail(at, "%s job: on_stop job %s %s", d.name, d.environment.OnStop, problem)
}

// link looks up what the jobs of a pipeline wait for, and whose artifacts they get.
func (p *parser) link(pl *Pipeline, definitions []*definition) {
	byName := groups(definitions)
	in, elsewhere, at := map[string]bool{}, map[string]bool{}, map[string]place{}
	defined := map[string]*definition{}
	for _, d := range definitions {
		for _, i := range d.instances {
			elsewhere[i.name], at[i.name], defined[i.name] = d.elsewhere != "", d.at, d
		}
	}
	var order []string
	for _, j := range pl.Jobs {
		in[j.Name] = true
		order = append(order, j.Name)
	}
	graph := map[string][]string{}
	for _, j := range pl.Jobs {
		if j.needs != nil {
			for _, n := range j.needs.jobs {
				for _, name := range n.expand(byName) {
					switch {
					case in[name]:
						j.Needs = append(j.Needs, Need{name, n.Artifacts, n.Optional})
						graph[j.Name] = append(graph[j.Name], name)
					case !n.Optional && !elsewhere[name]: // what starts another pipeline counts as done
						p.fail(n.at, "'%s' job needs '%s' job, but '%s' does not exist in the pipeline. This might be because of the only, except, or rules keywords. "+
							"To need a job that sometimes does not exist in the pipeline, use needs:optional.", j.Name, name, name)
					}
				}
			}
		}
		j.Dependencies = pl.dependencies(j, defined[j.Name], byName)
	}
	if len(p.errs) == 0 {
		p.checkCycles(order, graph, at)
	}
}

// dependencies are the jobs whose artifacts one gets: those that it names, or those that it needs, or all before it.
func (p *Pipeline) dependencies(j *Job, d *definition, groups map[string][]*instance) []string {
	named := map[string]bool{}
	for _, dep := range d.dependencies {
		for _, name := range dep.expand(groups) {
			named[name] = true
		}
	}
	artifacts := map[string]bool{}
	for _, n := range j.Needs {
		artifacts[n.Job] = n.Artifacts
	}
	var all []string
	for _, before := range p.Before(j) {
		if len(before.Artifacts) > 0 && (!d.hasDependencies || named[before.Name]) && (!j.DAG || artifacts[before.Name]) {
			all = append(all, before.Name)
		}
	}
	return all
}
