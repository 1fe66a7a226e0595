package planfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"go.yaml.in/yaml/v3"
)

// What of a compose file says how to build. The rest is left out before the file is handed on, since some of
// it (include, extends, env_file, label_file) makes the loader read files wherever they lie on the machine.
var (
	composeServices = []string{"image", "build", "extends", "environment"}
	composeSecrets  = []string{"file", "environment", "name", "external"}
)

func isCompose(name string) bool {
	ext := filepath.Ext(name)
	return ext == ".yaml" || ext == ".yml"
}

// readCompose reduces a compose file to what says how to build. The result is JSON, which every YAML parser
// reads alike, so that nothing is let through which this one did not see.
func readCompose(name string, text []byte) ([]byte, error) {
	var out bytes.Buffer
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var document yaml.Node
		if err := decoder.Decode(&document); errors.Is(err, io.EOF) {
			return out.Bytes(), nil
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := plainTags(&document); err != nil {
			return nil, fmt.Errorf("%s:%w", name, err)
		}
		var whole struct {
			Name     string                    `yaml:"name"`
			Include  yaml.Node                 `yaml:"include"`
			Services map[string]map[string]any `yaml:"services"`
			Secrets  map[string]map[string]any `yaml:"secrets"`
		}
		if err := document.Decode(&whole); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if !whole.Include.IsZero() {
			return nil, fmt.Errorf("%s:%d: include is not supported: name the files with -f", name, whole.Include.Line)
		}
		for service, fields := range whole.Services {
			if extends, ok := fields["extends"].(map[string]any); ok && extends["file"] != nil {
				return nil, fmt.Errorf("%s: service %s extends one of another file: name the files with -f", name, service)
			}
			whole.Services[service] = only(fields, composeServices)
		}
		for secret, fields := range whole.Secrets {
			whole.Secrets[secret] = only(fields, composeSecrets)
		}
		reduced := map[string]any{"services": whole.Services}
		if whole.Name != "" {
			reduced["name"] = whole.Name
		}
		if whole.Secrets != nil {
			reduced["secrets"] = whole.Secrets
		}
		out.WriteString("---\n")
		if err := json.NewEncoder(&out).Encode(reduced); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
}

func only(fields map[string]any, keys []string) map[string]any {
	out := map[string]any{}
	for _, key := range keys {
		if value, ok := fields[key]; ok {
			out[key] = value
		}
	}
	return out
}

// plainTags keeps dates as they are written, and refuses compose's own tags, which JSON has not.
func plainTags(n *yaml.Node) error {
	switch n.ShortTag() {
	case "!reset", "!override":
		return fmt.Errorf("%d: %s is not supported", n.Line, n.Tag)
	case "!!timestamp":
		n.Tag = "!!str"
	}
	for _, child := range n.Content {
		if err := plainTags(child); err != nil {
			return err
		}
	}
	return nil
}

// dotEnv adds the variables of the directory's .env file to those that were given, as docker compose does.
func dotEnv(root *os.Root, vars map[string]string) error {
	if _, err := root.Stat(".env"); err != nil {
		return nil
	}
	text, err := readLimited(root, ".env")
	if err != nil {
		return err
	}
	more, err := dotenv.UnmarshalBytesWithLookup(text, func(k string) (string, bool) {
		v, ok := vars[k]
		return v, ok
	})
	if err != nil {
		return fmt.Errorf(".env: %w", err)
	}
	for k, v := range more {
		if _, given := vars[k]; !given {
			vars[k] = v
		}
	}
	return nil
}
