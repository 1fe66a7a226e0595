package main

import (
	"context"
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/runner/advise"
	"github.com/runnerd/runnerd/sandbox"
)

func TestNestingExplain(t *testing.T) {
	s := daemonFor(t, func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{}, nil }, nil)
	code, id, stderr := runnerd(t, s.Socket, "", "run", "--sandbox", "container/dind", "-d", "--", "true")
	if code != 0 {
		t.Fatal(stderr)
	}
	id = strings.TrimSpace(id)
	for _, c := range []struct {
		args []string
		code int
		want []string // on both outputs together
	}{
		{[]string{"container/dind"}, 0, []string{"Container[DinD[T]], depth 2", "the sandbox's own engine", "container/dind would be run, depth 2"}},
		{[]string{"Container[BuildKit]"}, 0, []string{"container/buildkit would be run"}},
		{[]string{"container/dind/container"}, 3, []string{"refused: denied by policy", "policy.max_depth", "missing: not in this build: the driver of container starts it on the machine only, not in dind: ask for container/dind"}},
		{[]string{"container/dind/container", "--environment", "development"}, 3, []string{"cannot be run", "missing: "}},
		{[]string{"container/container/dind"}, 3, []string{"yes", "ask for container/dind, which is allowed"}},
		{[]string{"container/container/dind", "--environment", "measurement"}, 0, []string{"yes", "container/dind would be run, depth 2"}},
		{[]string{"container/wasm"}, 0, []string{"Container[WASM[T]]", "a boundary of its own", "container/wasm would be run"}},
		{[]string{"container/container/wasm", "--environment", "development"}, 0, []string{"yes", "in which nothing else runs", "container/wasm would be run, depth 2"}},
		{[]string{"container/dind/wasm", "--environment", "development"}, 0, []string{"container/dind/wasm would be run"}},
		{[]string{"wasm", "--environment", "measurement"}, 3, []string{"refused", "on container or dind only, not in the machine"}},
		{[]string{"--job", id}, 0, []string{"container/dind would be run"}},
		{[]string{"--job", "nothing"}, 1, []string{"nothing"}},
		{[]string{"vm"}, 2, []string{"use one of"}},
		{[]string{"container", "--environment", "staging"}, 2, []string{"production development edge measurement"}},
		{[]string{"container", "--job", id}, 2, []string{"either a nesting"}},
		{nil, 2, []string{"either a nesting"}},
	} {
		code, stdout, stderr := runnerd(t, s.Socket, "", append([]string{"nesting", "explain"}, c.args...)...)
		expect(t, strings.Join(c.args, " "), code, c.code, stdout+stderr, c.want...)
	}

	code, stdout, _ := runnerd(t, s.Socket, "", "nesting", "explain", "--json", "container/dind/container")
	var e sandbox.Explanation
	if err := json.Unmarshal([]byte(stdout), &e); err != nil || code != 3 || e.Depth != 3 || len(e.Levels) != 3 || e.Refused == "" || len(e.Missing) != 1 {
		t.Errorf("exit code %d, %v: %s", code, err, stdout)
	}
	// Explaining needs no daemon.
	if code, _, stderr := runnerd(t, filepath.Join(t.TempDir(), "none"), "", "nesting", "explain", "container"); code != 0 {
		t.Error(stderr)
	}
	_, stdout, _ = runnerd(t, s.Socket, "", "__complete", "nesting", "explain", "--environment", "")
	if lines := strings.Split(stdout, "\n"); !slices.Equal(lines[:4], []string{"production", "development", "edge", "measurement"}) {
		t.Errorf("completion: %q", stdout)
	}
}

// TestStartsIsTrue holds that all that is configured by default can be started.
func TestStartsIsTrue(t *testing.T) {
	for outer, inners := range sandbox.DefaultPolicy().May {
		for _, inner := range inners {
			if err := starts(outer, inner); err != nil {
				t.Error(err)
			}
		}
	}
}

func TestNestingAdvise(t *testing.T) {
	s := daemonFor(t, func(context.Context, sandbox.Process) (sandbox.Exit, error) { return sandbox.Exit{}, nil }, nil)
	if code, _, stderr := runnerd(t, s.Socket, "", "run", "--", "true"); code != 0 {
		t.Fatal(stderr)
	}
	if code, stdout, stderr := runnerd(t, s.Socket, "", "nesting", "advise"); code != 0 || !strings.HasPrefix(stdout, "1 jobs since ") || !strings.Contains(stdout, "Too little to go by: of 0 jobs") {
		t.Errorf("%d: %s%s", code, stdout, stderr)
	}
	code, stdout, stderr := runnerd(t, s.Socket, "", "nesting", "advise", "--since", "1h", "--project", "none", "--json")
	var report advise.Report
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || code != 0 || report.Jobs != 0 || report.Advice == nil || report.Verdict == "" {
		t.Errorf("%d: %v: %s%s", code, err, stdout, stderr)
	}
	for _, args := range [][]string{{"--since", "-1h"}, {"--since", "soon"}, {"more"}} {
		if code, _, _ := runnerd(t, s.Socket, "", append([]string{"nesting", "advise"}, args...)...); code != 2 {
			t.Errorf("%q: exit code %d", args, code)
		}
	}
}
