package main

import (
	"slices"

	"github.com/runnerd/runnerd/measure"
	"github.com/runnerd/runnerd/measure/probe"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// kernelLimits puts what the kernel allows beside what runnerd says before it comes to that.
func kernelLimits(l probe.Limits) []measure.Limit {
	deep := slices.Repeat(sandbox.Nesting{sandbox.Container}, l.Namespaces+1)
	_, tooDeep := sandbox.ParseNesting(deep.String())
	return []measure.Limit{
		{Name: "overlays on one another", Found: l.Overlays, Kernel: l.OverlayError, Says: container.ErrOverlays.Error()},
		{Name: "upper layers on an overlay", Found: upperLayers(l), Kernel: l.UpperError, Says: container.ErrOverlays.Error()},
		{Name: "layers of an image", Found: l.Layers, Kernel: l.LayerError, Says: container.TooManyLayers(container.MaxLayers + 1).Error()},
		{Name: "user namespaces in one another", Found: l.Namespaces, Kernel: l.NamespaceError, Says: says(tooDeep)},
	}
}

func upperLayers(l probe.Limits) int {
	if l.UpperError != "" {
		return 0
	}
	return 1
}

func says(err error) string {
	if err == nil {
		return "nothing"
	}
	return err.Error()
}
