package ciyaml

import (
	"maps"
	"slices"
	"strconv"
)

// evaluate makes the jobs of a definition, or says why there is none.
func (p *parser) evaluate(d *definition, workflowRules bool, pl *Pipeline) {
	for _, i := range d.instances {
		if d.elsewhere != "" {
			pl.Excluded = append(pl.Excluded, Excluded{i.name, d.job.Stage, d.elsewhere})
			continue
		}
		file := slices.Concat(d.inherited, d.variables, i.variables)
		extra := p.predefinedOf(d, i)
		c := &context{parser: p, variables: p.variables(extra, file)}
		job := d.job
		job.Name, job.Place = i.name, d.at.String()
		if i.total > 0 {
			job.Group = d.name
		}
		in, reason := c.decide(d, &job, &file, workflowRules)
		if !in {
			pl.Excluded = append(pl.Excluded, Excluded{i.name, d.job.Stage, reason})
			continue
		}
		if job.When == "manual" {
			extra["CI_JOB_MANUAL"] = "true"
		}
		if d.environment != nil {
			job.Environment = d.environment.of(p.variables(extra, file))
			maps.Copy(extra, job.Environment.predefined())
		}
		job.Variables = p.payload(extra, file)
		for k, tag := range job.Tags {
			if k == 0 {
				job.Tags = slices.Clone(job.Tags)
			}
			job.Tags[k] = expand(tag, c.variables)
		}
		job.ResourceGroup = expandNested(job.ResourceGroup, c.variables)
		pl.Jobs = append(pl.Jobs, &job)
	}
}

// predefinedOf gives the predefined variables of one job.
func (p *parser) predefinedOf(d *definition, i *instance) map[string]string {
	extra := map[string]string{
		"CI_JOB_NAME":       i.name,
		"CI_JOB_NAME_SLUG":  Slug(i.name),
		"CI_JOB_STAGE":      d.job.Stage,
		"CI_JOB_GROUP_NAME": d.name,
		"CI_NODE_TOTAL":     strconv.Itoa(max(i.total, 1)),
	}
	if i.total > 0 {
		extra["CI_NODE_INDEX"] = strconv.Itoa(i.index)
	}
	return extra
}

// decide reports whether a job is in the pipeline, and why not; what its rule says goes into job and the variables.
func (c *context) decide(d *definition, job *Job, file *[]variable, workflowRules bool) (bool, string) {
	job.needs, job.DAG = d.needs, d.needs != nil
	if !d.hasRules {
		return c.policies(d, workflowRules)
	}
	for _, r := range d.rules {
		if !c.matches(r) {
			continue
		}
		if r.when == "never" {
			return false, "rules: when: never, " + r.at.String()
		}
		job.Rule = r.at.String()
		if r.when != "" {
			job.When = r.when
			job.StartIn = r.startIn
		}
		if r.allowFailure != nil {
			job.AllowFailure = AllowFailure{Always: *r.allowFailure}
		}
		if r.interruptible != nil {
			job.Interruptible = *r.interruptible
		}
		if r.needs != nil {
			job.needs, job.DAG = r.needs, d.needs != nil || len(r.needs.jobs) > 0
		}
		*file = append(slices.Clip(*file), r.variables...)
		return true, ""
	}
	return false, "rules: none matches"
}

// policies reports whether only and except let a job in. Without only, a job is for branches and tags, unless
// workflow:rules decide for all.
func (c *context) policies(d *definition, workflowRules bool) (bool, string) {
	only := d.only
	branchesAndTags := []string{"branches", "tags"}
	switch {
	case only == nil && !workflowRules:
		only = &policy{at: d.at, refs: branchesAndTags}
	case only != nil && len(only.refs) == 0:
		with := *only
		with.refs = branchesAndTags
		only = &with
	}
	if only != nil {
		if in, reason := c.admits(only); !in {
			return false, reason
		}
	}
	if d.except != nil {
		if out, reason := c.excludes(d.except); out {
			return false, reason
		}
	}
	return true, ""
}
