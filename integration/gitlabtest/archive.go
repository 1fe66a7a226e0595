package gitlabtest

import (
	"archive/zip"
	"bufio"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// checkFile reads an artifact as GitLab would, and returns the variables of a dotenv report.
func checkFile(path string, in uploadRequest) ([]spec.Variable, error) {
	switch in.format {
	case "zip":
		return nil, checkZip(path)
	case "gzip":
		return checkGzip(path, in.typ)
	}
	return nil, nil
}

func checkZip(path string) error {
	z, err := zip.OpenReader(path)
	if err != nil {
		return err
	}
	defer func() { _ = z.Close() }()
	for _, f := range z.File {
		if strings.HasPrefix(f.Name, "/") || strings.Contains("/"+f.Name+"/", "/../") {
			return fmt.Errorf("the name %q leads out of the archive", f.Name)
		}
		r, err := f.Open()
		if err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
		_, err = io.Copy(io.Discard, r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("%s: %w", f.Name, err)
		}
	}
	return nil
}

func checkGzip(path, typ string) ([]spec.Variable, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	z, err := gzip.NewReader(bufio.NewReader(f))
	if err != nil {
		return nil, err
	}
	if typ != "dotenv" {
		_, err = io.Copy(io.Discard, z)
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(z, maxDotenv+1))
	if err != nil {
		return nil, err
	}
	return dotenv(text)
}

var dotenvKey = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// dotenv reads a report's variables (GitLab, Ci::ParseDotenvArtifactService).
func dotenv(text []byte) ([]spec.Variable, error) {
	if len(text) > maxDotenv {
		return nil, fmt.Errorf("dotenv artifact is larger than %d bytes", maxDotenv)
	}
	var out []spec.Variable
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if key = strings.TrimSpace(key); !ok || !dotenvKey.MatchString(key) {
			return nil, fmt.Errorf("dotenv: the line %q is no KEY=VALUE", line)
		}
		value = strings.TrimSpace(value)
		for _, quote := range []string{`"`, `'`} {
			if len(value) >= 2 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
				value = value[1 : len(value)-1]
				break
			}
		}
		out = append(out, spec.Variable{Key: key, Value: value})
	}
	if len(out) > maxDotenvVariables {
		return nil, fmt.Errorf("dotenv artifact has more than %d variables", maxDotenvVariables)
	}
	return out, nil
}
