package job

import (
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// TestSanitize has the cases of gitlab-runner's cache/cachekey that differ in what is done: the same keys must mean the
// same caches.
func TestSanitize(t *testing.T) {
	for raw, want := range map[string]string{
		"":                              "",
		"key":                           "key",
		"some-job/some-ref":             "some-job/some-ref",
		".../....":                      ".../....",
		"key/":                          "key",
		"key ":                          "key",
		`key\`:                          "key",
		`key/ / \  \`:                   "key",
		`key / \o`:                      "key / /o",
		"\t foo bar \t\r":               "\t foo bar",
		" foo / bar ":                   " foo / bar",
		`\.`:                            "",
		" / ":                           "",
		"..":                            "",
		"foo/bar/../..":                 "",
		" \t\r\n":                       "",
		"a %2F b":                       "a / b",
		"some%2f../job/some/ref/.":      "job/some/ref",
		"%2E%2e":                        "",
		"%2e%2E%2E":                     "...",
		"%5C":                           "%5C",
		"/foo/./bar":                    "foo/bar",
		"../foo/bar":                    "foo/bar",
		`foo\bar\..\..\..\..\.\blerp`:   "blerp",
		"foo/ /bar":                     "foo/ /bar",
		"foo/ / /":                      "foo",
		"../../../etc/passwd":           "etc/passwd",
		strings.Repeat("../", 100) + "": "",
	} {
		if got := sanitize(raw); got != want {
			t.Errorf("%q: %q, not %q", raw, got, want)
		}
		if again := sanitize(sanitize(raw)); again != sanitize(raw) {
			t.Errorf("%q: %q the second time", raw, again)
		}
	}
}

func TestKeptWhen(t *testing.T) {
	for when, want := range map[string][2]bool{"": {true, false}, "on_success": {true, false}, "on_failure": {false, true}, "always": {true, true}, "never": {}} {
		for i, succeeded := range []bool{true, false} {
			if got := Saves(spec.Cache{Paths: []string{"x"}, When: when}, succeeded); got != want[i] {
				t.Errorf("a cache, %s, %v: %v", when, succeeded, got)
			}
			if got := Uploads(spec.Artifact{Untracked: true, When: when}, succeeded); got != want[i] {
				t.Errorf("an artifact, %s, %v: %v", when, succeeded, got)
			}
		}
	}
	if Restores(spec.Cache{Key: "k"}) || Uploads(spec.Artifact{Name: "x"}, true) || Downloads(spec.Dependency{ID: 1}) {
		t.Error("there is nothing in it")
	}
}
