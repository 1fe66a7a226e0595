package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/docker/cli/cli/config"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/planfile"
	"github.com/runnerd/runnerd/runner/api"
)

// TestMain lets the tests' binary be the process that reads plans, and hides the credentials of who tests.
func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == planProgram {
		if err := planfile.Process(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	config.SetDir("/nonexistent")
	os.Exit(m.Run())
}

// testPlanner has the tests' binary read plans.
func testPlanner(t *testing.T) planner {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, planProgram)); err != nil {
		t.Fatal(err)
	}
	return newPlanner(dir)
}

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"docker-bake.hcl": "variable \"TAG\" {}\ntarget \"default\" {\n tags = [\"x.test/a:${TAG}\"]\n}\n", "Dockerfile": "FROM y.test/b\n",
		"broken.hcl": "target \"default\" {\n args = { A = NOSUCH }\n}\n",
	})
	plan, err := testPlanner(t).read(t.Context(), buildkit.Input{Dir: dir, Vars: map[string]string{"TAG": "7"}})
	if err != nil || plan.Targets["default"].Tags[0] != "x.test/a:7" || plan.Targets["default"].Images[0] != "y.test/b" {
		t.Errorf("%+v, %v", plan, err)
	}
	var place *api.FileError
	if _, err := testPlanner(t).read(t.Context(), buildkit.Input{Dir: dir, Files: []string{"broken.hcl"}}); !errors.As(err, &place) || place.File != "broken.hcl" || place.Line != 2 {
		t.Errorf("%v", err)
	}
}

// TestHostilePlans holds that a build file cannot use up the daemon, and that its author is told the limit.
func TestHostilePlans(t *testing.T) {
	matrix := func(n int) string {
		var values strings.Builder
		for i := range n {
			fmt.Fprintf(&values, "%q,", fmt.Sprint(i))
		}
		return "target \"default\" {\n name = \"t-${n}\"\n matrix = { n = [" + values.String() + "] }\n dockerfile-inline = \"FROM scratch\"\n}\n"
	}
	doubling := func(n int) string {
		text := "variable \"v0\" { default = \"" + strings.Repeat("x", 1000) + "\" }\n"
		for i := range n {
			text += fmt.Sprintf("variable \"v%d\" { default = \"${v%d}${v%d}\" }\n", i+1, i, i)
		}
		return text + fmt.Sprintf("target \"default\" {\n dockerfile-inline = \"FROM scratch\"\n args = { A = v%d }\n}\n", n)
	}
	for name, c := range map[string]struct{ text, want string }{
		"1500 targets":   {matrix(1500), "1500 targets: at most 1000"},
		"10,000 targets": {matrix(10000), "at most 1000"},
		"memory":         {doubling(30), "of memory: a build may have at most 1000 targets"},
		"output":         {doubling(15), "larger than 16777216 bytes"},
		"functions": {`
function "f0" {
  params = [x]
  result = "${x}${x}${x}${x}${x}${x}${x}${x}${x}${x}"
}` + strings.Join(numbered(`
function "f%[2]d" {
  params = [x]
  result = "${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}${f%[1]d(x)}"
}`, 12), "") + "\ntarget \"default\" {\n args = { A = f12(\"\") }\n dockerfile-inline = \"FROM scratch\"\n}\n", "at most 1000 targets"},
		"recursion": {"function \"f\" {\n params = [x]\n result = f(x)\n}\ntarget \"default\" {\n args = { A = f(1) }\n}\n", ""},
		"huge file": {"# " + strings.Repeat("x", 2<<20), "at most 1048576"},
		"yaml bomb": {yamlBomb(), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir, file := t.TempDir(), "docker-bake.hcl"
			if strings.HasPrefix(c.text, "a0:") {
				file = "compose.yaml"
			}
			write(t, dir, map[string]string{file: c.text, "Dockerfile": "FROM scratch"})
			began := time.Now()
			_, err := testPlanner(t).read(t.Context(), buildkit.Input{Dir: dir})
			if took := time.Since(began); took > planTime+5*time.Second {
				t.Errorf("took %s", took)
			}
			var place *api.FileError
			if err == nil || !errors.Is(err, api.ErrInvalid) && !errors.As(err, &place) || !strings.Contains(err.Error(), c.want) || len(err.Error()) > 4000 {
				t.Errorf("got %.500v, want %q", err, c.want)
			}
		})
	}
}

func numbered(format string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf(format, i, i+1))
	}
	return out
}

func yamlBomb() string {
	text := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := range 9 {
		text += fmt.Sprintf("a%[2]d: &a%[2]d [*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d,*a%[1]d]\n", i, i+1)
	}
	return text + "services: {default: {build: {context: ., args: *a9}}}\n"
}
