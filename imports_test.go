package runnerd

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/runnerd/runnerd/"

// TestImports holds the direction of imports that ARCHITECTURE.md gives.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", "./...").Output()
	if err != nil {
		t.Fatal(err)
	}
	may := map[string][]string{ // by the first element of the path
		"scope":    {},
		"archive":  {},
		"budget":   {"budget"},
		"ledger":   {"ledger", "scope"},
		"sandbox":  {"sandbox"},
		"runner":   {"runner", "sandbox", "scope", "budget", "ledger"}, // the last two only its API
		"buildkit": {"buildkit", "sandbox", "scope", "budget"},
		"measure":  {"measure", "sandbox"},
		"registry": {"registry", "scope", "budget"},
		"cache":    {"cache", "scope", "budget"},
	}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		from, _, _ := strings.Cut(strings.TrimPrefix(fields[0], module), "/")
		allowed, restricted := may[from]
		if !restricted {
			continue
		}
		for _, imported := range fields[1:] {
			path, ours := strings.CutPrefix(imported, module)
			if !ours {
				continue
			}
			to, _, _ := strings.Cut(path, "/")
			ok := false
			for _, a := range allowed {
				ok = ok || a == to
			}
			if !ok {
				t.Errorf("%s may not import %s", fields[0], imported)
			}
		}
	}
}

// TestSmall holds that the daemon and the command line are without what reads build files, which is as large as all else, and
// without what runs modules, which are strangers' code.
func TestSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "./cmd/runnerd").Output()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "github.com/docker/buildx/") || strings.HasPrefix(line, module+"buildkit/planfile") || strings.Contains(line, "/wazero") {
			t.Errorf("cmd/runnerd imports %s", line)
		}
	}
}
