package api

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// TestHold holds that a workspace is kept as long as anybody holds it, and that a daemon that stops does not wait.
func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ws := &Workspaces{}
		if err := ws.holds.wait(t.Context(), "free"); err != nil {
			t.Error(err)
		}
		one, two := ws.Hold("w"), ws.Hold("w")
		free := make(chan error, 1)
		go func() { free <- ws.holds.wait(t.Context(), "w") }()
		one()
		one()
		synctest.Wait()
		if len(free) > 0 {
			t.Error("it is free, and is held")
		}
		two()
		if err := <-free; err != nil {
			t.Error(err)
		}
		release := ws.Hold("w")
		defer release()
		stopped := errors.New("stopped")
		ctx, stop := context.WithTimeoutCause(t.Context(), time.Second, stopped)
		defer stop()
		if err := ws.holds.wait(ctx, "w"); !errors.Is(err, stopped) {
			t.Error(err)
		}
	})
}
