package engine

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/mod/semver"
)

func TestTableIsWellFormed(t *testing.T) {
	if _, err := time.Parse(time.DateOnly, AdvisoriesDate); err != nil {
		t.Error(err)
	}
	for _, a := range advisories() {
		if a.engine == "" || a.id == "" || a.what == "" || len(a.fixed) == 0 {
			t.Errorf("incomplete: %+v", a)
		}
		if a.since != "" && !semver.IsValid(a.since) {
			t.Errorf("%s: since %s", a.id, a.since)
		}
		branches := make(map[string]bool)
		for _, f := range a.fixed {
			if !semver.IsValid(f) || branches[semver.MajorMinor(f)] {
				t.Errorf("%s: fixed in %s, which is no version or the second of its branch", a.id, f)
			}
			branches[semver.MajorMinor(f)] = true
		}
		if !slices.IsSortedFunc(a.fixed, semver.Compare) {
			t.Errorf("%s: %v is not in order", a.id, a.fixed)
		}
	}
}
