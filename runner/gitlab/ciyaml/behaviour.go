package ciyaml

import (
	"fmt"
	"slices"
)

// behaviour reads what becomes of a job that fails, or takes long.
func (p *parser) behaviour(d *definition, what string) {
	n := d.node
	switch f := n.field("allow_failure"); {
	case f == nil:
		d.job.AllowFailure.Always = d.job.When == "manual"
	case f.value.kind == mapping:
		p.known(f.value, what+":allow_failure", "exit_codes")
		d.job.AllowFailure.ExitCodes = p.codes(f.value.get("exit_codes"), what+":allow_failure exit codes")
		if len(d.job.AllowFailure.ExitCodes) == 0 {
			p.fail(f.value.at, "%s:allow_failure config missing required keys: exit_codes", what)
		}
	default:
		d.job.AllowFailure.Always = p.boolean(f.value, what+" allow failure")
	}
	d.job.Retry = p.retry(n.get("retry"), what+":retry")
	d.job.Timeout = p.duration(n.get("timeout"), what+":timeout")
	d.job.Interruptible = p.boolean(n.get("interruptible"), what+":interruptible")
	d.job.Confirmation = p.str(n.get("manual_confirmation"), what+" manual_confirmation")
	if f := n.field("coverage"); f != nil {
		d.job.Coverage = p.str(f.value, what+":coverage")
		m := slashed.FindStringSubmatch(d.job.Coverage)
		if m == nil {
			p.fail(f.value.at, "%s:coverage config must be a regular expression with re2 syntax between slashes, such as '/coverage: \\d+/'", what)
		} else if _, err := compile(m[1], m[2]); err != nil {
			p.fail(f.value.at, "%s:coverage config must be a regular expression with re2 syntax: %s", what, err)
		}
	}
}

func (p *parser) codes(n *node, what string) []int {
	var all []int
	for _, i := range flatten(n) {
		var code int
		if _, err := fmt.Sscanf(i.text, "%d", &code); i.kind != number || err != nil || fmt.Sprint(code) != i.text {
			p.fail(i.at, "%s should be an array of integers or an integer", what)
			continue
		}
		all = append(all, code)
	}
	return all
}

// retryReasons are those that GitLab documents; it has more, so that another is only warned of.
var retryReasons = []string{
	"always", "unknown_failure", "script_failure", "api_failure", "stuck_or_timeout_failure", "runner_system_failure", "runner_unsupported",
	"stale_schedule", "job_execution_timeout", "archived_failure", "unmet_prerequisites", "scheduler_failure", "data_integrity_failure",
	"runner_configuration_error", "runner_external_dependency_failure", "image_pull_failure", "runner_interrupted",
}

func (p *parser) retry(n *node, what string) Retry {
	r := Retry{}
	if n == nil {
		return r
	}
	limit := n
	switch n.kind {
	case mapping:
		p.known(n, what, "max", "when", "exit_codes")
		limit = n.get("max")
		for _, w := range flatten(n.get("when")) {
			reason := p.str(w, what+" when")
			if !slices.Contains(retryReasons, reason) {
				p.warn(w.at, "%s when: %s is no failure that is known here%s", what, reason, suggest(reason, retryReasons))
			}
			r.When = append(r.When, reason)
		}
		r.ExitCodes = p.codes(n.get("exit_codes"), what+" exit codes")
	case number:
	default:
		p.fail(n.at, "%s config has to be either an integer or a hash, but is %s", what, n.kind)
		return r
	}
	if limit == nil {
		return r
	}
	counts := p.codes(limit, what)
	if len(counts) != 1 || counts[0] < 0 || counts[0] > 2 {
		p.fail(limit.at, "%s config must be less than or equal to 2, and at least 0", what)
		return r
	}
	r.Max = counts[0]
	return r
}
