package buildkit_test

import (
	"os"
	"testing"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/planfile"
)

// TestMain gives the tests of this package what stands on it.
func TestMain(m *testing.M) {
	buildkit.ReadPlan = planfile.Read
	os.Exit(m.Run())
}
