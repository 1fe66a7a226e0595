package ciyaml

import (
	"crypto/sha256"
	"maps"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// predefined gives the variables that follow from the options, and the caller's.
func (p *parser) predefined() map[string]string {
	ref := p.o.Branch + p.o.Tag
	all := map[string]string{
		"CI":                      "true",
		"GITLAB_CI":               "true",
		"CI_PIPELINE_SOURCE":      p.o.Source,
		"CI_DEFAULT_BRANCH":       p.o.DefaultBranch,
		"CI_COMMIT_REF_NAME":      ref,
		"CI_COMMIT_REF_SLUG":      Slug(ref),
		"CI_COMMIT_REF_PROTECTED": strconv.FormatBool(p.o.Protected),
	}
	if p.o.Tag != "" {
		all["CI_COMMIT_TAG"] = p.o.Tag
	} else if p.o.Branch != "" && p.o.Source != "merge_request_event" {
		all["CI_COMMIT_BRANCH"] = p.o.Branch
	}
	if p.o.ProjectPath != "" {
		all["CI_PROJECT_PATH"] = p.o.ProjectPath
		all["CI_PROJECT_PATH_SLUG"] = Slug(p.o.ProjectPath)
	}
	maps.Copy(all, p.o.Predefined)
	return all
}

var notSlug = regexp.MustCompile(`[^a-z0-9]`)

// Slug is CI_COMMIT_REF_SLUG of a ref: in lower case, with - for all but a to z and 0 to 9, at most 63 characters, and
// none of them a - at its ends.
func Slug(s string) string {
	s = notSlug.ReplaceAllString(strings.ToLower(s), "-")
	return strings.Trim(s[:min(len(s), 63)], "-")
}

var (
	dashes     = regexp.MustCompile(`-+`)
	startsAtoZ = regexp.MustCompile(`^[a-z]`)
)

// environmentSlug is CI_ENVIRONMENT_SLUG: at most 24 characters, the first a letter, the last no -. A name that had to
// be changed ends with six characters of its digest.
func environmentSlug(name string) string {
	slug := notSlug.ReplaceAllString(strings.ToLower(name), "-")
	if !startsAtoZ.MatchString(slug) {
		slug = "env-" + slug
	}
	slug = dashes.ReplaceAllString(slug, "-")
	if len(slug) <= 24 && slug == name {
		return strings.TrimSuffix(slug, "-")
	}
	slug = strings.TrimSuffix(slug[:min(len(slug), 17)], "-") + "-"
	digest := sha256.Sum256([]byte(name))
	in36 := new(big.Int).SetBytes(digest[:]).Text(36)
	return slug + in36[len(in36)-6:]
}
