package ciyaml

import "regexp"

// environment reads where a job deploys to; n may be nil.
func (p *parser) environment(n *node, what string) *Environment {
	if n == nil {
		return nil
	}
	e := &Environment{Action: "start"}
	switch n.kind {
	case text:
		e.Name = n.text
	case mapping:
		p.known(n, what, "name", "url", "action", "on_stop", "auto_stop_in", "kubernetes", "deployment_tier")
		e.Name = p.str(n.get("name"), what+" name")
		e.URL = p.str(n.get("url"), what+" url")
		e.Action = p.oneOf(n.get("action"), what+" action", "start", "stop", "prepare", "verify", "access")
		e.OnStop = p.str(n.get("on_stop"), what+" on stop")
		if f := n.field("deployment_tier"); f != nil {
			e.Tier = p.oneOf(f.value, what+" deployment tier", "production", "staging", "testing", "development", "other")
		}
		if f := n.field("kubernetes"); f != nil {
			p.warn(f.at, "%s:kubernetes is ignored: it needs GitLab's agent for Kubernetes", what)
		}
	default:
		p.fail(n.at, "%s config should be a hash or a string, but is %s", what, n.kind)
	}
	if e.Name == "" {
		p.fail(n.at, "%s name can't be blank", what)
	}
	return e
}

// The tiers that GitLab guesses from a name, in its order (app/models/environment.rb).
var tiers = [...]struct {
	tier    string
	pattern *regexp.Regexp
}{
	{"development", regexp.MustCompile(`(?i)(dev|review|trunk)`)},
	{"testing", regexp.MustCompile(`(?i)(test|tst|int|ac(ce|)pt|qa|qc|control|quality)`)},
	{"staging", regexp.MustCompile(`(?i)(st(a|)g|mod(e|)l|pre|demo|non)`)},
	{"production", regexp.MustCompile(`(?i)(pr(o|)d|live)`)},
}

// of gives the environment for one job, with its variables in its name.
func (e *Environment) of(variables map[string]string) *Environment {
	made := *e
	made.Name = expandNested(e.Name, variables)
	made.Slug = environmentSlug(made.Name)
	if made.Tier == "" {
		made.Tier = "other"
		for _, t := range tiers {
			if t.pattern.MatchString(made.Name) {
				made.Tier = t.tier
				break
			}
		}
	}
	made.URL = expandNested(expand(e.URL, made.predefined()), variables)
	return &made
}

func (e *Environment) predefined() map[string]string {
	all := map[string]string{
		"CI_ENVIRONMENT_NAME": e.Name, "CI_ENVIRONMENT_SLUG": e.Slug, "CI_ENVIRONMENT_ACTION": e.Action, "CI_ENVIRONMENT_TIER": e.Tier,
	}
	if e.URL != "" {
		all["CI_ENVIRONMENT_URL"] = e.URL
	}
	return all
}
