package ciyaml

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// deepMerge puts one value over another: hashes are merged, all else is replaced.
func (p *parser) deepMerge(under, over *node) *node {
	if under.kind != mapping || over.kind != mapping {
		return over
	}
	if !p.afford(over.at, len(under.fields)+len(over.fields)) {
		return over
	}
	fields := slices.Clone(under.fields)
	for _, f := range over.fields {
		if i, ok := under.index[f.key]; ok {
			fields[i] = field{f.key, f.at, p.deepMerge(fields[i].value, f.value)}
		} else {
			fields = append(fields, f)
		}
	}
	return newMapping(over.at, fields)
}

// extender resolves extends in all entries of a file.
type extender struct {
	*parser
	root *node
	done map[string]extended
}

// extended is an entry with what it extends, and how many jobs that were, itself among them.
type extended struct {
	node  *node
	depth int
}

func (p *parser) extend(root *node) *node {
	x := extender{parser: p, root: root, done: map[string]extended{}}
	fields := slices.Clone(root.fields)
	for i, f := range fields {
		fields[i].value = x.entry(f.key, f.value, nil).node
	}
	return newMapping(root.at, fields)
}

// entry gives an entry with what it extends; chain has the entries that led to it.
func (x *extender) entry(name string, n *node, chain []string) extended {
	if done, ok := x.done[name]; ok {
		return done
	}
	extends := n.field("extends")
	if n.kind != mapping || extends == nil {
		return extended{n, 1}
	}
	if slices.Contains(chain, name) {
		x.fail(extends.at, "%s: circular dependency detected in `extends`: %s", name, strings.Join(append(chain, name), " → "))
		return extended{n, 1}
	}
	var merged *node
	depth := 1
	for _, parent := range flatten(extends.value) {
		if parent.kind != text && parent.kind != number {
			x.fail(parent.at, "jobs:%s extends should be an array of strings or a string", name)
			continue
		}
		base := x.root.get(parent.text)
		if base == nil || base.kind != mapping {
			x.fail(parent.at, "%s: unknown keys in `extends` (%s)%s", name, parent.text, suggest(parent.text, x.root.names()))
			continue
		}
		e := x.entry(parent.text, base, append(slices.Clip(chain), name))
		if depth = max(depth, 1+e.depth); depth > maxExtends {
			x.fail(extends.at, "%s: nesting too deep in `extends`: at most %d jobs can extend one another", name, maxExtends)
			depth = 1 // told once
		}
		if merged == nil {
			merged = e.node
		} else {
			merged = x.deepMerge(merged, e.node)
		}
	}
	if merged != nil {
		n = x.deepMerge(merged, n)
	}
	if n.size > maxNodes {
		x.fail(extends.at, "%s: what it extends is too big", name)
		n = newMapping(n.at, nil)
	}
	x.done[name] = extended{n, depth}
	return x.done[name]
}

func (n *node) names() []string {
	names := make([]string, len(n.fields))
	for i, f := range n.fields {
		names[i] = f.key
	}
	return names
}

// resolver puts in the place of each !reference what it refers to.
type resolver struct {
	*parser
	root *node
	done map[*node]*node
	busy []*node // references that are being resolved, to find circles
	full bool
}

func (p *parser) references(root *node) *node {
	r := resolver{parser: p, root: root, done: map[*node]*node{}}
	return r.resolve(root)
}

func (r *resolver) resolve(n *node) *node {
	if done := r.done[n]; done != nil {
		return done
	}
	made := n
	switch n.kind {
	case mapping:
		changed := false
		fields := slices.Clone(n.fields)
		for i, f := range fields {
			fields[i].value = r.resolve(f.value)
			changed = changed || fields[i].value != f.value
		}
		if changed {
			made = newMapping(n.at, fields)
		}
	case list:
		changed := false
		items := slices.Clone(n.items)
		for i, item := range items {
			items[i] = r.resolve(item)
			changed = changed || items[i] != item
		}
		if changed {
			made = newList(n.at, items)
		}
	case reference:
		made = r.target(n)
	default:
		return n
	}
	if made.size > maxNodes {
		if !r.full {
			r.fail(n.at, "what the references stand for is too big: more than %d values", maxNodes)
		}
		r.full = true
		made = &node{kind: null, at: n.at, size: 1}
	}
	if len(r.busy) == 0 || made.kind != null { // in a circle, what is not whole is not kept
		r.done[n] = made
	}
	return made
}

func (r *resolver) target(n *node) *node {
	nothing := &node{kind: null, at: n.at, size: 1}
	var path []string
	for _, i := range n.items {
		if i.kind != text && i.kind != number && i.kind != boolean {
			r.fail(n.at, "!reference should be a list of strings: !reference [job, keyword]")
			return nothing
		}
		path = append(path, i.raw)
	}
	written := quoteList(path)
	if slices.Contains(r.busy, n) {
		r.fail(n.at, "!reference %s is part of a circular chain", written)
		return nothing
	}
	if len(r.busy) >= maxReferences {
		r.fail(n.at, "!reference %s is in a chain of more than %d references", written, maxReferences)
		return nothing
	}
	r.busy = append(r.busy, n)
	defer func() { r.busy = r.busy[:len(r.busy)-1] }()
	target := r.root
	for i, key := range path {
		if target.kind == reference {
			target = r.target(target)
		}
		next := target.get(key)
		if next == nil && target.kind == list {
			if at, err := strconv.Atoi(key); err == nil && at >= 0 && at < len(target.items) {
				next = target.items[at]
			}
		}
		if next == nil {
			r.fail(n.at, "!reference %s could not be found%s", written, suggest(path[i], target.names()))
			return nothing
		}
		target = next
	}
	if len(path) == 0 {
		r.fail(n.at, "!reference [] could not be found: it names no job")
		return nothing
	}
	return r.resolve(target)
}

// quoteList writes a list as GitLab's messages do.
func quoteList(items []string) string {
	quoted := make([]string, len(items))
	for i, s := range items {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}
