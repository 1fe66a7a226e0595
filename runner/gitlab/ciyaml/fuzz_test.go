package ciyaml

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"testing/fstest"

	"golang.org/x/tools/txtar"
)

// FuzzParse reads anything as a file, beside one that it can include. What comes out has to hang together.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		a, err := txtar.ParseFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(a.Files[0].Data, "main")
	}
	f.Fuzz(func(t *testing.T, content []byte, branch string) {
		fsys := fstest.MapFS{
			"ci.yml":    {Data: content},
			"other.yml": {Data: []byte(".o: {image: x}\no: {script: o, rules: [{exists: ['**/*.yml']}]}")},
		}
		p, err := Parse(fsys, "ci.yml", Options{Branch: branch})
		if err != nil && !errors.Is(err, ErrFiltered) && !errors.Is(err, ErrEmpty) {
			var errs Errors
			if !errors.As(err, &errs) || len(errs) == 0 || p != nil {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		names := map[string]bool{}
		for _, j := range p.Jobs {
			if names[j.Name] {
				t.Errorf("job %s is there twice", j.Name)
			}
			names[j.Name] = true
			if !slices.Contains(p.Stages, j.Stage) || len(j.Steps) == 0 || j.Steps[0].Name != "script" {
				t.Errorf("job %s: %+v", j.Name, j)
			}
		}
		for _, j := range p.Jobs {
			for _, n := range j.Needs {
				if !names[n.Job] {
					t.Errorf("job %s needs %s", j.Name, n.Job)
				}
			}
			for _, b := range p.Before(j) {
				if b == j || slices.Contains(p.Before(b), j) {
					t.Errorf("jobs %s and %s wait for one another", j.Name, b.Name)
				}
			}
		}
	})
}

func FuzzExpression(f *testing.F) {
	for _, s := range []string{`$A == "b" && ($C =~ /x\/y/i || !$D)`, `null != 'x'`, `true && false`} {
		f.Add(s, "value")
	}
	f.Fuzz(func(t *testing.T, s, value string) {
		if e, err := parseExpression(s); err == nil {
			e.holds(map[string]string{"A": value, "C": value})
		}
	})
}
