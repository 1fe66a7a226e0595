package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
)

// openLayout opens the layout in dir, or makes an empty one.
func openLayout(dir string) (layout.Path, error) {
	p, err := layout.FromPath(dir)
	if errors.Is(err, fs.ErrNotExist) {
		p, err = layout.Write(dir, empty.Index)
	}
	if err != nil {
		return "", fmt.Errorf("open the layout %s: %w", dir, err)
	}
	return p, os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755)
}

// descriptor finds the image called ref.
func descriptor(p layout.Path, ref string) (v1.Descriptor, error) {
	index, err := p.ImageIndex()
	if err != nil {
		return v1.Descriptor{}, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	for _, d := range m.Manifests {
		if d.Annotations[refAnnotation] == ref {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("%s has no image %s", p, ref)
}

func find(p layout.Path, ref string) (v1.Image, error) {
	d, err := descriptor(p, ref)
	if err != nil {
		return nil, err
	}
	return p.Image(d.Digest)
}

// layerFiles returns the files of ref's layers, bottom first; it fails when one is missing or has the
// wrong size.
func layerFiles(dir, ref string) ([]string, error) {
	p, err := layout.FromPath(dir)
	if err != nil {
		return nil, err
	}
	img, err := find(p, ref)
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	var files []string
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		file := filepath.Join(dir, "blobs", d.Digest.Algorithm, d.Digest.Hex)
		info, err := os.Stat(file)
		if err != nil {
			return nil, err
		}
		if info.Size() != d.Size {
			return nil, fmt.Errorf("%s has %d bytes, want %d", file, info.Size(), d.Size)
		}
		files = append(files, file)
	}
	return files[1:], nil
}

// current returns nil if dir has ref whole, made from inputs.
func current(dir, ref, inputs string) error {
	p, err := layout.FromPath(dir)
	if err != nil {
		return err
	}
	d, err := descriptor(p, ref)
	if err != nil {
		return err
	}
	if d.Annotations[inputsAnnotation] != inputs {
		return fmt.Errorf("%s was made from other inputs", ref)
	}
	_, err = layerFiles(dir, ref)
	return err
}

// sweep deletes the blobs no image needs and what an interrupted build left.
func sweep(dir string) error {
	p, err := layout.FromPath(dir)
	if err != nil {
		return err
	}
	dead, err := p.GarbageCollect()
	if err != nil {
		return err
	}
	for _, d := range dead {
		if err := p.RemoveBlob(d); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".layer-") {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}
