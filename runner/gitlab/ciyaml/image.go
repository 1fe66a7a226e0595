package ciyaml

import (
	"encoding/json"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// image reads a job's image; n may be nil.
func (p *parser) image(n *node, what string) *spec.Image {
	if n == nil {
		return nil
	}
	switch n.kind {
	case text:
		return &spec.Image{Name: n.text}
	case mapping:
	default:
		p.fail(n.at, "%s config should be a hash or a string, but is %s", what, n.kind)
		return nil
	}
	p.known(n, what, "name", "entrypoint", "ports", "pull_policy", "docker", "kubernetes")
	i := p.imageParts(n, what)
	return &i
}

// imageParts reads what images and services have in common.
func (p *parser) imageParts(n *node, what string) spec.Image {
	i := spec.Image{Name: p.str(n.get("name"), what+" name")}
	if i.Name == "" {
		p.fail(n.at, "%s name can't be blank: write name: IMAGE", what)
	}
	i.Entrypoint = p.list(n.get("entrypoint"), what+" entrypoint")
	for _, policy := range flatten(n.get("pull_policy")) {
		i.PullPolicies = append(i.PullPolicies, p.oneOf(policy, what+" pull_policy", "always", "if-not-present", "never"))
	}
	for _, port := range flatten(n.get("ports")) {
		p.warn(port.at, "%s: ports are for the web terminal of Web IDE, and ignored", what)
	}
	options := map[string]map[string]string{}
	for _, executor := range []string{"docker", "kubernetes"} {
		f := n.field(executor)
		if f == nil {
			continue
		}
		if f.value.kind != mapping {
			p.fail(f.value.at, "%s %s should be a hash", what, executor)
			continue
		}
		keys := []string{"user"}
		if executor == "docker" {
			keys = append(keys, "platform")
		}
		p.known(f.value, what+":"+executor, keys...)
		options[executor] = map[string]string{}
		for _, k := range keys {
			if v := p.str(f.value.get(k), what+":"+executor+":"+k); v != "" {
				options[executor][k] = v
			}
		}
	}
	if len(options) > 0 {
		i.ExecutorOpts, _ = json.Marshal(options) // of strings, which cannot fail
	}
	return i
}

// services reads a list of services; n may be nil.
func (p *parser) services(n *node, what string) []spec.Image {
	if n == nil {
		return nil
	}
	if n.kind != list {
		p.fail(n.at, "%s config should be an array: write - before each service", what)
		return nil
	}
	var all []spec.Image
	for _, i := range flatten(n) {
		switch i.kind {
		case text:
			all = append(all, spec.Image{Name: i.text})
			continue
		case mapping:
		default:
			p.fail(i.at, "%s:service config should be a hash or a string, but is %s", what, i.kind)
			continue
		}
		of := what + ":service"
		p.known(i, of, "name", "entrypoint", "command", "alias", "ports", "pull_policy", "docker", "kubernetes", "variables")
		s := p.imageParts(i, of)
		s.Alias = p.str(i.get("alias"), of+" alias")
		s.Command = p.list(i.get("command"), of+" command")
		for _, v := range p.vars(i.get("variables"), of+":variables") {
			s.Variables = append(s.Variables, spec.Variable{Key: v.key, Value: v.value, Public: true, Raw: v.raw})
		}
		all = append(all, s)
	}
	return all
}
