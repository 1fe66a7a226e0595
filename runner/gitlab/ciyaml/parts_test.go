package ciyaml

import (
	"errors"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func repeat(s string, n int) string { return strings.Repeat(s, n) }

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"1h 30m": 90 * time.Minute, "3 hours 30 minutes": 210 * time.Minute, "90": 90 * time.Second, "1.5 hours": 90 * time.Minute,
		"2h20min": 140 * time.Minute, "3 mins 4 sec": 184 * time.Second, "1 week": 7 * 24 * time.Hour, "3 weeks and 2 days": 23 * 24 * time.Hour,
		"6 mos 1 day": 181 * 24 * time.Hour, "1 Day": 24 * time.Hour, "10s": 10 * time.Second, "1 hour, 5 minutes": 65 * time.Minute,
	} {
		if got, ok := parseDuration(text); !ok || got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"", "soon", "1 parsec", "h", "-1h", "1h then", repeat("9", 90), "1e9h"} {
		if got, ok := parseDuration(text); ok {
			t.Errorf("%q is no duration, but %s", text, got)
		}
	}
}

func TestSlugs(t *testing.T) {
	for text, want := range map[string]string{
		"Feature/ABC_1": "feature-abc-1", "-x-": "x", repeat("a", 70): repeat("a", 63), "ü": "", "a" + repeat("/", 70): "a",
	} {
		if got := Slug(text); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	// GitLab's own table (spec/lib/gitlab/slug/environment_spec.rb), where the digest is always the same.
	const digest = "q517sa"
	for text, want := range map[string]string{
		"staging-12345678901234567": "staging-123456789-q517sa", "9-staging-123456789012345": "env-9-staging-123-q517sa",
		"staging-1234567890123456": "staging-1234567890123456", "staging-1234567890123456-": "staging-123456789-q517sa",
		"production": "production", "PRODUCTION": "production-q517sa", "review/1-foo": "review-1-foo-q517sa", "1-foo": "env-1-foo-q517sa",
		"1/foo": "env-1-foo-q517sa", "foo-": "foo", "foo--bar": "foo-bar-q517sa", "foo**bar": "foo-bar-q517sa", "*-foo": "env-foo-q517sa",
		"staging-12345678-": "staging-12345678", "staging-12345678-01234567": "staging-12345678-q517sa", "": "env-q517sa",
	} {
		got := environmentSlug(text)
		if strings.HasSuffix(want, digest) && len(got) == len(want) {
			got = got[:len(got)-len(digest)] + digest
		}
		if got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	for _, text := range []string{"1-foo", "foo--bar", "foo**bar", "FOO", "", "-", repeat("x", 300)} {
		got := environmentSlug(text)
		if len(got) > 24 || got[0] < 'a' || got[0] > 'z' || strings.HasSuffix(got, "-") || strings.Contains(got, "--") {
			t.Errorf("%q: got %s", text, got)
		}
	}
}

// TestMatches has what Ruby's File.fnmatch says with FNM_PATHNAME, FNM_DOTMATCH and FNM_EXTGLOB.
func TestMatches(t *testing.T) {
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.md", "README.md", true},
		{"*.md", "docs/README.md", false},
		{"**/*.md", "README.md", true},
		{"**/*.md", "a/b/c.md", true},
		{"docs/**/*", "docs/a", true},
		{"docs/**/*", "docs/a/b/.c", true},
		{"docs/**", "docs/a", true},
		{"docs/**", "docs/a/b", false}, // ** at the end is *
		{"docs/*", "docs/.hidden", true},
		{"a**b", "axxb", true},
		{"a**b", "ax/xb", false},
		{"src/*.{c,h}", "src/x.h", true},
		{"src/*.{c,h}", "src/x.go", false},
		{"[ab].txt", "b.txt", true},
		{"a?c", "abc", true},
		{"a?c", "a/c", false},
		{"{", "{", false},
	} {
		if got := matches(c.pattern, c.name); got != c.want {
			t.Errorf("%s and %s: got %t, want %t", c.pattern, c.name, got, c.want)
		}
	}
}

func TestExpand(t *testing.T) {
	variables := map[string]string{"A": "1", "B": "$A/2", "LOOP": "x$LOOP"}
	for text, want := range map[string]string{
		"$A-${A}-%A%": "1-1-1", "$B": "1/2", "$NONE ${NONE}": "$NONE ${NONE}", "plain": "plain", "$": "$", "$$A": "$$A",
	} {
		if got := expandNested(text, variables); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
	big := map[string]string{"A": repeat("$B", 1000), "B": repeat("$C", 1000), "C": repeat("x", 1000)}
	if got := expandNested("$A", big); len(got) > maxFile {
		t.Errorf("expanded to %d bytes", len(got))
	}
	if got := expandNested("$LOOP", variables); !strings.HasPrefix(got, "xxx") || len(got) > 100 {
		t.Error(got)
	}
}

// TestDigest compares the key of cache:key:files with what git says of the files.
func TestDigest(t *testing.T) {
	content := map[string]string{"a.lock": "one\n", "b.lock": "two\n"}
	fsys := fstest.MapFS{}
	var ids []string
	for name, text := range content {
		fsys[name] = &fstest.MapFile{Data: []byte(text)}
		git := exec.Command("git", "hash-object", "--stdin")
		git.Stdin = strings.NewReader(text)
		id, err := git.Output()
		if err != nil {
			t.Fatal(err)
		}
		p := &parser{fsys: fsys}
		if got := p.blob(name); got != strings.TrimSpace(string(id)) {
			t.Errorf("%s: got %s, git says %s", name, got, id)
		}
		ids = append(ids, name)
	}
	p := &parser{fsys: fsys}
	both := p.digest([]string{"b.lock", "a.lock"})
	if both != p.digest([]string{"*.lock"}) || both == p.digest(ids[:1]) || p.digest([]string{"none"}) != "default" {
		t.Error("the digest is not of the files' contents alone")
	}
}

func TestPolicies(t *testing.T) {
	r := Retry{Max: 2, When: []string{"runner_system_failure"}, ExitCodes: []int{137}}
	for _, c := range []struct {
		tries  int
		reason spec.FailureReason
		code   int
		want   bool
	}{
		{1, spec.RunnerSystemFailure, -1, true},
		{2, spec.RunnerSystemFailure, -1, true},
		{3, spec.RunnerSystemFailure, -1, false},
		{1, spec.ScriptFailure, 1, false},
		{1, spec.ScriptFailure, 137, true},
	} {
		if got := r.Again(c.tries, c.reason, c.code); got != c.want {
			t.Errorf("%+v: got %t", c, got)
		}
	}
	if !(Retry{Max: 1}).Again(1, spec.ScriptFailure, 1) || (Retry{}).Again(1, spec.ScriptFailure, 1) {
		t.Error("retry: 1 is for all failures, and none without it")
	}
	if a := (AllowFailure{ExitCodes: []int{3}}); !a.Allows(3) || a.Allows(1) || a.Allows(-1) || !(AllowFailure{Always: true}).Allows(-1) {
		t.Error("allow_failure")
	}
}

// TestFiles gives a list of the files, which counts for what is not read.
func TestFiles(t *testing.T) {
	fsys := fstest.MapFS{"ci.yml": {Data: []byte("a: {script: a, rules: [{exists: [listed]}]}\nb: {script: b, rules: [{exists: [ignored]}]}")}, "ignored": {}}
	p, err := Parse(fsys, "ci.yml", Options{Branch: "main", Files: []string{"listed", "ci.yml"}})
	if err != nil || p.Job("a") == nil || p.Job("b") != nil {
		t.Errorf("%+v %v", p, err)
	}
}

func TestBefore(t *testing.T) {
	p, err := Parse(fstest.MapFS{"ci.yml": {Data: []byte("a: {script: a, stage: build}\nb: {script: b}\nc: {script: c, needs: [b]}\nd: {script: d, needs: []}")}},
		"ci.yml", Options{Branch: "main"})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{"a": nil, "b": {"a"}, "c": {"b"}, "d": nil} {
		var got []string
		for _, j := range p.Before(p.Job(name)) {
			got = append(got, j.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s waits for %v, want %v", name, got, want)
		}
	}
	if p.Job("e") != nil {
		t.Error("there is no job e")
	}
}

// TestHostile reads files that want too much. Each has to be refused, and soon.
func TestHostile(t *testing.T) {
	bomb := "a0: &a0 [x, x]\n"
	for _, l := range []string{"1", "2", "3", "4", "5", "6", "7", "8", "9"} {
		bomb += "a" + l + ": &a" + l + " [" + repeat("*a"+string(l[0]-1)+", ", 9) + "x]\n"
	}
	many := func(n int, line func(i string) string) string {
		var b strings.Builder
		for i := range n {
			b.WriteString(line(strings.Repeat("x", i%7) + string(rune('a'+i%26)) + string(rune('a'+i/26%26)) + string(rune('a'+i/676%26))))
		}
		return b.String()
	}
	variables := ".p:\n  variables:\n" + many(15000, func(i string) string { return "    v" + i + ": x\n" })
	for name, c := range map[string]struct{ file, want string }{
		"size":          {"a: {script: a}\n#" + repeat("x", maxFile), "too big"},
		"aliases":       {bomb + "job: {script: *a9}", "too big"},
		"alias in self": {"a: &a [*a]", "is part of what it stands for"},
		"depth":         {"a: " + repeat("[", 200) + repeat("]", 200), "values in one another"},
		"deep flow":     {"a: " + repeat("[", 20000), "Invalid configuration format"},
		"merges":        {variables + ".m: &m\n  <<: " + repeat("[", 1) + "]\n" + many(6000, func(i string) string { return "j" + i + ": {extends: .p, variables: {A: b}, script: a}\n" }), "too big"},
		"references":    {"r0: [x, x, x, x, x, x, x, x]\n" + many(0, nil) + chain(9), "too big"},
		"jobs":          {many(12, func(i string) string { return i + ": {script: a, parallel: 200}\n" }), "Pipeline has too many jobs!"},
		"matrix":        {"a: {script: a, parallel: {matrix: [{A: [1,2,3,4,5,6,7,8,9,0], B: [1,2,3,4,5,6,7,8,9,0], C: [1,2,3]}]}}", "generates too many jobs (maximum is 200)"},
		"includes":      {"include: {local: ci.yml}\na: {script: a}", "Maximum of 150 nested includes are allowed!"},
		"outside":       {"include: {local: ../../etc/x.yml}\na: {script: a}", "does not exist!"},
		"needs":         {"a: {script: a, needs: [" + many(60, func(i string) string { return i + ", " }) + "]}\n", "one job can only need 50 others"},
		"name":          {repeat("n", 300) + ": {script: a}", "maximum is 255 characters"},
		"merge key":     {"a: {<<: text, script: a}", "<<: merges a string"},
		"merged keys":   {variables + "  m: &m {" + many(5000, func(i string) string { return "k" + i + ": 1, " }) + "}\n" + many(3000, func(i string) string { return "j" + i + ": {<<: *m}\n" }), "too big"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			_, err := Parse(fstest.MapFS{"ci.yml": {Data: []byte(c.file)}}, "ci.yml", Options{Branch: "main"})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %.300v, want %s", err, c.want)
			}
			var errs Errors
			if !errors.As(err, &errs) || len(errs) > maxErrors {
				t.Errorf("%T", err)
			}
			if took := time.Since(begin); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

// chain has hidden jobs that refer to the one before eight times each.
func chain(n int) string {
	s := ""
	for i := 1; i <= n; i++ {
		at, before := string(rune('0'+i)), string(rune('0'+i-1))
		s += "r" + at + ": [" + repeat("!reference [r"+before+"], ", 8) + "x]\n"
	}
	return s
}
