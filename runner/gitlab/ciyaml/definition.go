package ciyaml

import (
	"slices"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// definition is a job as the file has it, before its rules are evaluated.
type definition struct {
	name      string
	at        place // of its name
	node      *node // with the defaults
	job       Job   // what all its instances have in common
	instances []*instance

	rules           []rule
	hasRules        bool
	only, except    *policy
	variables       []variable
	inherited       []variable // of the file
	needs           *needs
	dependencies    []need
	hasDependencies bool
	environment     *Environment
	elsewhere       string // why no runner runs it
}

var (
	// defaultKeys may stand in default:, and those of globalKeys beside the jobs.
	defaultKeys = []string{
		"after_script", "artifacts", "before_script", "cache", "hooks", "id_tokens", "identity", "image", "interruptible", "retry",
		"services", "tags", "timeout",
	}
	globalKeys = []string{"after_script", "before_script", "cache", "image", "services"}
	rootKeys   = append([]string{"$schema", "default", "include", "spec", "stages", "variables", "workflow"}, globalKeys...)
	jobKeys    = append([]string{
		"allow_failure", "coverage", "dast_configuration", "dependencies", "environment", "except", "extends", "inherit", "inputs",
		"manual_confirmation", "needs", "only", "pages", "parallel", "publish", "release", "resource_group", "rules", "run", "script", "secrets",
		"stage", "start_in", "trigger", "variables", "when",
	}, defaultKeys...)
	whens = []string{"on_success", "on_failure", "always", "manual", "delayed"}
)

// define reads a job.
func (p *parser) define(f field, defaults *node, global []variable) *definition {
	name, n := f.key, f.value
	what := "jobs:" + name
	d := &definition{name: name, at: f.at}
	if n.kind != mapping || n.get("script") == nil && n.get("trigger") == nil && n.get("run") == nil {
		hint := suggest(name, rootKeys)
		if n.kind == mapping && hint == "" {
			for _, of := range n.fields {
				if s := suggest(of.key, []string{"script", "trigger"}); s != "" && !slices.Contains(jobKeys, of.key) {
					hint = s
				}
			}
		}
		p.fail(f.at, "%s config should implement the script:, run:, or trigger: keyword%s", what, hint)
		return nil
	}
	if name == "" || len(name) > maxName {
		p.fail(f.at, "jobs name is too long, or empty (maximum is %d characters)", maxName)
		return nil
	}
	p.known(n, what, jobKeys...)
	if inherit := n.get("inherit"); inherit != nil {
		p.known(inherit, what+":inherit", "default", "variables")
	}
	n = p.withDefaults(name, n, defaults)
	d.node = n
	inherits := p.inherit(n.get("inherit").get("variables"), what+":inherit:variables", nil)
	for _, v := range global {
		if inherits(v.key) {
			d.inherited = append(d.inherited, v)
		}
	}
	d.variables = p.vars(n.get("variables"), what+":variables")
	p.conditions(d, what)
	p.order(d, what)
	p.behaviour(d, what)
	p.contents(d, what)
	p.foreign(d, what)
	d.instances = p.instances(name, n.get("parallel"))
	return d
}

// conditions reads what decides whether a job is in the pipeline.
func (p *parser) conditions(d *definition, what string) {
	n := d.node
	if f := n.field("rules"); f != nil {
		d.hasRules = true
		d.rules = p.rules(f.value, what+":rules", append(slices.Clone(whens), "never")...)
		for _, key := range []string{"only", "except", "start_in"} {
			if of := n.field(key); of != nil {
				p.fail(of.at, "%s config key may not be used with `rules`: %s", what, key)
			}
		}
	}
	d.only = p.policy(n.get("only"), what+":only")
	d.except = p.policy(n.get("except"), what+":except")
	if w := n.get("when"); w != nil && w.text == "never" {
		p.fail(w.at, "%s when should be one of: %s; to leave a job out, write rules: with when: never", what, join(whens))
	} else {
		d.job.When = p.oneOf(w, what+" when", whens...)
	}
	d.job.StartIn = p.delay(n.get("start_in"), what, n.at, d.job.When)
}

const week = 7 * 24 * time.Hour

func (p *parser) delay(n *node, what string, at place, when string) time.Duration {
	if when != "delayed" {
		if n != nil {
			p.fail(n.at, "%s start in must be blank: it is for when: delayed", what)
		}
		return 0
	}
	in := p.duration(n, what+" start in")
	switch {
	case n == nil:
		p.fail(at, "%s start in should be a duration: when: delayed needs start_in", what)
	case in > week:
		p.fail(n.at, "%s start in should not exceed the limit: one week", what)
	}
	return in
}

// order reads what a job waits for.
func (p *parser) order(d *definition, what string) {
	n := d.node
	d.job.Stage = "test"
	if f := n.field("stage"); f != nil {
		d.job.Stage = p.str(f.value, what+":stage")
	}
	d.needs = p.needs(n.get("needs"), what+":needs")
	if f := n.field("dependencies"); f != nil {
		d.hasDependencies = true
		for _, i := range flatten(f.value) {
			if i.kind != text && i.kind != number {
				p.fail(i.at, "%s dependencies should be an array of strings", what)
				continue
			}
			d.dependencies = append(d.dependencies, need{Need: Need{Job: i.text}, at: i.at})
		}
	}
	d.job.ResourceGroup = p.str(n.get("resource_group"), what+" resource_group")
	d.job.Tags = p.strs(n.get("tags"), what+" tags")
}

// contents reads what the runner gets.
func (p *parser) contents(d *definition, what string) {
	n := d.node
	d.job.Image = p.image(n.get("image"), what+":image")
	d.job.Services = p.services(n.get("services"), what+":services")
	d.job.Cache = p.caches(n.get("cache"), what+":cache")
	d.job.Artifacts = p.artifacts(n.get("artifacts"), what+":artifacts", p.pages(d, what))
	d.environment = p.environment(n.get("environment"), what+":environment")
	seconds := int(d.job.Timeout / time.Second)
	script := append(p.script(n.get("before_script"), what+":before_script"), p.script(n.get("script"), what+":script")...)
	if f := n.field("script"); f != nil && len(flatten(f.value)) == 0 {
		p.fail(f.at, "%s:script config can't be blank", what)
	}
	d.job.Steps = []spec.Step{{Name: spec.StepScript, Script: script, Timeout: seconds, When: "on_success"}}
	if release := p.release(n.get("release"), what+":release"); release != nil {
		d.job.Steps = append(d.job.Steps, spec.Step{Name: "release", Script: release, Timeout: seconds, When: "on_success"})
	}
	if after := p.script(n.get("after_script"), what+":after_script"); len(after) > 0 {
		d.job.Steps = append(d.job.Steps, spec.Step{Name: spec.StepAfterScript, Script: after, Timeout: seconds, When: "always", AllowFailure: true})
	}
	if hooks := n.get("hooks"); hooks != nil {
		p.known(hooks, what+":hooks", "pre_get_sources_script")
		if lines := p.script(hooks.get("pre_get_sources_script"), what+":hooks:pre_get_sources_script"); lines != nil {
			d.job.Hooks = []spec.Hook{{Name: "pre_get_sources_script", Script: lines}}
		}
	}
}

// pages gives the directory that a job publishes, which is then among its artifacts.
func (p *parser) pages(d *definition, what string) string {
	n := d.node.get("pages")
	if n == nil || n.kind == boolean && n.text == "false" {
		return ""
	}
	p.warn(n.at, "%s:pages is ignored, but for its artifacts: publishing needs a GitLab", what)
	directory := "public"
	if n.kind == mapping {
		p.known(n, what+":pages", "path_prefix", "expire_in", "publish", "user_defined_environment")
		if f := n.field("publish"); f != nil {
			directory = p.str(f.value, what+":pages publish")
		}
	} else {
		p.boolean(n, what+":pages")
	}
	if f := d.node.field("publish"); f != nil {
		directory = p.str(f.value, what+" publish")
	}
	return directory
}

// foreign deals with what a runner alone cannot do.
func (p *parser) foreign(d *definition, what string) {
	n := d.node
	for _, key := range []string{"id_tokens", "secrets", "identity", "dast_configuration"} {
		if f := n.field(key); f != nil {
			var names []string
			if f.value.kind == mapping {
				names = f.value.names()
			}
			needs := "GitLab to sign them"
			if key != "id_tokens" {
				needs = "GitLab and a provider"
			}
			hint := ""
			if len(names) > 0 {
				hint = ": give " + strings.Join(names, ", ") + " as variables instead"
			}
			p.warn(f.at, "%s:%s is ignored, it needs %s%s", what, key, needs, hint)
		}
	}
	if f := n.field("run"); f != nil {
		p.fail(f.at, "%s:run: CI/CD steps are not supported: write the commands as script", what)
	}
	if f := n.field("inputs"); f != nil {
		p.fail(f.at, "%s:inputs: inputs of jobs are not supported: use variables", what)
	}
	if f := n.field("trigger"); f != nil {
		if s := n.field("script"); s != nil {
			p.fail(s.at, "%s config: these keys cannot be used together: script, trigger", what)
		}
		d.elsewhere = "trigger: starts another pipeline, which needs a GitLab"
		p.warn(f.at, "%s is left out: %s", what, d.elsewhere)
	}
}

func join(s []string) string { return strings.Join(s, ", ") }
