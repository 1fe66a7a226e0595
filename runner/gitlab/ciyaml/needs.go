package ciyaml

import (
	"slices"
	"strings"
)

// needs are a list of jobs to wait for, as the file has them.
type needs struct {
	at   place
	jobs []need
}

type need struct {
	Need
	at     place
	matrix []map[string][]string // parallel:matrix: which of the jobs that were made of one
}

// needs reads needs:, of a job or of a rule; n may be nil.
func (p *parser) needs(n *node, what string) *needs {
	if n == nil {
		return nil
	}
	if n.kind != list {
		p.fail(n.at, "%s config can only be a hash or an array: write needs: [%q]", what, n.text)
		return nil
	}
	all := &needs{at: n.at}
	for _, i := range flatten(n) {
		switch i.kind {
		case text, number:
			all.jobs = append(all.jobs, need{Need: Need{Job: i.text, Artifacts: true}, at: i.at})
		case mapping:
			if d, ok := p.need(i, what+":need"); ok {
				all.jobs = append(all.jobs, d)
			}
		default:
			p.fail(i.at, "%s:need has an unsupported type: it is %s", what, i.kind)
		}
	}
	return all
}

func (p *parser) need(n *node, what string) (need, bool) {
	p.known(n, what, "job", "artifacts", "optional", "parallel", "pipeline", "project", "ref")
	for _, key := range []string{"project", "pipeline"} {
		if f := n.field(key); f != nil {
			// It does not order the jobs of this pipeline: only its artifacts are missing.
			p.warn(f.at, "%s:%s is ignored: artifacts of another pipeline need a GitLab", what, key)
			return need{}, false
		}
	}
	d := need{at: n.at, Need: Need{
		Job:       p.str(n.get("job"), what+" job"),
		Artifacts: n.get("artifacts") == nil || p.boolean(n.get("artifacts"), what+" artifacts"),
		Optional:  p.boolean(n.get("optional"), what+" optional"),
	}}
	if d.Job == "" {
		p.fail(n.at, "%s job can't be blank", what)
		return d, false
	}
	if f := n.field("parallel"); f != nil {
		if f.value.kind != mapping || f.value.get("matrix") == nil {
			p.fail(f.value.at, `%s:parallel cannot use "parallel: <number>": write parallel: with matrix: in it`, what)
			return d, false
		}
		p.known(f.value, what+":parallel", "matrix")
		d.matrix = p.matrix(f.value.get("matrix"), what+":parallel:matrix")
	}
	return d, true
}

// expand gives the jobs that a name stands for: of several that were made of one, all, or those of a matrix. by is the
// job that needs them, whose own values $[[ matrix.NAME ]] stands for.
func (d need) expand(groups map[string][]*instance, by *instance) []string {
	var names []string
	for _, i := range groups[d.Job] {
		if d.matrix == nil || slices.ContainsFunc(d.matrix, func(of map[string][]string) bool { return i.in(of, by) }) {
			names = append(names, i.name)
		}
	}
	return names
}

// checkCycles finds jobs that need one another in a circle.
func (p *parser) checkCycles(order []string, needs map[string][]string, at map[string]place) {
	const busy, done = 1, 2
	state := map[string]int{}
	var path []string
	var visit func(name string) bool
	visit = func(name string) bool {
		switch state[name] {
		case done:
			return true
		case busy:
			circle := append(slices.Clone(path[slices.Index(path, name):]), name)
			p.fail(at[name], "The pipeline has circular dependencies: %s", strings.Join(circle, " → "))
			return false
		}
		state[name] = busy
		path = append(path, name)
		for _, n := range needs[name] {
			if !visit(n) {
				return false
			}
		}
		path = path[:len(path)-1]
		state[name] = done
		return true
	}
	for _, name := range order {
		if !visit(name) {
			return
		}
	}
}
