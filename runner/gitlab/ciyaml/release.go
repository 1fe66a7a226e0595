package ciyaml

import (
	"encoding/json"
	"strings"
)

// release makes the script of a job's release step: GitLab has its runners call release-cli.
func (p *parser) release(n *node, what string) []string {
	if n == nil {
		return nil
	}
	if n.kind != mapping {
		p.fail(n.at, "%s config should be a hash, but is %s", what, n.kind)
		return nil
	}
	p.known(n, what, "tag_name", "tag_message", "name", "description", "ref", "milestones", "assets", "released_at")
	p.warn(n.at, "%s: release-cli asks GitLab's API for the release, and fails where there is none", what)
	command := "release-cli create"
	for _, key := range []string{"name", "description", "tag_name", "tag_message", "ref", "released_at"} {
		v := p.str(n.get(key), what+" "+key)
		if v != "" {
			command += " --" + strings.ReplaceAll(key, "_", "-") + ` "` + v + `"`
		} else if key == "tag_name" || key == "description" {
			p.fail(n.at, "%s %s can't be blank", what, key)
		}
	}
	for _, m := range p.strs(n.get("milestones"), what+" milestones") {
		command += ` --milestone "` + m + `"`
	}
	for _, link := range flatten(n.get("assets").get("links")) {
		p.known(link, what+":assets:links", "name", "url", "filepath", "link_type", "direct_asset_path")
		fields := map[string]string{}
		for _, key := range []string{"name", "url", "filepath", "link_type", "direct_asset_path"} {
			if v := p.str(link.get(key), what+":assets:links "+key); v != "" {
				fields[key] = v
			}
		}
		text, _ := json.Marshal(fields)         // of strings, which cannot fail
		quoted, _ := json.Marshal(string(text)) // in the quotes that GitLab's own has
		command += " --assets-link " + string(quoted)
	}
	return []string{command}
}
