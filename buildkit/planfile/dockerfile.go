package planfile

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// checkDockerfile parses a Dockerfile, so that its errors are known with their lines before anything is
// started, and refuses what no worker grants: foreign frontends and entitlements.
// "# syntax=docker/dockerfile…" is what the built-in frontend speaks, so it serves it. It returns the images
// that the Dockerfile names, given its arguments.
func checkDockerfile(name string, text []byte, stage string, args map[string]string, frontends []string) (images []string, err error) {
	if ref, _, where, ok := parser.DetectSyntax(text); ok {
		image, _, _ := strings.Cut(ref, "@")
		if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
			image = image[:i]
		}
		if image != "docker/dockerfile" && image != "docker.io/docker/dockerfile" && !slices.Contains(frontends, image) {
			line := 1
			if len(where) > 0 {
				line = where[0].Start.Line
			}
			return nil, fmt.Errorf("%s:%d: # syntax=%s is denied: only the built-in Dockerfile frontend may run", name, line, ref)
		}
	}
	result, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, located(name, err)
	}
	stages, global, err := instructions.Parse(result.AST, nil)
	if err != nil {
		return nil, located(name, err)
	}
	if len(stages) == 0 {
		return nil, fmt.Errorf("%s: no FROM: a Dockerfile starts with one", name)
	}
	for _, s := range stages {
		for _, command := range s.Commands {
			if run, ok := command.(*instructions.RunCommand); ok {
				if err := checkRun(run); err != nil {
					return nil, fmt.Errorf("%s:%d: %w", name, run.Location()[0].Start.Line, err)
				}
			}
		}
	}
	if _, ok := instructions.HasStage(stages, stage); stage != "" && !ok {
		if n, err := strconv.Atoi(stage); err != nil || n < 0 || n >= len(stages) {
			return nil, fmt.Errorf("%s has no stage %q", name, stage)
		}
	}
	return imagesOf(stages, global, args), nil
}

// imagesOf are the images that stages start from or copy from. An argument that has no value leaves its name
// as it is.
func imagesOf(stages []instructions.Stage, global []instructions.ArgCommand, args map[string]string) (images []string) {
	lex := shell.NewLex('\\')
	env := map[string]string{}
	expand := func(word string) string {
		if text, _, err := lex.ProcessWord(word, variables(env)); err == nil {
			return text
		}
		return word
	}
	for _, command := range global {
		for _, arg := range command.Args {
			if value, ok := args[arg.Key]; ok {
				env[arg.Key] = value
			} else if arg.Value != nil {
				env[arg.Key] = expand(*arg.Value)
			}
		}
	}
	add := func(name string) {
		if _, ok := instructions.HasStage(stages, name); ok || name == "" || name == "scratch" || slices.Contains(images, name) {
			return
		}
		if _, err := strconv.Atoi(name); err != nil { // a stage's number
			images = append(images, name)
		}
	}
	for _, s := range stages {
		add(expand(s.BaseName))
		for _, command := range s.Commands {
			switch c := command.(type) {
			case *instructions.CopyCommand:
				add(c.From)
			case *instructions.RunCommand:
				for _, mount := range instructions.GetMounts(c) {
					add(mount.From)
				}
			}
		}
	}
	return images
}

// variables is a shell.EnvGetter.
type variables map[string]string

func (v variables) Get(name string) (string, bool) { value, ok := v[name]; return value, ok }
func (v variables) Keys() []string                 { return slices.Sorted(maps.Keys(v)) }

// checkRun refuses a RUN that asks for an entitlement.
func checkRun(run *instructions.RunCommand) error {
	switch {
	case instructions.GetSecurity(run) == instructions.SecurityInsecure:
		return errors.New("RUN --security=insecure is denied: a build in runnerd gets no entitlement")
	case instructions.GetNetwork(run) == instructions.NetworkHost:
		return errors.New("RUN --network=host is denied: a build in runnerd gets no entitlement")
	case len(instructions.GetDevices(run)) > 0:
		return errors.New("RUN --device is denied: a build in runnerd gets no entitlement")
	}
	return nil
}

var onLine = regexp.MustCompile(`(?:dockerfile parse error )?on line (\d+):? ?`)

// located is a parser's error with the file and the line in front.
func located(name string, err error) error {
	line, text := 0, err.Error()
	var location *parser.LocationError
	if errors.As(err, &location) && len(location.Locations) > 0 && len(location.Locations[0]) > 0 {
		line = location.Locations[0][0].Start.Line
	}
	if m := onLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = onLine.ReplaceAllString(text, "")
	}
	if line == 0 {
		return fmt.Errorf("%s: %s", name, text)
	}
	return fmt.Errorf("%s:%d: %s", name, line, text)
}
