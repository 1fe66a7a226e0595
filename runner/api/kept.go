package api

import (
	"fmt"
	"strings"
)

// complete names artifacts that have no name, and reports what cannot be.
func (k *Kept) complete() error {
	for i, c := range k.Caches {
		if err := checkPaths(c.Paths); err != nil {
			return fmt.Errorf("caches[%d]: %w", i, err)
		}
	}
	names := map[string]bool{}
	for i := range k.Artifacts {
		a := &k.Artifacts[i]
		if a.Name == "" {
			a.Name = "artifacts.tar"
			if i > 0 {
				a.Name = fmt.Sprintf("artifacts-%d.tar", i+1)
			}
		}
		switch plain := strings.Trim(a.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""; {
		case !plain || a.Name[0] == '.':
			return fmt.Errorf("artifacts[%d]: %q is not a name: letters, digits and ._- are allowed, and . not first", i, a.Name)
		case names[a.Name]:
			return fmt.Errorf("artifacts[%d]: another is called %q", i, a.Name)
		case a.Keep < 0:
			return fmt.Errorf("artifacts[%d]: keep must not be negative", i)
		}
		names[a.Name] = true
		if err := checkPaths(a.Paths); err != nil {
			return fmt.Errorf("artifacts[%d]: %w", i, err)
		}
	}
	return nil
}

func checkPaths(paths []string) error {
	if len(paths) == 0 {
		return fmt.Errorf("no path is given")
	}
	for _, p := range paths {
		if p == "" || len(p) > 4096 || strings.ContainsRune(p, 0) {
			return fmt.Errorf("%q is not a path", clip(p, 100))
		}
	}
	return nil
}
