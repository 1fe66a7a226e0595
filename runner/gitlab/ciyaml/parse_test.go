package ciyaml

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/tools/txtar"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

var update = flag.Bool("update", false, "write what is made into testdata")

// TestParse reads the repositories in testdata. Each is an archive whose comment has the options and what it is about,
// whose files are the repository's, and whose last file is want: the pipeline, or the error.
func TestParse(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			fsys := fstest.MapFS{}
			want, files := "", a.Files[:0:0]
			for _, f := range a.Files {
				if f.Name == "want" {
					want = string(f.Data)
					continue
				}
				files = append(files, f)
				fsys[f.Name] = &fstest.MapFile{Data: f.Data}
			}
			got := outcome(fsys, options(t, string(a.Comment)))
			if *update {
				a.Files = append(files, txtar.File{Name: "want", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

// options reads lines such as "branch: main" and "var: A=1" from the comment of an archive.
func options(t *testing.T, comment string) Options {
	o := Options{Variables: map[string]string{}, Predefined: map[string]string{"CI_PIPELINE_ID": "7"}}
	for line := range strings.Lines(comment) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || strings.HasPrefix(key, "#") {
			continue
		}
		switch key {
		case "branch":
			o.Branch = value
		case "tag":
			o.Tag = value
		case "source":
			o.Source = value
		case "project":
			o.ProjectPath = value
		case "protected":
			o.Protected = value == "true"
		case "changed":
			o.Changed = strings.Fields(value)
		case "since":
			ref, files, _ := strings.Cut(value, " ")
			o.ChangedSince = func(asked string) ([]string, error) {
				if asked != ref {
					return nil, errors.New("no such ref")
				}
				return strings.Fields(files), nil
			}
		case "var":
			k, v, _ := strings.Cut(value, "=")
			o.Variables[k] = v
		default:
			t.Fatalf("unknown option %q", key)
		}
	}
	return o
}

// outcome writes down what comes of a repository: a line of JSON for the pipeline and one for each job, without the
// variables that all have, and without what is not set.
func outcome(fsys fs.FS, o Options) string {
	p, err := Parse(fsys, ".gitlab-ci.yml", o)
	var out bytes.Buffer
	if err != nil {
		out.WriteString("error: " + err.Error() + "\n")
	}
	if p == nil {
		return out.String()
	}
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encode := func(v any) {
		if err := encoder.Encode(v); err != nil {
			out.WriteString(err.Error())
		}
	}
	encode(map[string]any{"name": p.Name, "stages": p.Stages, "files": p.Files})
	for _, w := range p.Warnings {
		out.WriteString("warning: " + w + "\n")
	}
	for _, e := range p.Excluded {
		out.WriteString("excluded: " + e.Name + ": " + e.Reason + "\n")
	}
	all := (&parser{o: o}).predefined()
	for _, j := range p.Jobs {
		encode(struct {
			*Job
			Variables []string            `json:"variables,omitempty"`
			Steps     map[string][]string `json:"steps"`
			Place     string              `json:"place,omitempty"`
		}{j, own(j.Variables, all), scripts(j), ""})
	}
	return out.String()
}

// own are the variables of a job but for those that every job has.
func own(variables []spec.Variable, predefined map[string]string) []string {
	var lines []string
	for _, v := range variables {
		switch _, known := predefined[v.Key]; {
		case known, v.Key == "CI_JOB_NAME", v.Key == "CI_JOB_NAME_SLUG", v.Key == "CI_JOB_STAGE", v.Key == "CI_JOB_GROUP_NAME",
			v.Key == "CI_NODE_TOTAL" && v.Value == "1":
		case v.Raw:
			lines = append(lines, v.Key+"="+v.Value+" (raw)")
		default:
			lines = append(lines, v.Key+"="+v.Value)
		}
	}
	return lines
}

// scripts are a job's steps by name; what is else in them goes into the name.
func scripts(j *Job) map[string][]string {
	steps := map[string][]string{}
	for _, s := range j.Steps {
		name := s.Name
		if s.Timeout > 0 {
			name += fmt.Sprintf(" (%d s)", s.Timeout)
		}
		if s.When != "on_success" || s.AllowFailure {
			name += fmt.Sprintf(" (%s, %t)", s.When, s.AllowFailure)
		}
		steps[name] = s.Script
	}
	return steps
}
