package buildkit

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// checkDockerfile parses a Dockerfile, so that its errors are known with their lines before anything is
// started, and refuses what no worker grants: foreign frontends and entitlements.
// "# syntax=docker/dockerfile…" is what the built-in frontend speaks, so it serves it.
func checkDockerfile(name string, text []byte, stage string, frontends []string) error {
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
			return fmt.Errorf("%s:%d: # syntax=%s is denied: only the built-in Dockerfile frontend may run", name, line, ref)
		}
	}
	result, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return located(name, err)
	}
	stages, _, err := instructions.Parse(result.AST, nil)
	if err != nil {
		return located(name, err)
	}
	if len(stages) == 0 {
		return fmt.Errorf("%s: no FROM: a Dockerfile starts with one", name)
	}
	for _, s := range stages {
		for _, command := range s.Commands {
			if run, ok := command.(*instructions.RunCommand); ok {
				if err := checkRun(run); err != nil {
					return fmt.Errorf("%s:%d: %w", name, run.Location()[0].Start.Line, err)
				}
			}
		}
	}
	if _, ok := instructions.HasStage(stages, stage); stage != "" && !ok {
		if n, err := strconv.Atoi(stage); err != nil || n < 0 || n >= len(stages) {
			return fmt.Errorf("%s has no stage %q", name, stage)
		}
	}
	return nil
}

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
