package job

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
)

var errNoKey = errors.New("empty cache key")

// key makes a cache's key of what the job says: variables are expanded, and it is made the path that gitlab-runner would
// keep it under, so that the same keys mean the same (cache/cachekey). The store does not take it for a path.
func (k *Kept) key(text string) (string, error) {
	raw := path.Join("/", k.JobName, k.Ref)[1:]
	if text != "" {
		raw = k.Variables.Expand(text)
	}
	key := sanitize(raw)
	switch {
	case key == "" && raw != "":
		k.alarm("%s", fmt.Sprintf("cache key %q could not be sanitized", raw))
	case key != raw:
		k.alarm("%s", fmt.Sprintf("cache key %q sanitized to %q", raw, key))
	}
	if key == "" {
		return "", errNoKey
	}
	return key, nil
}

// sanitize makes a key a relative path without dots, backslashes, and spaces at its end; empty if nothing is left.
func sanitize(raw string) string {
	key := strings.NewReplacer("%2f", "/", "%2F", "/", "%2e", ".", "%2E", ".", `\`, "/").Replace(raw)
	key = path.Clean("/" + key)
	for {
		trimmed := strings.TrimSuffix(strings.TrimRightFunc(key, unicode.IsSpace), "/")
		if trimmed == key {
			return strings.TrimPrefix(key, "/")
		}
		key = trimmed
	}
}

// fallbacks are the keys to restore from when there is nothing under the first.
func (k *Kept) fallbacks(texts []string) (keys []string) {
	add := func(text string) {
		if text == "" {
			return
		}
		key, err := k.key(text)
		if err != nil {
			k.notice("Skipping cache extraction due to %v", err)
			return
		}
		keys = append(keys, key)
	}
	for _, text := range texts {
		add(text)
	}
	// A job chooses this one freely. GitLab gives caches of protected branches their suffix.
	const protected = "-protected"
	if last := k.Variables.Get("CACHE_FALLBACK_KEY"); strings.HasSuffix(strings.TrimRight(sanitize(k.Variables.Expand(last)), ". "), protected) {
		k.alarm("CACHE_FALLBACK_KEY %q not allowed to end in %q", last, protected)
	} else {
		add(last)
	}
	return keys
}
