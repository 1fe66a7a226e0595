package ciyaml

import (
	"regexp"
	"slices"
	"strings"
)

// withInputs gives the content of a file, which is its only document, or the second after one with spec.
func (p *parser) withInputs(docs []*node, file string, at place, given *node) *node {
	if len(docs) == 0 {
		return nil
	}
	spec := docs[0].field("spec")
	if spec == nil {
		if len(docs) > 1 {
			p.fail(docs[1].at, "the file has two documents: remove the line with ---, or declare inputs with spec: in the first")
		}
		if given != nil {
			p.fail(given.at, "%s has no spec:inputs, and cannot be given any", file)
		}
		return docs[0]
	}
	if len(docs) != 2 {
		p.fail(spec.at, "spec: is a header: after it come a line with --- and the jobs")
		return nil
	}
	return p.interpolate(docs[1], p.inputs(spec.value, at, given))
}

// inputs gives the value of each input of a header.
func (p *parser) inputs(spec *node, at place, given *node) map[string]*node {
	p.known(spec, "spec", "inputs", "description", "component", "include")
	declared := spec.get("inputs")
	values := map[string]*node{}
	if given != nil {
		for _, f := range given.fields {
			if declared == nil || declared.index[f.key] == 0 && (len(declared.fields) == 0 || declared.fields[0].key != f.key) {
				p.fail(f.at, "unknown input arguments: %s", f.key)
			}
		}
	}
	if declared == nil {
		return values
	}
	for _, f := range declared.fields {
		p.known(f.value, "spec:inputs:"+f.key, "default", "description", "options", "regex", "type", "rules")
		value := f.value.get("default")
		if v := given.get(f.key); v != nil {
			value = v
		}
		if value == nil {
			p.fail(at, "`%s` input: required value has not been provided", f.key)
			continue
		}
		p.checkInput(f.key, value, f.value)
		values[f.key] = value
	}
	return values
}

func (p *parser) checkInput(name string, value, declared *node) {
	kinds := map[string]kind{"string": text, "number": number, "boolean": boolean, "array": list}
	wanted := p.oneOf(declared.get("type"), "spec:inputs:"+name+":type", "string", "number", "boolean", "array")
	if k := kinds[wanted]; value.kind != k && !(k == text && value.kind == number) {
		p.fail(value.at, "`%s` input: provided value is not a %s", name, wanted)
	}
	if options := p.strs(declared.get("options"), "spec:inputs:"+name+":options"); len(options) > 0 && !slices.Contains(options, value.text) {
		p.fail(value.at, "`%s` input: `%s` cannot be used because it is not in the list of allowed options: %s", name, value.text, join(options))
	}
	if f := declared.field("regex"); f != nil {
		re, err := regexp.Compile(strings.Trim(p.str(f.value, "spec:inputs:"+name+":regex"), "/"))
		if err != nil {
			p.fail(f.value.at, "`%s` input: regex is invalid: %s", name, err)
		} else if !re.MatchString(value.text) {
			p.fail(value.at, "`%s` input: provided value does not match required RegEx pattern", name)
		}
	}
}

var block = regexp.MustCompile(`\$\[\[\s*([^\]]*?)\s*\]\]`)

// interpolate puts inputs in the place of $[[ inputs.NAME ]]; a string that is nothing else becomes the input's value.
func (p *parser) interpolate(n *node, inputs map[string]*node) *node {
	switch n.kind {
	case mapping:
		fields := slices.Clone(n.fields)
		for i, f := range fields {
			fields[i].key = p.interpolateText(f.key, f.at, inputs)
			fields[i].value = p.interpolate(f.value, inputs)
		}
		return newMapping(n.at, fields)
	case list, reference:
		items := slices.Clone(n.items)
		for i, item := range items {
			items[i] = p.interpolate(item, inputs)
		}
		made := newList(n.at, items)
		made.kind = n.kind
		return made
	case text:
		if m := block.FindStringSubmatch(n.text); m != nil && m[0] == n.text {
			if value := p.input(m[1], n.at, inputs); value != nil {
				return value
			}
		}
		made := *n
		made.text = p.interpolateText(n.text, n.at, inputs)
		made.raw = made.text
		return &made
	}
	return n
}

func (p *parser) interpolateText(s string, at place, inputs map[string]*node) string {
	if !strings.Contains(s, "$[[") {
		return s
	}
	s = block.ReplaceAllStringFunc(s, func(b string) string {
		if value := p.input(block.FindStringSubmatch(b)[1], at, inputs); value != nil {
			return value.text
		}
		return b
	})
	if len(s) > maxFile {
		p.fail(at, "what the inputs make of this is too big")
		return ""
	}
	return s
}

func (p *parser) input(access string, at place, inputs map[string]*node) *node {
	name, isInput := strings.CutPrefix(access, "inputs.")
	if strings.Contains(name, "|") {
		p.fail(at, "functions in $[[ %s ]] are not supported: give the input the value that they would make", access)
		return nil
	}
	value := inputs[name]
	if !isInput || value == nil {
		p.fail(at, "unknown interpolation key: `%s`", access)
		return nil
	}
	return value
}
