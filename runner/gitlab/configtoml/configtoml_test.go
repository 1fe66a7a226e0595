package configtoml

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/sandbox"
)

var update = flag.Bool("update", false, "write testdata anew")

func parse(t *testing.T, name string) (*Report, []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Parse(text, Options{Dir: "/etc/gitlab-runner", Exists: func(path string) bool { return path == "/etc/gitlab-runner/certs/gitlab.com.crt" }})
	if err != nil {
		t.Fatal(err)
	}
	return r, text
}

func TestGolden(t *testing.T) {
	for _, name := range []string{"all", "several"} {
		r, _ := parse(t, name+".toml")
		var got bytes.Buffer
		for _, f := range r.Findings {
			fmt.Fprintf(&got, "%d: [%d] %s: %s: %s\n", f.Line, f.Runner, f.Key, f.Verdict, f.Note)
		}
		e := json.NewEncoder(&got)
		e.SetIndent("", "  ")
		if err := e.Encode(r.Runners); err != nil {
			t.Fatal(err)
		}
		golden := filepath.Join("testdata", name+".txt")
		if *update {
			if err := os.WriteFile(golden, got.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, _ := os.ReadFile(golden)
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s differs from %s: run with -update and look at the difference\n%s", name, golden, got.String())
		}
		for _, secret := range []string{"sesame", "very-secret", "abcdefghijklmnop", "cccccccccc"} {
			if strings.Contains(got.String(), secret) {
				t.Errorf("%s: the secret %q is told", name, secret)
			}
		}
	}
}

// TestEveryKeyIsJudged holds that each line with a key in it has a finding, or lies in a section that has one.
func TestEveryKeyIsJudged(t *testing.T) {
	r, text := parse(t, "all.toml")
	table, multi := "", false
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if strings.Contains(line, `"""`) {
			multi = !multi
		} else if multi {
			continue
		}
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[]")
			continue
		}
		name, _, ok := strings.Cut(line, " = ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		full := strings.TrimPrefix(table+"."+strings.Trim(name, `"`), ".")
		i := slices.IndexFunc(r.Findings, func(f Finding) bool {
			return f.Line == i+1 && f.Key == full || strings.HasPrefix(full, f.Key+".") && f.Line <= i+1
		})
		if i < 0 {
			t.Errorf("%s is passed over in silence", full)
		} else if f := r.Findings[i]; f.Verdict == Unknown || f.Note == "" {
			t.Errorf("%s: %+v", full, f)
		}
	}
}

// TestEveryRuleIsTried holds that the test data has every key that there is a rule for.
func TestEveryRuleIsTried(t *testing.T) {
	all, _ := parse(t, "all.toml")
	several, _ := parse(t, "several.toml")
	findings := slices.Concat(all.Findings, several.Findings)
	tried := func(key string) bool {
		return slices.ContainsFunc(findings, func(f Finding) bool { return f.Key == key })
	}
	for key := range rules() {
		if !tried(key) && !slices.Contains([]string{"runners", "runners.pre_clone_script", "runners.post_clone_script"}, key) {
			t.Errorf("%s is not in the test data", key)
		}
	}
	for _, s := range sections() {
		if !tried(s.path) && !slices.Contains([]string{"runners.machine", "runners.autoscaler", "runners.instance", "runners.parallels", "runners.custom"}, s.path) {
			t.Errorf("%s is not in the test data", s.path)
		}
	}
}

func TestSeveralRunners(t *testing.T) {
	r, _ := parse(t, "several.toml")
	if len(r.Runners) != 6 {
		t.Fatalf("%d runners", len(r.Runners))
	}
	a, b := r.Runners[0], r.Runners[1]
	if a.Name != "same" || b.Name != "same-2" || len(a.Refused)+len(a.Widens) > 0 || a.Concurrent != 2 || a.URL != "https://gitlab.example.com" || a.Token != "old-style-token-1234" {
		t.Errorf("%+v", a)
	}
	if len(b.Refused) > 0 || len(b.Widens) != 1 || b.Image != "golang:1.25" || b.CAFile != "/etc/gitlab-runner/certs/gitlab.com.crt" {
		t.Errorf("%+v", b)
	}
	for _, x := range r.Runners[2:] {
		if len(x.Refused) == 0 {
			t.Errorf("%s is taken over", x.Name)
		}
	}
	unknown := 0
	for _, f := range r.Findings {
		if f.Verdict == Unknown {
			unknown++
			if !slices.Contains([]string{"concurent", "runners.tls_ca_file", "runners.docker.alowed_images"}, f.Key) {
				t.Errorf("%+v", f)
			}
		}
	}
	if unknown != 3 {
		t.Errorf("%d unknown keys, want 3", unknown)
	}
}

func TestTaken(t *testing.T) {
	r, _ := parse(t, "all.toml")
	a := r.Runners[0]
	if a.Name != "build-host-1-docker" || a.Concurrent != 4 || a.Image != "ruby:3.3" || a.Pull != sandbox.Always || a.Limits != (sandbox.Limits{CPU: 1500, Memory: 2 << 30}) ||
		a.Nesting.String() != "container/dind" || len(a.Env) != 3 || a.Builds != "/builds" || a.CAFile != "/etc/gitlab-runner/ca.pem" ||
		a.CloneURL != "https://clone.example.com" || a.TokenObtained.IsZero() || a.OutputLimit != 8<<20 ||
		a.Scripts != (script.Scripts{PreGetSources: "echo a", PostGetSources: "echo b", PreBuild: "echo c\n"}) || len(a.Refused) > 0 || len(a.Widens) > 0 {
		t.Errorf("%+v", a)
	}
}

func TestBrokenFiles(t *testing.T) {
	for text, want := range map[string]string{
		"concurrent = ":            "line 1",
		"a = 1\na = 2":             "a",
		"[[runners]]\nname = \"a":  "line 2",
		"[runners]\n[[runners]]":   "runners",
		strings.Repeat("#", 5<<20): "more than 4 MiB",
	} {
		if _, err := Parse([]byte(text), Options{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v", text, err)
		}
	}
	r, err := Parse(nil, Options{})
	if err != nil || len(r.Runners) != 0 {
		t.Error(r, err)
	}
	r, err = Parse([]byte(`runners = [{name = "x"}]`), Options{})
	if err != nil || len(r.Findings) == 0 || r.Findings[0].Verdict != Refused {
		t.Errorf("%+v %v", r, err)
	}
}

// FuzzParse holds that no file breaks it, and that every runner is judged.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"all.toml", "several.toml"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte("a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q.r.s.t.u.v = 1"))
	f.Add([]byte("[[a]]\n[[a.b]]\n[[a.b.c]]\nd.e = {f = [{g = 1}]}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := Parse(text, Options{})
		if err != nil {
			return
		}
		for _, x := range r.Runners {
			if x.Name == "" || x.URL == "" && len(x.Refused) == 0 {
				t.Errorf("%+v", x)
			}
		}
	})
}
