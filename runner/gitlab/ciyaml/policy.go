package ciyaml

import (
	"regexp"
	"slices"
	"strings"
)

// policy is only or except.
type policy struct {
	at          place
	refs        []string
	expressions []*expression
	changes     *changes
	kubernetes  bool
}

// policy reads only or except; n may be nil.
func (p *parser) policy(n *node, what string) *policy {
	if n == nil {
		return nil
	}
	o := &policy{at: n.at}
	switch n.kind {
	case list, text:
		o.refs = p.strs(n, what)
	case mapping:
		p.known(n, what, "refs", "variables", "changes", "kubernetes")
		o.refs = p.strs(n.get("refs"), what+":refs")
		for _, e := range flatten(n.get("variables")) {
			o.expressions = append(o.expressions, p.expression(e, what+":variables"))
		}
		o.changes = p.changes(n.get("changes"), what+":changes")
		o.kubernetes = n.get("kubernetes") != nil
	default:
		p.fail(n.at, "%s has to be either an array of conditions or a hash", what)
	}
	for _, ref := range o.refs {
		pattern, _, _ := cutProject(ref)
		if m := slashed.FindStringSubmatch(pattern); m != nil {
			if _, err := compile(m[1], m[2]); err != nil {
				p.fail(n.at, "%s config should be an array of strings or regular expressions using re2 syntax: %s", what, err)
			}
		}
	}
	return o
}

// admits reports whether all parts of only hold, and says which does not.
func (c *context) admits(o *policy) (bool, string) {
	switch {
	case len(o.refs) > 0 && !slices.ContainsFunc(o.refs, c.ref):
		return false, "only: " + strings.Join(o.refs, ", ")
	case len(o.expressions) > 0 && !slices.ContainsFunc(o.expressions, c.true):
		return false, "only:variables, " + o.at.String()
	case o.changes != nil && !c.changed(o.changes, o.at):
		return false, "only:changes, " + o.at.String()
	case o.kubernetes:
		return false, "only:kubernetes, there is none"
	}
	return true, ""
}

// excludes reports whether any part of except holds, and says which.
func (c *context) excludes(o *policy) (bool, string) {
	switch {
	case slices.ContainsFunc(o.refs, c.ref):
		return true, "except: " + strings.Join(o.refs, ", ")
	case slices.ContainsFunc(o.expressions, c.true):
		return true, "except:variables, " + o.at.String()
	case o.changes != nil && c.changed(o.changes, o.at):
		return true, "except:changes, " + o.at.String()
	}
	return false, ""
}

func (c *context) true(e *expression) bool { return e != nil && e.holds(c.variables) }

// refKeywords are names of sources that are not the source with an s.
var refKeywords = map[string]string{
	"pushes": "push", "merge_requests": "merge_request_event", "external_pull_requests": "external_pull_request_event",
}

// ref reports whether an entry of refs is for this pipeline: a keyword, a name, or a pattern, of a project.
func (c *context) ref(entry string) bool {
	pattern, project, ofProject := cutProject(entry)
	if ofProject && project != c.o.ProjectPath {
		return false
	}
	source, ref := c.o.Source, c.o.Branch+c.o.Tag
	mergeRequest := source == "merge_request_event"
	switch {
	case pattern == "tags" && c.o.Tag != "",
		pattern == "branches" && c.o.Tag == "" && c.o.Branch != "" && !mergeRequest,
		pattern == source, pattern == source+"s", refKeywords[pattern] == source:
		return true
	}
	if m := slashed.FindStringSubmatch(pattern); m != nil {
		re, err := compile(m[1], m[2])
		return err == nil && !mergeRequest && re.MatchString(ref)
	}
	return pattern == ref && !mergeRequest
}

var patternOfProject = regexp.MustCompile(`^(/.*/[ismU]*|[^@]*)@(.+)$`)

func cutProject(entry string) (pattern, project string, ok bool) {
	if m := patternOfProject.FindStringSubmatch(entry); m != nil {
		return m[1], m[2], true
	}
	return entry, "", false
}
