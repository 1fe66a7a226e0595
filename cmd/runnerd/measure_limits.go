package main

import (
	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// kernelLimits puts what the kernel allows beside what runnerd says before it comes to that.
func kernelLimits(l probe.Limits) []measure.Limit {
	return []measure.Limit{
		{Name: "overlays on one another", Found: l.Overlays, Kernel: l.OverlayError, Says: container.ErrOverlays.Error()},
		{Name: "upper layers on an overlay", Found: upperLayers(l), Kernel: l.UpperError, Says: container.ErrOverlays.Error()},
		{Name: "layers of an image", Found: l.Layers, Kernel: l.LayerError, Says: container.TooManyLayers(container.MaxLayers + 1).Error()},
		{Name: "user namespaces in one another", Found: l.Namespaces, Kernel: l.NamespaceError, Says: tooDeep()},
	}
}

func upperLayers(l probe.Limits) int {
	if l.UpperError != "" {
		return 0
	}
	return 1
}

// tooDeep is what is said of the first nesting that is too deep to be read: each container is a user namespace at the most.
func tooDeep() string {
	for n := (sandbox.Nesting{sandbox.Container}); ; n = sandbox.Embed(sandbox.Container, n) {
		if _, err := sandbox.ParseNesting(n.String()); err != nil {
			return err.Error()
		}
	}
}
