package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Annotations of an image in the layout's index: its name (OCI image-spec, annotations.md) and the digest
// of what it was made from.
const (
	refAnnotation    = "org.opencontainers.image.ref.name"
	inputsAnnotation = "dev.runnerd.image.inputs"
)

// order is one image to make.
type order struct {
	layout, ref, inputs string
	recipe              recipe
	upper               string
	contexts            map[string]string
	env                 []string
	time                time.Time
}

func (o *order) build() (v1.Hash, error) {
	p, err := openLayout(o.layout)
	if err != nil {
		return v1.Hash{}, err
	}
	img, err := o.base(p)
	if err != nil {
		return v1.Hash{}, err
	}
	what := "ADD rootfs.tar /"
	if len(o.recipe.runs) > 0 {
		what = "RUN " + strings.Join(o.recipe.runs, " && ")
	}
	img, err = o.layer(img, what, func(w *layerWriter) error { return w.addTree(o.upper, "/", nil, true) })
	if err != nil {
		return v1.Hash{}, err
	}
	for _, c := range o.recipe.copies {
		img, err = o.layer(img, c.text, func(w *layerWriter) error { return o.copy(w, c) })
		if err != nil {
			return v1.Hash{}, fmt.Errorf("%s: %w", c.text, err)
		}
	}
	if img, err = o.configure(img); err != nil {
		return v1.Hash{}, err
	}
	digest, err := img.Digest()
	if err != nil {
		return digest, err
	}
	return digest, p.ReplaceImage(img, match.Name(o.ref), layout.WithAnnotations(map[string]string{
		refAnnotation: o.ref, inputsAnnotation: o.inputs,
	}), layout.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH}))
}

// base is the image FROM names, from the same layout.
func (o *order) base(p layout.Path) (v1.Image, error) {
	if o.recipe.from != "" {
		return find(p, o.recipe.from)
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	c, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	return mutate.ConfigFile(img, c)
}

// layer appends what fill writes.
func (o *order) layer(img v1.Image, createdBy string, fill func(*layerWriter) error) (v1.Image, error) {
	blobs := filepath.Join(o.layout, "blobs", "sha256")
	w, err := newLayer(o.layout, o.time)
	if err != nil {
		return nil, err
	}
	if err := fill(w); err != nil {
		return nil, errors.Join(err, w.abort())
	}
	l, err := w.finish(blobs)
	if err != nil {
		return nil, err
	}
	return mutate.Append(img, mutate.Addendum{
		Layer:   l,
		History: v1.History{Created: v1.Time{Time: o.time}, CreatedBy: createdBy},
	})
}

func (o *order) copy(w *layerWriter, c copyLine) error {
	dir, ok := o.contexts[c.context]
	if !ok {
		return fmt.Errorf("no -context %s=DIR given", c.context)
	}
	for _, source := range c.sources {
		file, err := filepath.EvalSymlinks(filepath.Join(dir, source))
		if err != nil {
			return err
		}
		info, err := os.Stat(file)
		if err != nil {
			return err
		}
		if info.IsDir() {
			err = w.addTree(file, c.dest, c.exclude, false)
		} else if err = w.parents(c.dest); err == nil {
			err = w.add(file, path.Join(c.dest, path.Base(source)), false)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// configure sets what the Dockerfile says about running the image; a later ENV wins.
func (o *order) configure(img v1.Image) (v1.Image, error) {
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Created = v1.Time{Time: o.time}
	c := &file.Config
	for _, kv := range append(o.recipe.env, o.env...) {
		key, _, _ := strings.Cut(kv, "=")
		for i, have := range c.Env {
			if strings.HasPrefix(have, key+"=") {
				c.Env = append(c.Env[:i:i], c.Env[i+1:]...)
				break
			}
		}
		c.Env = append(c.Env, kv)
	}
	if o.recipe.workdir != "" {
		c.WorkingDir = o.recipe.workdir
	}
	if o.recipe.cmd != nil {
		c.Cmd = o.recipe.cmd
	}
	if o.recipe.entrypoint != nil {
		c.Entrypoint = o.recipe.entrypoint
	}
	return mutate.ConfigFile(img, file)
}
