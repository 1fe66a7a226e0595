package ciyaml

import (
	"fmt"
	"io/fs"
	"slices"
)

// parser has what reading one pipeline needs, and collects what is wrong.
type parser struct {
	fsys     fs.FS
	o        Options
	errs     Errors
	warnings []string
	files    []string
	merged   int      // keys of hashes that were merged
	tree     []string // the repository's files, when rules:exists asked for them
}

func (p *parser) fail(at place, format string, args ...any) {
	e := &Error{File: at.file, Line: at.line, Column: at.column, Message: fmt.Sprintf(format, args...)}
	// A job that extends another has its mistakes too: one place is told once.
	same := func(other *Error) bool {
		return other.File == e.File && other.Line == e.Line && other.Column == e.Column
	}
	if len(p.errs) < maxErrors && !(at.line > 0 && slices.ContainsFunc(p.errs, same)) {
		p.errs = append(p.errs, e)
	}
}

func (p *parser) warn(at place, format string, args ...any) {
	w := fmt.Sprintf("%s:%d: %s", at.file, at.line, fmt.Sprintf(format, args...))
	if len(p.warnings) < maxErrors && !slices.Contains(p.warnings, w) {
		p.warnings = append(p.warnings, w)
	}
}

// afford counts the keys that are merged: a small file can merge big hashes into many jobs.
func (p *parser) afford(at place, keys int) bool {
	if p.merged > 4*maxNodes {
		return false
	}
	if p.merged += keys; p.merged > 4*maxNodes {
		p.fail(at, "The parsed YAML is too big: more than %d keys are merged by extends and include", 4*maxNodes)
	}
	return true
}

// known reports keys that a hash should not have.
func (p *parser) known(n *node, what string, keys ...string) {
	if n.kind != mapping {
		return
	}
	for _, f := range n.fields {
		if !slices.Contains(keys, f.key) {
			p.fail(f.at, "%s config contains unknown keys: %s%s", what, f.key, suggest(f.key, keys))
		}
	}
}

// str gives a scalar as text; empty if there is none.
func (p *parser) str(n *node, what string) string {
	switch {
	case n == nil:
		return ""
	case n.kind == text || n.kind == number:
		return n.text
	}
	p.fail(n.at, "%s should be a string, but is %s%s", what, n.kind, quoteIt(n))
	return ""
}

// quoteIt tells how a value becomes a string.
func quoteIt(n *node) string {
	if n.kind == boolean {
		return fmt.Sprintf(": write %q", n.raw)
	}
	return ""
}

// strs gives a list of strings; one string is a list of one.
func (p *parser) strs(n *node, what string) []string {
	var all []string
	for _, i := range flatten(n) {
		if i.kind != text && i.kind != number {
			p.fail(i.at, "%s should be an array of strings, but has %s in it%s", what, i.kind, quoteIt(i))
			continue
		}
		all = append(all, i.text)
	}
	return all
}

// list is as strs, for what may not be one string.
func (p *parser) list(n *node, what string) []string {
	if n != nil && n.kind != list {
		p.fail(n.at, "%s should be an array of strings: write it as [%q]", what, n.text)
		return nil
	}
	return p.strs(n, what)
}

func (p *parser) boolean(n *node, what string) bool {
	if n == nil {
		return false
	}
	if n.kind != boolean {
		p.fail(n.at, "%s should be a boolean value, but is %s: write true or false without quotes", what, n.kind)
	}
	return n.kind == boolean && n.text == "true"
}

// oneOf gives a string that has to be one of a few; the first of them if there is none.
func (p *parser) oneOf(n *node, what string, values ...string) string {
	if n == nil {
		return values[0]
	}
	s := p.str(n, what)
	if s != "" && !slices.Contains(values, s) {
		p.fail(n.at, "%s unknown value: %s%s; should be one of: %s", what, s, suggest(s, values), join(values))
		return values[0]
	}
	return s
}
