package ciyaml

import "slices"

// defaults gives what jobs have unless they say otherwise.
func (p *parser) defaults(root *node) *node {
	given := root.get("default")
	if given == nil {
		given = newMapping(root.at, nil)
	}
	if given.kind != mapping {
		p.fail(given.at, "default config should be a hash, but is %s", given.kind)
		return newMapping(root.at, nil)
	}
	p.known(given, "default", defaultKeys...)
	fields := slices.Clone(given.fields)
	for _, key := range globalKeys {
		f := root.field(key)
		switch {
		case f == nil:
		case given.get(key) != nil:
			p.fail(f.at, "%s is defined in top-level and `default:` entry", key)
		default:
			fields = append(fields, *f)
		}
	}
	return newMapping(given.at, fields)
}

// withDefaults adds to a job what it inherits.
func (p *parser) withDefaults(name string, n, defaults *node) *node {
	inherit := p.inherit(n.get("inherit").get("default"), "jobs:"+name+":inherit:default", defaultKeys)
	fields := slices.Clone(n.fields)
	for _, f := range defaults.fields {
		if n.get(f.key) != nil || !inherit(f.key) {
			continue
		}
		if i, null := n.index[f.key]; null {
			fields[i] = f
		} else {
			fields = append(fields, f)
		}
	}
	return newMapping(n.at, fields)
}

// inherit reads true, false, or a list of names; n may be nil.
func (p *parser) inherit(n *node, what string, names []string) func(string) bool {
	switch {
	case n == nil:
		return func(string) bool { return true }
	case n.kind == list:
		allowed := p.strs(n, what)
		for _, a := range allowed {
			if names != nil && !slices.Contains(names, a) {
				p.fail(n.at, "%s config contains unknown values: %s%s", what, a, suggest(a, names))
			}
		}
		return func(name string) bool { return slices.Contains(allowed, name) }
	}
	all := p.boolean(n, what)
	return func(string) bool { return all }
}
