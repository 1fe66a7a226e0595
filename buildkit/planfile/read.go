// Package planfile reads bake files, compose files and Dockerfiles into the plan of a build. It stands on docker buildx,
// which is as large as all else, and runs in a process of its own.
package planfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/buildkit"
)

const maxFile = 1 << 20 // bytes of a bake file, a Dockerfile or a .env file that are read

// Read reads a plan from bake files, or from a Dockerfile as its one target "default". Every error of the
// input is found here, before anything is started: what is missing, what does not parse and where, what
// lies outside the directory, what is not allowed.
func Read(ctx context.Context, in buildkit.Input) (buildkit.Plan, error) {
	root, err := os.OpenRoot(in.Dir)
	if err != nil {
		return buildkit.Plan{}, fmt.Errorf("build context: %w", err)
	}
	defer root.Close()
	files := in.Files
	if len(files) == 0 {
		for _, name := range bakeFiles {
			if _, err := root.Stat(name); err == nil {
				files = append(files, name)
			}
		}
	}
	var plan buildkit.Plan
	if len(files) == 0 || len(files) == 1 && isDockerfile(files[0]) {
		plan, err = readDockerfile(files, in.Targets)
	} else {
		plan, err = readBake(ctx, root, files, in)
	}
	if err != nil {
		return buildkit.Plan{}, err
	}
	for _, name := range plan.Build {
		t := plan.Targets[name]
		for key, value := range in.Args {
			t.Args = withAttr(t.Args, key, value)
		}
		plan.Targets[name] = t
	}
	return plan, check(plan, root, in.Frontends)
}

// readDockerfile makes a plan of one Dockerfile; targets name a stage of it.
func readDockerfile(files, targets []string) (buildkit.Plan, error) {
	target := buildkit.Target{Context: ".", Dockerfile: "Dockerfile"}
	if len(files) == 1 {
		target.Dockerfile = files[0]
	}
	if len(targets) > 1 {
		return buildkit.Plan{}, fmt.Errorf("%s has stages, of which one can be built: %d were named", target.Dockerfile, len(targets))
	} else if len(targets) == 1 && targets[0] != "default" {
		target.Stage = targets[0]
	}
	return buildkit.Plan{Targets: map[string]buildkit.Target{"default": target}, Build: []string{"default"}}, nil
}

// isDockerfile tells a Dockerfile from a bake file by its name, as buildx tells HCL from JSON and compose.
func isDockerfile(name string) bool {
	ext := filepath.Ext(name)
	return ext != ".hcl" && ext != ".json" && ext != ".yaml" && ext != ".yml"
}

// check validates the plan's paths and Dockerfiles.
func check(p buildkit.Plan, root *os.Root, frontends []string) error {
	if len(p.Build) == 0 {
		return errors.New("nothing to build: name a target, or define a group or target \"default\"")
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(p.Targets)) {
		t := p.Targets[name]
		if err := checkTarget(p, root, &t, frontends); err != nil {
			errs = append(errs, fmt.Errorf("target %s: %w", name, err))
		}
		p.Targets[name] = t
	}
	return errors.Join(errs...)
}

func checkTarget(p buildkit.Plan, root *os.Root, t *buildkit.Target, frontends []string) (err error) {
	if err := t.Allowed(); err != nil {
		return err
	}
	if err := checkDir(root, t.Context); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(t.Contexts)) {
		context := t.Contexts[name]
		if linked, ok := strings.CutPrefix(context, "target:"); ok {
			if _, ok := p.Targets[linked]; !ok {
				return fmt.Errorf("context %s: no target %q", name, linked)
			}
			continue
		}
		if strings.HasPrefix(context, "docker-image://") {
			continue
		}
		if err := checkDir(root, context); err != nil {
			return fmt.Errorf("context %s: %w", name, err)
		}
	}
	text, where := []byte(t.DockerfileInline), "dockerfile-inline"
	if t.DockerfileInline == "" {
		if filepath.IsAbs(t.Dockerfile) {
			return fmt.Errorf("%s: name a Dockerfile relative to its context", t.Dockerfile)
		}
		where = filepath.Join(t.Context, t.Dockerfile)
		if text, err = readLimited(root, where); err != nil {
			return err
		}
	}
	t.Images, err = checkDockerfile(where, text, t.Stage, t.Args, frontends)
	t.Images = slices.DeleteFunc(t.Images, func(image string) bool { return t.Contexts[image] != "" })
	return err
}

// checkDir says whether a context is a directory in the root.
func checkDir(root *os.Root, dir string) error {
	if strings.Contains(dir, "://") || strings.HasPrefix(dir, "git@") {
		return fmt.Errorf("context %s: remote contexts are not supported: check it out first", dir)
	}
	info, err := root.Stat(filepath.Clean(dir))
	if err != nil {
		if !filepath.IsLocal(dir) || strings.Contains(err.Error(), "escapes") { // os.Root has no error to compare with
			return fmt.Errorf("context %s is outside %s: run from a directory that holds both", dir, root.Name())
		}
		return fmt.Errorf("context %s: %w", dir, buildkit.Pathless(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("context %s: not a directory", dir)
	}
	return nil
}

// readLimited reads a regular file of at most maxFile bytes in the root.
func readLimited(root *os.Root, name string) ([]byte, error) {
	info, err := root.Stat(filepath.Clean(name)) // first: to open a FIFO would wait for its writer
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s does not exist: name another with -f", name)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, buildkit.Pathless(err))
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a file", name)
	}
	file, err := root.Open(filepath.Clean(name))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, buildkit.Pathless(err))
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, buildkit.Pathless(err))
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: at most %d are read", name, info.Size(), maxFile)
	}
	return text, nil
}
