package ciyaml

import "slices"

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
				graph[i.name] = append(graph[i.name], n.expand(byName, i)...)
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
	for _, need := range n.jobs {
		p.exists(d, need, "need", at, groups, stage)
	}
	for _, i := range d.instances {
		seen := map[string]bool{}
		for _, need := range n.jobs {
			names := need.expand(groups, i)
			for _, name := range names {
				if seen[name] {
					p.fail(need.at, "%s has the following needs duplicated: %s.", d.name, name)
				}
				seen[name] = true
			}
			if len(names) == 0 && need.matrix != nil && !need.Optional && len(groups[need.Job]) > 0 {
				p.fail(need.at, "%s job: no job of %s has the values of needs:parallel:matrix", i.name, need.Job)
			}
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
		if !slices.ContainsFunc(d.needs.jobs, func(n need) bool {
			return n.Job == dep.Job || slices.ContainsFunc(d.instances, func(i *instance) bool { return slices.Contains(n.expand(groups, i), dep.Job) })
		}) {
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
