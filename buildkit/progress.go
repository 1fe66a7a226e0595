package buildkit

import (
	"context"
	"io"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
)

// Display shows builds' progress until statuses is closed: mode is "auto", "tty", "plain", "rawjson" or
// "quiet", as of docker buildx.
func Display(ctx context.Context, w io.Writer, mode string, statuses chan *client.SolveStatus) error {
	display, err := progressui.NewDisplay(w, progressui.DisplayMode(mode))
	if err != nil {
		return err
	}
	_, err = display.UpdateFrom(ctx, statuses)
	return err
}
