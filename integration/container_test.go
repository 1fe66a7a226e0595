//go:build integration

package integration

import (
	"context"
	"testing"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/sandboxtest"
)

func TestContainer(t *testing.T) {
	sandboxtest.Run(t, func(ctx context.Context, id string) (sandbox.Sandbox, error) {
		return host.container.Start(ctx, nil, sandbox.Spec{ID: id, Image: debian})
	}, host.leftovers)
}
