package ciyaml

import (
	"maps"
	"slices"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// variable is one that a file sets.
type variable struct {
	key, value string
	raw        bool // expand: false
}

// vars reads variables: of the whole file, of a job, of a rule.
func (p *parser) vars(n *node, what string) []variable {
	if n == nil {
		return nil
	}
	if n.kind != mapping {
		p.fail(n.at, "%s config should be a hash of key value pairs, but is %s", what, n.kind)
		return nil
	}
	keys := []string{"value", "expand"}
	if what == "variables" {
		keys = append(keys, "description", "options")
	}
	var all []variable
	for _, f := range n.fields {
		v := variable{key: f.key}
		of := what + ":" + f.key
		switch f.value.kind {
		case text, null:
			v.value = f.value.text
		case number:
			v.value = f.value.text
			if v.value != f.value.raw {
				p.warn(f.value.at, "%s: %s is a number, and becomes %s: put it in quotes", of, f.value.raw, v.value)
			}
		case mapping:
			for _, d := range f.value.fields {
				if !slices.Contains(keys, d.key) {
					p.fail(d.at, "%s config uses invalid data keys: %s%s", of, d.key, suggest(d.key, keys))
				}
			}
			v.value = p.str(f.value.get("value"), of+":value")
			if e := f.value.field("expand"); e != nil {
				v.raw = !p.boolean(e.value, of+":expand")
			}
			options := p.strs(f.value.get("options"), of+":options")
			if len(options) > 0 && !slices.Contains(options, v.value) {
				p.fail(f.value.at, "%s config value must be present in options", of)
			}
		case boolean:
			p.fail(f.value.at, "%s variable definition must be either a string or a hash: write %q", of, f.value.raw)
		default:
			p.fail(f.value.at, "%s variable definition must be either a string or a hash, but is %s", of, f.value.kind)
		}
		all = append(all, v)
	}
	return all
}

// variables gives what rules see: the predefined, then those of the file, then the given ones. extra are the job's
// own predefined.
func (p *parser) variables(extra map[string]string, file []variable) map[string]string {
	all := p.predefined()
	maps.Copy(all, extra)
	for _, v := range file {
		all[v.key] = v.value
	}
	maps.Copy(all, p.o.Variables)
	return all
}

// payload gives a job's variables as its runner gets them.
func (p *parser) payload(extra map[string]string, file []variable) []spec.Variable {
	predefined := p.predefined()
	maps.Copy(predefined, extra)
	last := map[string]int{} // of each name in the file
	for i, v := range file {
		last[v.key] = i
	}
	var all []spec.Variable
	for _, key := range slices.Sorted(maps.Keys(predefined)) {
		_, inFile := last[key]
		if _, given := p.o.Variables[key]; !inFile && !given {
			all = append(all, spec.Variable{Key: key, Value: predefined[key], Public: true})
		}
	}
	for i, v := range file {
		if _, given := p.o.Variables[v.key]; !given && last[v.key] == i {
			all = append(all, spec.Variable{Key: v.key, Value: v.value, Public: true, Raw: v.raw})
		}
	}
	for _, key := range slices.Sorted(maps.Keys(p.o.Variables)) {
		all = append(all, spec.Variable{Key: key, Value: p.o.Variables[key]})
	}
	return all
}
