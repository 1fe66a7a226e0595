// Command mkimage writes images into an OCI image layout, the part of deploy/images/build.sh that is
// better said in Go: reading the Dockerfiles, and layers and layouts whose digests depend on content
// alone.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"
)

const usage = `usage:
  mkimage runs DOCKERFILE              print the commands of its RUN lines, one a line
  mkimage current LAYOUT REF INPUTS    succeed if LAYOUT has REF whole, made from INPUTS
  mkimage layers LAYOUT REF            print the files of REF's layers, bottom first
  mkimage build FLAGS                  make an image (mkimage build -h)
  mkimage sweep LAYOUT                 delete the blobs no image of LAYOUT needs
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "mkimage:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "runs":
		r, err := readRecipe(args[1])
		if err != nil {
			return err
		}
		for _, command := range r.runs {
			fmt.Println(command)
		}
		return nil
	case len(args) == 4 && args[0] == "current":
		return current(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "layers":
		files, err := layerFiles(args[1], args[2])
		if err != nil {
			return err
		}
		fmt.Println(strings.Join(files, "\n"))
		return nil
	case len(args) >= 1 && args[0] == "build":
		return build(args[1:])
	case len(args) == 2 && args[0] == "sweep":
		return sweep(args[1])
	}
	return errors.New(usage)
}

func build(args []string) error {
	var (
		b          = order{contexts: make(map[string]string)}
		dockerfile string
		epoch      int64
	)
	f := flag.NewFlagSet("mkimage build", flag.ContinueOnError)
	f.StringVar(&b.layout, "layout", "", "the OCI layout to write to")
	f.StringVar(&b.ref, "ref", "", "the name of the image, such as debian:bookworm-slim")
	f.StringVar(&b.inputs, "inputs", "", "a digest of everything the image is made from")
	f.StringVar(&b.upper, "upper", "", "what the ADD and RUN lines made: a root, or the upper directory of an overlay")
	f.StringVar(&dockerfile, "dockerfile", "", "the Dockerfile")
	f.Int64Var(&epoch, "epoch", 0, "the time of everything in the image, in seconds since 1970")
	f.Func("context", "NAME=DIR: what COPY --from=NAME copies from", func(s string) error {
		name, dir, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want NAME=DIR")
		}
		b.contexts[name] = dir
		return nil
	})
	f.Func("env", "KEY=VALUE: set it in the image, too", func(s string) error {
		b.env = append(b.env, s)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return err
	}
	if b.layout == "" || b.ref == "" || dockerfile == "" || b.upper == "" || f.NArg() > 0 {
		return errors.New("build needs -layout, -ref, -dockerfile and -upper, and nothing else")
	}
	r, err := readRecipe(dockerfile)
	if err != nil {
		return err
	}
	b.recipe, b.time = r, time.Unix(epoch, 0).UTC()
	digest, err := b.build()
	if err != nil {
		return fmt.Errorf("build %s: %w", b.ref, err)
	}
	fmt.Println(digest)
	return nil
}
