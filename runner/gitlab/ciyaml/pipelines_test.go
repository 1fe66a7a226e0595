package ciyaml

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestPipelines reads the repositories that the integration tests run, and looks for the jobs that these expect.
func TestPipelines(t *testing.T) {
	wants, err := filepath.Glob("../../../integration/testdata/pipelines/*.json")
	if err != nil || len(wants) < 12 {
		t.Fatal(wants, err)
	}
	for _, file := range wants {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".json"), func(t *testing.T) {
			var want struct {
				Branch   string                     `json:"branch"`
				Jobs     map[string]json.RawMessage `json:"jobs"`
				Excluded []string                   `json:"excluded"`
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			p, err := Parse(os.DirFS(strings.TrimSuffix(file, ".json")), ".gitlab-ci.yml", Options{Branch: "main"})
			if err != nil {
				t.Fatal(err)
			}
			var jobs, excluded []string
			for _, j := range p.Jobs {
				jobs = append(jobs, j.Name)
			}
			for _, e := range p.Excluded {
				excluded = append(excluded, e.Name)
			}
			slices.Sort(jobs)
			slices.Sort(excluded)
			if wanted := slices.Sorted(maps.Keys(want.Jobs)); !slices.Equal(jobs, wanted) {
				t.Errorf("jobs %q, want %q", jobs, wanted)
			}
			slices.Sort(want.Excluded)
			if !slices.Equal(excluded, want.Excluded) {
				t.Errorf("excluded %q, want %q", excluded, want.Excluded)
			}
			if len(p.Warnings) > 0 {
				t.Errorf("warnings: %v", p.Warnings)
			}
		})
	}
}
