package container

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/runnerd/runnerd/sandbox"
)

// wasmTypes are the media types of layers that are WebAssembly: what the CNCF's artifact guidance, ORAS and older tools
// make of a module.
var wasmTypes = []string{
	"application/wasm", "application/vnd.wasm.content.layer.v1+wasm", "application/vnd.module.wasm.content.layer.v1+wasm",
}

// maxManifest is the largest manifest of an artifact that is read, in bytes; as distribution has it.
const maxManifest = 4 << 20

// Artifact finds the one WebAssembly layer of an artifact, for one who asks, as images are found. open reads it; what is
// read is not verified. The errors are as of Start for an image.
func (d *Driver) Artifact(ctx context.Context, ref string, how sandbox.Pull) (_ digest.Digest, open func(context.Context) (io.ReadCloser, error), err error) {
	f, err := d.images.find(ctx, ref, how)
	if err != nil {
		return "", nil, &imageError{ref, err}
	}
	layer, fetcher, err := f.wasmLayer(ctx)
	if err != nil {
		return "", nil, &imageError{ref, err}
	}
	return layer.Digest, func(ctx context.Context) (io.ReadCloser, error) { return fetcher.Fetch(ctx, layer) }, nil
}

// wasmLayer reads the manifest.
func (f found) wasmLayer(ctx context.Context) (layer ocispec.Descriptor, _ remotes.Fetcher, err error) {
	_, at, err := f.resolver.Resolve(ctx, f.name)
	if err != nil {
		return layer, nil, fmt.Errorf("resolve: %w", err)
	}
	fetcher, err := f.resolver.Fetcher(ctx, f.name)
	if err != nil {
		return layer, nil, err
	}
	if at.Size > maxManifest {
		return layer, nil, fmt.Errorf("its manifest has %d bytes: at most %d are read", at.Size, maxManifest)
	}
	body, err := fetcher.Fetch(ctx, at)
	if err != nil {
		return layer, nil, fmt.Errorf("get the manifest: %w", err)
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	if err != nil {
		return layer, nil, fmt.Errorf("read the manifest: %w", err)
	}
	if len(text) > maxManifest || digest.FromBytes(text) != at.Digest {
		return layer, nil, fmt.Errorf("its manifest is another one than the registry says")
	}
	var manifest ocispec.Manifest
	if err := json.Unmarshal(text, &manifest); err != nil {
		return layer, nil, fmt.Errorf("%w as a module: read the manifest: %w", sandbox.ErrUnknownImage, err)
	}
	modules := slices.DeleteFunc(manifest.Layers, func(d ocispec.Descriptor) bool { return !slices.Contains(wasmTypes, d.MediaType) })
	if len(modules) != 1 || modules[0].Digest.Validate() != nil || modules[0].Digest.Algorithm() != digest.SHA256 {
		return layer, nil, fmt.Errorf("%w as a module: of its layers %d are WebAssembly (%s), not one", sandbox.ErrUnknownImage, len(modules), strings.Join(wasmTypes, ", "))
	}
	return modules[0], fetcher, nil
}
