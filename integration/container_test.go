//go:build integration

package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/sandboxtest"
)

func TestContainer(t *testing.T) {
	sandboxtest.Run(t, func(ctx context.Context, id string) (sandbox.Sandbox, error) {
		return host.container.Start(ctx, nil, sandbox.Spec{ID: id, Image: debian})
	}, host.leftovers)
}

// TestStateDisk holds that what lies on a state disk outlives its sandbox, but not a crash of the machine, after
// which it may be torn.
func TestStateDisk(t *testing.T) {
	const name = "it-state"
	file := filepath.Join(host.dir, "state/disks/state", name+".ext4")
	t.Cleanup(func() {
		for _, f := range []string{file, file + ".boot", strings.TrimSuffix(file, ".ext4") + ".uid"} {
			if err := os.Remove(f); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Error(err)
			}
		}
	})
	output := func(script string) string {
		t.Helper()
		spec := sandbox.Spec{ID: "it-state", State: name, Image: debian, Volumes: map[string]string{"kept": "/kept"}}
		sb, err := host.container.Start(t.Context(), nil, spec)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file + ".boot"); err != nil {
			t.Error("a mounted state disk has no mark: ", err)
		}
		var out strings.Builder
		if exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", script}, Stdout: &out}); err != nil || !exit.Success() {
			t.Fatal(exit, err)
		}
		if err := sb.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(file + ".boot"); err == nil {
			t.Error("the mark outlives the mount")
		}
		return strings.TrimSpace(out.String())
	}
	output("echo something >/kept/file")
	if got := output("cat /kept/file"); got != "something" {
		t.Errorf("after a clean end it holds %q", got)
	}
	if err := os.WriteFile(file+".boot", []byte("an earlier boot\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := output("ls /kept"); got != "" {
		t.Errorf("after a crash of the machine it holds %q", got)
	}
}
