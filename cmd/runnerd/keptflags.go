package main

import (
	"encoding/csv"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/runnerd/runnerd/runner/api"
)

// parseKept reads the flags --cache and --artifact.
func parseKept(caches, artifacts []string) (k api.Kept, err error) {
	for _, text := range caches {
		var c api.Cache
		err := eachOption(text, func(key, value string) error {
			switch key {
			case "key":
				if c.Key != "" {
					return errors.New("key is given twice: use fallback for another")
				}
				c.Key = value
			case "path":
				c.Paths = append(c.Paths, value)
			case "fallback":
				c.Fallback = append(c.Fallback, value)
			case "policy":
				c.Policy = value
				return oneOf(value, "pull", "push", "pull-push")
			case "when":
				c.When = value
				return oneOf(value, "on_success", "on_failure", "always")
			default:
				return fmt.Errorf("%q is not known: key, path, fallback, policy and when are", key)
			}
			return nil
		})
		if err == nil && (c.Key == "" || len(c.Paths) == 0) {
			err = errors.New("key=K and path=P are needed")
		}
		if err != nil {
			return k, fmt.Errorf("--cache %q: %w", text, err)
		}
		k.Caches = append(k.Caches, c)
	}
	for _, text := range artifacts {
		var a api.Artifact
		err := eachOption(text, func(key, value string) error {
			switch key {
			case "", "path":
				a.Paths = append(a.Paths, value)
			case "name":
				a.Name = value
			case "when":
				a.When = value
				return oneOf(value, "on_success", "on_failure", "always")
			case "keep":
				return a.Keep.UnmarshalText([]byte(value))
			default:
				return fmt.Errorf("%q is not known: path, name, when and keep are", key)
			}
			return nil
		})
		if err == nil && len(a.Paths) == 0 {
			err = errors.New("a path is needed")
		}
		if err != nil {
			return k, fmt.Errorf("--artifact %q: %w", text, err)
		}
		k.Artifacts = append(k.Artifacts, a)
	}
	return k, nil
}

// eachOption calls fn for each key=value of a list with commas, as docker's flags have them. What has no "=" has
// no key.
func eachOption(text string, fn func(key, value string) error) error {
	fields, err := csv.NewReader(strings.NewReader(text)).Read()
	if err != nil {
		return err
	}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			key, value = "", f
		}
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return nil
}

func oneOf(value string, values ...string) error {
	if slices.Contains(values, value) {
		return nil
	}
	return fmt.Errorf("%q is not one of %s", value, strings.Join(values, ", "))
}
