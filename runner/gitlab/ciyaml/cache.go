package ciyaml

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// caches reads one cache or a list of them; n may be nil.
func (p *parser) caches(n *node, what string) []spec.Cache {
	var all []spec.Cache
	for i, c := range flatten(n) {
		if c.kind != mapping {
			p.fail(c.at, "%s config should be a hash, or a list of hashes, but has %s in it", what, c.kind)
			continue
		}
		if i == maxCaches {
			p.fail(c.at, "%s config no more than %d caches can be created", what, maxCaches)
			break
		}
		if made := p.cache(c, what, i); len(made.Paths) > 0 || made.Untracked {
			all = append(all, made)
		}
	}
	return all
}

func (p *parser) cache(n *node, what string, index int) spec.Cache {
	p.known(n, what, "key", "untracked", "paths", "when", "policy", "unprotect", "fallback_keys")
	c := spec.Cache{
		Key:       p.cacheKey(n.get("key"), what+":key", index),
		Untracked: p.boolean(n.get("untracked"), what+":untracked"),
		Paths:     p.list(n.get("paths"), what+":paths"),
		When:      p.oneOf(n.get("when"), what+" when", "on_success", "on_failure", "always"),
		Policy:    "pull-push",
	}
	if f := n.field("policy"); f != nil {
		c.Policy = p.str(f.value, what+" policy")
		if !strings.Contains(c.Policy, "$") { // a variable is the runner's to look up
			c.Policy = p.oneOf(f.value, what+" policy", "pull-push", "push", "pull")
		}
	}
	fallback := p.list(n.get("fallback_keys"), what+":fallback_keys")
	if len(fallback) > 5 {
		p.fail(n.get("fallback_keys").at, "%s:fallback_keys config has to many entries (maximum 5)", what)
	}
	// Protected refs have caches of their own, so that others cannot write what they read.
	suffix := "-non_protected"
	if p.o.Protected && !p.boolean(n.get("unprotect"), what+":unprotect") {
		suffix = "-protected"
	}
	c.Key += suffix
	for _, k := range fallback {
		c.FallbackKeys = append(c.FallbackKeys, k+suffix)
	}
	return c
}

func (p *parser) cacheKey(n *node, what string, index int) string {
	if n == nil {
		return "default"
	}
	if n.kind != mapping {
		key := p.str(n, what)
		if unescaped, err := url.PathUnescape(key); err == nil && strings.Contains(unescaped, "/") {
			p.fail(n.at, `%s config cannot contain the "/" character: use $CI_COMMIT_REF_SLUG for the name of a branch`, what)
		} else if err == nil && (unescaped == "." || unescaped == "..") {
			p.fail(n.at, `%s config cannot be "." or ".."`, what)
		}
		return key
	}
	p.known(n, what, "files", "files_commits", "prefix")
	files := p.list(n.get("files"), what+":files")
	prefix := p.str(n.get("prefix"), what+":prefix")
	if f := n.field("files_commits"); f != nil {
		p.fail(f.at, "%s:files_commits needs the history, and only the files are read: use files", what)
	}
	switch {
	case len(files) == 0:
		p.fail(n.at, "%s config missing required keys: files", what)
	case len(files) > 2:
		p.fail(n.at, "%s:files config has too many items (maximum is 2)", what)
	}
	if prefix == "" {
		names := make([]string, len(files))
		for i, f := range files {
			names[i], _, _ = strings.Cut(f, ".")
		}
		prefix = fmt.Sprintf("%d_%s", index, strings.Join(names, "_"))
	}
	return prefix + "-" + p.digest(files)
}

// digest is what GitLab makes of the content of files: the SHA-1 of their blobs' ids.
func (p *parser) digest(patterns []string) string {
	var ids []string
	for _, pattern := range patterns {
		names := []string{strings.TrimPrefix(pattern, "/")}
		if strings.Contains(pattern, "*") {
			names = nil
			for _, f := range p.all() {
				if matches(strings.TrimPrefix(pattern, "/"), f) {
					names = append(names, f)
				}
			}
		}
		for _, name := range names {
			if id := p.blob(name); id != "" {
				ids = append(ids, id)
			}
		}
	}
	if len(ids) == 0 {
		return "default"
	}
	slices.Sort(ids)
	sum := sha1.Sum([]byte(strings.Join(slices.Compact(ids), "-")))
	return hex.EncodeToString(sum[:])
}

// blob is the id that git gives a file; empty if there is none.
func (p *parser) blob(name string) string {
	f, err := p.fsys.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return ""
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", info.Size())
	if _, err := io.Copy(h, io.LimitReader(f, info.Size())); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}
