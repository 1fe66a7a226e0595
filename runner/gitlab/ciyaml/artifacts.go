package ciyaml

import (
	"maps"
	"slices"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// reportType says how GitLab wants a report, and what it calls its file (app/models/concerns/enums/ci/job_artifact.rb).
type reportType struct{ format, name string }

var reportTypes = map[string]reportType{
	"accessibility":          {"raw", "gl-accessibility.json"},
	"annotations":            {"gzip", "gl-annotations.json"},
	"api_fuzzing":            {"raw", "gl-api-fuzzing-report.json"},
	"browser_performance":    {"raw", "browser-performance.json"},
	"cluster_image_scanning": {"raw", "gl-cluster-image-scanning-report.json"},
	"cobertura":              {"gzip", "cobertura-coverage.xml"},
	"codequality":            {"raw", "gl-code-quality-report.json"},
	"container_scanning":     {"raw", "gl-container-scanning-report.json"},
	"coverage_fuzzing":       {"raw", "gl-coverage-fuzzing.json"},
	"cyclonedx":              {"gzip", "gl-sbom.cdx.json"},
	"dast":                   {"raw", "gl-dast-report.json"},
	"dependency_scanning":    {"raw", "gl-dependency-scanning-report.json"},
	"dotenv":                 {"gzip", ".env"},
	"jacoco":                 {"gzip", "jacoco-coverage.xml"},
	"junit":                  {"gzip", "junit.xml"},
	"license_scanning":       {"raw", "gl-license-scanning-report.json"},
	"load_performance":       {"raw", "load-performance.json"},
	"lsif":                   {"zip", "lsif.json"},
	"metrics":                {"gzip", "metrics.txt"},
	"performance":            {"raw", "performance.json"},
	"repository_xray":        {"gzip", "gl-repository-xray.json"},
	"requirements":           {"raw", "requirements.json"},
	"requirements_v2":        {"raw", "requirements_v2.json"},
	"sarif":                  {"raw", "gl-sarif-report.sarif"},
	"sast":                   {"raw", "gl-sast-report.json"},
	"scip":                   {"zip", "index.scip"},
	"secret_detection":       {"raw", "gl-secret-detection-report.json"},
	"terraform":              {"raw", "tfplan.json"},
}

// artifacts reads what a job leaves; n may be nil. published is a directory for pages, which is among them.
func (p *parser) artifacts(n *node, what, published string) []spec.Artifact {
	if n == nil && published == "" {
		return nil
	}
	if n != nil && n.kind != mapping {
		p.fail(n.at, "%s config should be a hash, but is %s", what, n.kind)
		return nil
	}
	if n == nil {
		n = newMapping(place{}, nil)
	}
	p.known(n, what, "name", "untracked", "public", "access", "paths", "exclude", "expose_as", "expire_in", "reports", "when")
	archive := spec.Artifact{
		Type:      "archive",
		Format:    "zip",
		Name:      p.str(n.get("name"), what+" name"),
		Untracked: p.boolean(n.get("untracked"), what+" untracked"),
		Paths:     p.list(n.get("paths"), what+" paths"),
		Exclude:   p.list(n.get("exclude"), what+" exclude"),
		When:      p.oneOf(n.get("when"), what+" when", "on_success", "on_failure", "always"),
		ExpireIn:  p.expiry(n.get("expire_in"), what+" expire_in"),
	}
	p.boolean(n.get("public"), what+" public")
	p.oneOf(n.get("access"), what+" access", "all", "developer", "maintainer", "none")
	if f := n.field("expose_as"); f != nil && p.str(f.value, what+" expose_as") != "" && len(archive.Paths) == 0 {
		p.fail(f.at, "%s expose_as only works with paths", what)
	}
	if published != "" && !slices.Contains(archive.Paths, published) {
		archive.Paths = append(archive.Paths, published)
	}
	var all []spec.Artifact
	if archive.Untracked || len(archive.Paths) > 0 {
		all = append(all, archive)
	}
	return append(all, p.reports(n.get("reports"), what+":reports", archive.ExpireIn)...)
}

func (p *parser) expiry(n *node, what string) string {
	s := p.str(n, what)
	if s == "" || s == "never" {
		return s
	}
	if _, ok := parseDuration(s); !ok {
		p.fail(n.at, "%s should be a duration, such as 1 week or 3 mins 4 sec, or never", what)
	}
	return s
}

func (p *parser) reports(n *node, what, expireIn string) []spec.Artifact {
	if n == nil {
		return nil
	}
	if n.kind != mapping {
		p.fail(n.at, "%s config should be a hash, but is %s", what, n.kind)
		return nil
	}
	keys := append(slices.Sorted(maps.Keys(reportTypes)), "coverage_report")
	p.known(n, what, slices.DeleteFunc(keys, func(k string) bool { return k == "cobertura" || k == "jacoco" })...)
	var all []spec.Artifact
	for _, f := range n.fields {
		kind, paths := f.key, f.value
		if paths.kind == null {
			continue
		}
		if kind == "coverage_report" {
			if paths.kind != mapping {
				p.fail(paths.at, "%s:coverage_report should be a hash with coverage_format and path", what)
				continue
			}
			p.known(paths, what+":coverage_report", "coverage_format", "path")
			kind = p.oneOf(paths.get("coverage_format"), what+":coverage_report coverage format", "cobertura", "jacoco")
			if paths = paths.get("path"); paths == nil {
				p.fail(f.value.at, "%s:coverage_report path can't be blank", what)
				continue
			}
		}
		t, ok := reportTypes[kind]
		if !ok {
			continue
		}
		all = append(all, spec.Artifact{
			Type: kind, Format: t.format, Name: t.name, Paths: p.strs(paths, what+" "+f.key), When: "always", ExpireIn: expireIn,
		})
	}
	return all
}
