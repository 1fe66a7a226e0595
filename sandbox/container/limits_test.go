package container

import (
	"context"
	"strings"
	"testing"

	containerdimages "github.com/containerd/containerd/v2/core/images"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestFewLayers holds that an image of too many layers is refused before one of them is downloaded.
func TestFewLayers(t *testing.T) {
	for layers, refused := range map[int]bool{MaxLayers: false, MaxLayers + 1: true} {
		manifest := containerdimages.HandlerFunc(func(context.Context, ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			children := []ocispec.Descriptor{{MediaType: ocispec.MediaTypeImageConfig}}
			for range layers {
				children = append(children, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayerGzip})
			}
			return children, nil
		})
		children, err := fewLayers(manifest).Handle(t.Context(), ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest})
		if refused != (err != nil) || refused == (len(children) > 0) || refused && !strings.Contains(err.Error(), "128 layers, and engines take 127") {
			t.Errorf("%d layers: %d children, %v", layers, len(children), err)
		}
	}
}
