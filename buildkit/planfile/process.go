package planfile

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/buildkit"
)

// Process limits this process to what reading a plan may use, and answers the buildkit.Input on stdin by a
// buildkit.Outcome. An error is not the input's.
func Process(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_CPU: buildkit.ReadCPU, unix.RLIMIT_DATA: buildkit.ReadMemory, unix.RLIMIT_FSIZE: 0, unix.RLIMIT_CORE: 0,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return fmt.Errorf("limit what reading a plan uses: %w", err)
		}
	}
	var in buildkit.Input
	if err := json.NewDecoder(stdin).Decode(&in); err != nil {
		return err
	}
	var out buildkit.Outcome
	var err error
	if out.Plan, err = Read(ctx, in); err != nil {
		out.Error = err.Error()
	}
	return json.NewEncoder(stdout).Encode(out)
}
