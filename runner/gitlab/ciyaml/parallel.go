package ciyaml

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// instance is one of the jobs that a job of the file stands for; most stand for one.
type instance struct {
	name         string
	index, total int // from 1; 0: not one of several
	variables    []variable
}

// in reports whether a job of a matrix has all values that a part of needs:parallel:matrix names.
func (i *instance) in(of map[string][]string, by *instance) bool {
	for key, values := range of {
		has := slices.ContainsFunc(values, func(wanted string) bool {
			wanted = matrixValue.ReplaceAllStringFunc(wanted, func(expression string) string {
				if value, ok := by.value(matrixValue.FindStringSubmatch(expression)[1]); ok {
					return value
				}
				return expression // no value is like that
			})
			value, ok := i.value(key)
			return ok && value == wanted
		})
		if !has {
			return false
		}
	}
	return true
}

var matrixValue = regexp.MustCompile(`\$\[\[\s*matrix\.([A-Za-z0-9_-]+)\s*\]\]`)

// value is that of a variable of the job's matrix; i may be nil.
func (i *instance) value(key string) (string, bool) {
	if i == nil {
		return "", false
	}
	for _, v := range i.variables {
		if v.key == key {
			return v.value, true
		}
	}
	return "", false
}

// instances says which jobs one stands for.
func (p *parser) instances(name string, n *node) []*instance {
	if n == nil {
		return []*instance{{name: name}}
	}
	what := "jobs:" + name + ":parallel"
	var all []*instance
	switch n.kind {
	case number:
		count, err := strconv.Atoi(n.text)
		if err != nil || count < 1 || count > maxParallel {
			p.fail(n.at, "%s config must be a whole number from 1 to %d", what, maxParallel)
			count = 1
		}
		for i := range count {
			all = append(all, &instance{name: fmt.Sprintf("%s %d/%d", name, i+1, count), index: i + 1, total: count})
		}
	case mapping:
		p.known(n, what, "matrix")
		f := n.field("matrix")
		if f == nil {
			p.fail(n.at, "%s config missing required keys: matrix", what)
			break
		}
		all = p.expandMatrix(name, f.value, what+":matrix")
	default:
		p.fail(n.at, "%s should be an integer or a hash, but is %s", what, n.kind)
	}
	if len(all) == 0 {
		return []*instance{{name: name}}
	}
	return all
}

// expandMatrix makes a job of each combination of values, in GitLab's order: the last variable changes first.
func (p *parser) expandMatrix(name string, n *node, what string) []*instance {
	var all []*instance
	for _, entry := range p.matrixEntries(n, what) {
		combinations := [][]variable{nil}
		for _, v := range entry {
			var longer [][]variable
			for _, c := range combinations {
				for _, text := range v.values {
					longer = append(longer, append(slices.Clip(c), variable{key: v.key, value: text}))
				}
			}
			if combinations = longer; len(combinations) > maxParallel {
				p.fail(n.at, "%s config generates too many jobs (maximum is %d)", what, maxParallel)
				return nil
			}
		}
		for _, c := range combinations {
			texts := make([]string, len(c))
			for i, v := range c {
				texts[i] = v.value
			}
			all = append(all, &instance{name: name + ": [" + strings.Join(texts, ", ") + "]", index: len(all) + 1, variables: c})
		}
		if len(all) > maxParallel {
			p.fail(n.at, "%s config generates too many jobs (maximum is %d)", what, maxParallel)
			return nil
		}
	}
	seen := map[string]bool{}
	for _, i := range all {
		i.total = len(all)
		if seen[i.name] {
			p.fail(n.at, "%s has the job %s twice", what, i.name)
			return nil
		}
		seen[i.name] = true
		if len(i.name) > maxName {
			p.fail(n.at, "%s: the name %s… is too long (maximum is %d characters): use shorter values", what, i.name[:40], maxName)
			return nil
		}
	}
	return all
}

// axis is a variable of a matrix with its values.
type axis struct {
	key    string
	values []string
}

func (p *parser) matrixEntries(n *node, what string) [][]axis {
	if n.kind != list {
		p.fail(n.at, "%s config should be an array of hashes: write - before the first variable", what)
		return nil
	}
	var all [][]axis
	for _, entry := range flatten(n) {
		if entry.kind != mapping || len(entry.fields) == 0 {
			p.fail(entry.at, "%s config should be an array of hashes, but has %s in it", what, entry.kind)
			continue
		}
		var axes []axis
		for _, f := range entry.fields {
			for _, v := range flatten(f.value) {
				if v.kind == number && v.text != v.raw {
					p.warn(v.at, "%s:%s: %s is a number, and becomes %s: put it in quotes", what, f.key, v.raw, v.text)
				}
			}
			values := p.strs(f.value, what+":"+f.key)
			if len(values) == 0 {
				p.fail(f.at, "%s:%s has no values", what, f.key)
				continue
			}
			axes = append(axes, axis{f.key, values})
		}
		all = append(all, axes)
	}
	return all
}

// matrix reads needs:parallel:matrix.
func (p *parser) matrix(n *node, what string) []map[string][]string {
	all := []map[string][]string{}
	for _, entry := range p.matrixEntries(n, what) {
		m := map[string][]string{}
		for _, a := range entry {
			m[a.key] = a.values
		}
		all = append(all, m)
	}
	return all
}
