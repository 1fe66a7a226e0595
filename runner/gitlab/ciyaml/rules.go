package ciyaml

import (
	"fmt"
	"time"
)

// rule is one entry of rules.
type rule struct {
	at            place
	expression    *expression
	changes       *changes
	exists        []string
	hasExists     bool
	when          string // empty: the job's
	startIn       time.Duration
	allowFailure  *bool
	interruptible *bool
	variables     []variable
	needs         *needs
}

type changes struct {
	paths     []string
	compareTo string
}

// rules reads a list of rules, and of lists of them. The first of whens is for those that say none.
func (p *parser) rules(n *node, what string, whens ...string) []rule {
	if n.kind != list {
		p.fail(n.at, "%s should be an array containing hashes and arrays of hashes, but is %s", what, n.kind)
		return nil
	}
	keys := []string{"if", "changes", "exists", "when", "start_in", "allow_failure", "variables", "needs", "interruptible"}
	switch what {
	case "workflow:rules":
		keys = []string{"if", "changes", "exists", "when", "variables", "auto_cancel"}
	case "include:rules":
		keys = []string{"if", "changes", "exists", "when"}
	}
	var all []rule
	for _, i := range flatten(n) {
		if i.kind != mapping || len(i.fields) == 0 {
			p.fail(i.at, "%s should be an array containing hashes and arrays of hashes, but has %s in it", what, i.kind)
			continue
		}
		p.known(i, what+":rule", keys...)
		all = append(all, p.rule(i, what+":rule", whens))
	}
	return all
}

func (p *parser) rule(n *node, what string, whens []string) rule {
	r := rule{at: n.at}
	if f := n.field("if"); f != nil {
		r.expression = p.expression(f.value, what+" if")
	}
	r.changes = p.changes(n.get("changes"), what+":changes")
	if f := n.field("exists"); f != nil {
		r.hasExists = true
		paths := f.value
		if paths.kind == mapping {
			p.known(paths, what+":exists", "paths", "project", "ref")
			if project := paths.field("project"); project != nil {
				p.fail(project.at, "%s:exists:project needs a GitLab: look for the files in the repository only", what)
			}
			paths = paths.get("paths")
		}
		r.exists = p.strs(paths, what+":exists")
	}
	if f := n.field("when"); f != nil {
		r.when = p.oneOf(f.value, what+" when", whens...)
	}
	if r.startIn = p.duration(n.get("start_in"), what+" start in"); r.startIn > week {
		p.fail(n.at, "%s start in should not exceed the limit: one week", what)
	}
	if f := n.field("allow_failure"); f != nil {
		b := p.boolean(f.value, what+" allow_failure")
		r.allowFailure = &b
	}
	if f := n.field("interruptible"); f != nil {
		b := p.boolean(f.value, what+" interruptible")
		r.interruptible = &b
	}
	if f := n.field("variables"); f != nil {
		r.variables = p.vars(f.value, what+":variables")
	}
	if f := n.field("needs"); f != nil {
		r.needs = p.needs(f.value, what+":needs")
	}
	if r.when == "delayed" && n.get("start_in") == nil {
		p.fail(n.at, "%s start in can't be blank: when: delayed needs start_in", what)
	}
	if f := n.field("start_in"); f != nil && r.when != "delayed" {
		p.fail(f.at, "%s config contains disallowed keys: start_in: it is for when: delayed", what)
	}
	return r
}

func (p *parser) expression(n *node, what string) *expression {
	if n.kind != text {
		p.fail(n.at, "%s Invalid expression syntax: it should be a string, but is %s", what, n.kind)
		return nil
	}
	e, err := parseExpression(n.text)
	if err != nil {
		p.fail(n.at, "%s Invalid expression syntax: %s", what, err)
	}
	return e
}

func (p *parser) changes(n *node, what string) *changes {
	if n == nil {
		return nil
	}
	c := &changes{}
	if n.kind == mapping {
		p.known(n, what, "paths", "compare_to")
		c.compareTo = p.str(n.get("compare_to"), what+":compare_to")
		if n = n.get("paths"); n == nil {
			return c
		}
	}
	c.paths = p.list(n, what)
	return c
}

// context is what rules are evaluated in.
type context struct {
	*parser
	variables map[string]string
}

// matches reports whether all that a rule asks is so.
func (c *context) matches(r rule) bool {
	return (r.expression == nil || r.expression.holds(c.variables)) &&
		(r.changes == nil || c.changed(r.changes, r.at)) &&
		(!r.hasExists || c.exist(r.exists))
}

// How many comparisons GitLab makes before it takes it that a pattern matches.
const (
	maxChangesCompared = 50_000
	maxExistsCompared  = 10_000
)

func (c *context) changed(ch *changes, at place) bool {
	files := c.o.Changed
	if ch.compareTo != "" {
		files = nil
		if c.o.ChangedSince != nil {
			var err error
			if files, err = c.o.ChangedSince(expand(ch.compareTo, c.variables)); err != nil {
				c.fail(at, "rules:changes:compare_to is not a valid ref: %s", err)
				return false
			}
			if files == nil {
				files = []string{}
			}
		}
	}
	if files == nil {
		return true
	}
	return c.anyMatch(ch.paths, files, maxChangesCompared)
}

func (c *context) exist(patterns []string) bool {
	return c.anyMatch(patterns, c.all(), maxExistsCompared)
}

func (c *context) anyMatch(patterns, files []string, limit int) bool {
	compared := 0
	for _, pattern := range patterns {
		pattern = expand(pattern, c.variables)
		exact := isExact(pattern)
		for _, f := range files {
			if exact {
				if f == pattern {
					return true
				}
				continue
			}
			if compared++; compared > limit || matches(pattern, f) {
				return true
			}
		}
	}
	return false
}

func isExact(pattern string) bool {
	for _, r := range pattern {
		switch r {
		case '*', '?', '[', '{':
			return false
		}
	}
	return true
}

func (p place) String() string { return fmt.Sprintf("%s:%d", p.file, p.line) }
