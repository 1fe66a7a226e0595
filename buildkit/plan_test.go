package buildkit

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestClosure(t *testing.T) {
	plan := Plan{Targets: map[string]Target{
		"a": {Contexts: map[string]string{"x": "target:b", "y": "dir"}, Secrets: []Secret{{ID: "s"}}},
		"b": {Contexts: map[string]string{"x": "target:c"}, Secrets: []Secret{{ID: "r"}}},
		"c": {},
		"d": {Secrets: []Secret{{ID: "t"}}},
	}}
	part := plan.Closure("a")
	if len(part.Targets) != 3 || part.Targets["d"].Secrets != nil || !reflect.DeepEqual(part.Build, []string{"a"}) {
		t.Errorf("got %+v", part)
	}
	if ids := part.SecretIDs(); !reflect.DeepEqual(ids, []string{"r", "s"}) {
		t.Errorf("secrets %v", ids)
	}
	if err := part.acyclic("a"); err != nil {
		t.Error(err)
	}
	part.Targets["c"] = Target{Contexts: map[string]string{"x": "target:a"}}
	if err := part.acyclic("a"); err == nil || !strings.Contains(err.Error(), "a → b → c → a") {
		t.Errorf("a cycle: %v", err)
	}
}

func writeFile(t testing.TB, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
