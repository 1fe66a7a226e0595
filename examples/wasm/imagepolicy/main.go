// Command imagepolicy decides whether an image may be deployed, from its OCI manifest on the standard input and a policy
// in the file that is named, as a WebAssembly module:
//
//	GOOS=wasip1 GOARCH=wasm go build -o imagepolicy.wasm ./examples/wasm/imagepolicy
//	runnerd run --sandbox container/wasm --module-dir /workspace:ro -- /workspace/imagepolicy.wasm /workspace/policy.json <manifest.json
//
// It says what the policy refuses, one line each, and exits with 1 if that is anything.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// policy is what an image is held to. What is not said is not looked at.
type policy struct {
	MaxBytes    int64    `json:"max_bytes"`   // of all layers, compressed
	MaxLayers   int      `json:"max_layers"`  //
	MediaTypes  []string `json:"media_types"` // that layers may have
	Annotations []string `json:"annotations"` // that must be there
}

// manifest is an image's (OCI image-spec, manifest.md).
type manifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	Config        descriptor        `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations"`
}

type descriptor struct {
	MediaType string   `json:"mediaType"`
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	URLs      []string `json:"urls"`
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: imagepolicy POLICY <MANIFEST")
		os.Exit(2)
	}
	refused, err := decide(os.Args[1], os.Stdin)
	if err != nil {
		fmt.Fprintln(os.Stderr, "imagepolicy:", err)
		os.Exit(2)
	}
	for _, why := range refused {
		fmt.Println(why)
	}
	if len(refused) > 0 {
		os.Exit(1)
	}
}

func decide(policyFile string, in io.Reader) ([]string, error) {
	text, err := os.ReadFile(policyFile)
	if err != nil {
		return nil, err
	}
	var p policy
	strict := json.NewDecoder(strings.NewReader(string(text)))
	strict.DisallowUnknownFields() // a typo must not weaken it
	if err := strict.Decode(&p); err != nil {
		return nil, fmt.Errorf("read the policy: %w", err)
	}
	var m manifest
	if err := json.NewDecoder(io.LimitReader(in, 4<<20)).Decode(&m); err != nil {
		return nil, fmt.Errorf("read the manifest: %w", err)
	}
	if m.SchemaVersion != 2 {
		return nil, fmt.Errorf("a manifest of version %d: only 2 is known", m.SchemaVersion)
	}
	return p.refuse(m), nil
}

// refuse says what of an image the policy does not allow.
func (p policy) refuse(m manifest) (why []string) {
	total := int64(0)
	for _, l := range append([]descriptor{m.Config}, m.Layers...) {
		total += l.Size
		if !strings.HasPrefix(l.Digest, "sha256:") && !strings.HasPrefix(l.Digest, "sha512:") {
			why = append(why, fmt.Sprintf("%q is no digest that can be verified", l.Digest))
		}
		if len(l.URLs) > 0 {
			why = append(why, fmt.Sprintf("%s comes from elsewhere: %s", l.Digest, strings.Join(l.URLs, ", ")))
		}
	}
	for _, l := range m.Layers {
		if len(p.MediaTypes) > 0 && !slices.Contains(p.MediaTypes, l.MediaType) {
			why = append(why, fmt.Sprintf("layers of the type %s are not allowed", l.MediaType))
		}
	}
	if p.MaxBytes > 0 && total > p.MaxBytes {
		why = append(why, fmt.Sprintf("%d bytes are more than %d", total, p.MaxBytes))
	}
	if p.MaxLayers > 0 && len(m.Layers) > p.MaxLayers {
		why = append(why, fmt.Sprintf("%d layers are more than %d", len(m.Layers), p.MaxLayers))
	}
	for _, a := range p.Annotations {
		if m.Annotations[a] == "" {
			why = append(why, "the annotation "+a+" is missing")
		}
	}
	return why
}
