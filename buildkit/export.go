package buildkit

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session/filesync"
)

// outputTypes are the outputs a target may have. "cacheonly" builds and keeps nothing but the cache.
var outputTypes = []string{"registry", "image", client.ExporterOCI, client.ExporterDocker, client.ExporterTar, client.ExporterLocal, "cacheonly"}

// exports turns the target's outputs, and Push, into BuildKit's. It returns what will be written.
func (b Build) exports(opt *client.SolveOpt, target Target) (written []*Output, err error) {
	annotations, err := Annotations(target.Annotations)
	if err != nil {
		return nil, err
	}
	outputs := slices.Clone(target.Outputs)
	if b.Push {
		outputs = append(outputs, Option{Type: "registry"})
	} else if len(outputs) == 0 {
		outputs = append(outputs, Option{Type: "image"}) // kept in the worker, for its digest
	}
	for i, output := range outputs {
		attrs := maps.Clone(output.Attrs)
		if attrs == nil {
			attrs = map[string]string{}
		}
		dest := attrs["dest"]
		delete(attrs, "dest")
		if output.Type != client.ExporterLocal && output.Type != client.ExporterTar {
			if attrs["name"] == "" && len(target.Tags) > 0 {
				attrs["name"] = strings.Join(target.Tags, ",")
			}
			maps.Copy(attrs, annotations)
		}
		switch output.Type {
		case "registry", "image":
			if output.Type == "registry" {
				attrs["push"] = "true"
			}
			if attrs["push"] == "true" && attrs["name"] == "" {
				return nil, errors.New("nothing to push: give the target a tag (-t, or tags in the bake file)")
			}
			if attrs["push"] == "true" && b.insecure(attrs["name"]) {
				attrs["registry.insecure"] = "true"
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: client.ExporterImage, Attrs: attrs})
		case client.ExporterOCI, client.ExporterDocker, client.ExporterTar, client.ExporterLocal:
			if b.Create == nil {
				return nil, errors.New("this build has nowhere to write files to: push it instead")
			}
			o := &Output{Name: fmt.Sprintf("%s-%d.%s.tar", b.Target, i, output.Type), Type: output.Type, Dest: dest}
			kind := output.Type
			if kind == client.ExporterLocal {
				kind = client.ExporterTar
			}
			opt.Exports = append(opt.Exports, client.ExportEntry{Type: kind, Attrs: attrs, Output: b.file(o)})
			written = append(written, o)
		}
	}
	return written, nil
}

// Annotations reads what docker buildx takes as annotations, "[TYPE[PLATFORM],…:]KEY=VALUE", into attributes of
// BuildKit's exporters.
func Annotations(texts []string) (map[string]string, error) {
	attrs := map[string]string{}
	for _, text := range texts {
		if text == "" { // as an empty variable leaves it
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("annotation %q: write KEY=VALUE", text)
		}
		types, name, typed := strings.Cut(key, ":")
		if !typed {
			attrs[exptypes.AnnotationKey{Key: key}.String()] = value
			continue
		}
		for kind := range strings.SplitSeq(types, ",") {
			parsed, ok, err := exptypes.ParseAnnotationKey("annotation-" + kind + "." + name)
			if err != nil {
				return nil, fmt.Errorf("annotation %q: %w", text, err)
			} else if !ok {
				return nil, fmt.Errorf("annotation %q: write a type, a platform in square brackets if it is one platform's, and \":\" before KEY=VALUE", text)
			}
			attrs[parsed.String()] = value
		}
	}
	return attrs, nil
}

// insecure tells whether all the hosts of a list of image names are to be spoken to without TLS. A worker's
// own configuration names runnerd's registry too, so a mixed list works without.
func (b Build) insecure(names string) bool {
	if b.Insecure == nil {
		return false
	}
	for name := range strings.SplitSeq(names, ",") {
		if host, _, _ := strings.Cut(name, "/"); !b.Insecure(host) {
			return false
		}
	}
	return names != ""
}

// cacheOption is a cache with what its registry needs.
func (b Build) cacheOption(c Option) Option {
	if c.Type == "registry" && b.insecure(c.Attrs["ref"]) {
		c.Attrs = maps.Clone(c.Attrs)
		c.Attrs["registry.insecure"] = "true"
	}
	return c
}

// file makes an output's file when BuildKit has something to write, and counts its bytes.
func (b Build) file(o *Output) filesync.FileOutputFunc {
	return func(map[string]string) (io.WriteCloser, error) {
		w, err := b.Create(o.Name)
		if err != nil {
			return nil, fmt.Errorf("output %s: %w", o.Name, err)
		}
		return counted{w, o}, nil
	}
}

type counted struct {
	io.WriteCloser
	o *Output
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.WriteCloser.Write(p)
	c.o.Size += int64(n)
	return n, err
}
