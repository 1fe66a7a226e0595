package ciyaml

// link looks up what the jobs of a pipeline wait for, and whose artifacts they get.
func (p *parser) link(pl *Pipeline, definitions []*definition) {
	byName := groups(definitions)
	in, elsewhere, at := map[string]bool{}, map[string]bool{}, map[string]place{}
	defined, made := map[string]*definition{}, map[string]*instance{}
	for _, d := range definitions {
		for _, i := range d.instances {
			elsewhere[i.name], at[i.name], defined[i.name], made[i.name] = d.elsewhere != "", d.at, d, i
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
				for _, name := range n.expand(byName, made[j.Name]) {
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
		for _, name := range dep.expand(groups, nil) {
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
