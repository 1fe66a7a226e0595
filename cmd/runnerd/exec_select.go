package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
)

// selectJobs gives the part of a pipeline that is to run: all, or the jobs of those names with what they need, unless
// alone. Who names a manual job wants it to run; nobody waits for a delayed one here.
func selectJobs(p *ciyaml.Pipeline, names []string, manual, alone bool) (*ciyaml.Pipeline, error) {
	wanted := map[string]bool{}
	for _, name := range names {
		found := false
		for _, j := range p.Jobs {
			if j.Name == name || j.Group == name {
				wanted[j.Name], found = true, true
			}
		}
		if !found {
			return nil, missing(p, name)
		}
	}
	in := map[string]bool{}
	var add func(j *ciyaml.Job)
	add = func(j *ciyaml.Job) {
		if j == nil || in[j.Name] {
			return
		}
		in[j.Name] = true
		if alone {
			return
		}
		for _, n := range j.Needs {
			add(p.Job(n.Job))
		}
		for _, d := range j.Dependencies {
			add(p.Job(d))
		}
	}
	for _, j := range p.Jobs {
		if len(names) == 0 || wanted[j.Name] {
			add(j)
		}
	}
	part := *p
	part.Jobs = nil
	for _, j := range p.Jobs {
		if !in[j.Name] {
			continue
		}
		c := *j
		c.Needs = slices.DeleteFunc(slices.Clone(j.Needs), func(n ciyaml.Need) bool { return !in[n.Job] })
		c.Dependencies = slices.DeleteFunc(slices.Clone(j.Dependencies), func(d string) bool { return !in[d] })
		if c.When == "delayed" || c.When == "manual" && (manual || len(names) > 0) || c.When == "on_failure" && wanted[c.Name] {
			c.When, c.StartIn = "on_success", 0
		}
		part.Jobs = append(part.Jobs, &c)
	}
	return &part, nil
}

// missing says why there is no job of that name.
func missing(p *ciyaml.Pipeline, name string) error {
	var known []string
	for _, e := range p.Excluded {
		if e.Name == name || strings.HasPrefix(e.Name, name+": [") {
			return fmt.Errorf("job %q is not in this pipeline: %s: see 'runnerd exec --list', and --branch, --tag, --source and --var", name, e.Reason)
		}
	}
	for _, j := range p.Jobs {
		known = append(known, j.Name)
	}
	return fmt.Errorf("there is no job %q: there are %s", name, strings.Join(known, ", "))
}
