package ciyaml

import (
	"fmt"
	"strings"

	"github.com/agnivade/levenshtein"
)

// suggest says which of the names was probably meant; empty: none is near.
func suggest(name string, names []string) string {
	best, least := "", 2
	switch {
	case len(name) < 3:
		return ""
	case len(name) < 5:
		least = 1
	}
	for _, n := range names[:min(len(names), 1000)] {
		if len(n)-len(name) > 2 || len(name)-len(n) > 2 {
			continue
		}
		if d := levenshtein.ComputeDistance(strings.ToLower(name), strings.ToLower(n)); d <= least && d > 0 {
			best, least = n, d-1
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": do you mean %q?", best)
}
