package engine

import (
	"slices"
	"strings"
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
		if (a.engine == "dockerd") != (len(a.docker) > 0) {
			t.Errorf("%s: Docker's releases are for dockerd: %v", a.id, a.docker)
		}
		for _, fixed := range [][]string{a.fixed, a.docker} {
			branches := make(map[string]bool)
			for _, f := range fixed {
				if !semver.IsValid(f) || branches[semver.MajorMinor(f)] {
					t.Errorf("%s: fixed in %s, which is no version or the second of its branch", a.id, f)
				}
				branches[semver.MajorMinor(f)] = true
			}
			if !slices.IsSortedFunc(fixed, semver.Compare) {
				t.Errorf("%s: %v is not in order", a.id, fixed)
			}
		}
	}
}

// TestTable judges versions as they come: of Go modules, of Docker's releases, of old and new branches.
func TestTable(t *testing.T) {
	for _, c := range []struct {
		engine, version string
		known           string // part of what is known against it; empty: nothing
	}{
		{"dockerd", "v2.0.0-beta.24", ""},
		{"dockerd", "v2.0.0", ""},
		{"dockerd", "v2.0.0-beta.7", "CVE-2026-34040"},
		{"dockerd", "v2.0.0-beta.13", "CVE-2026-41567"},
		{"dockerd", "v2.0.0-beta.18", "GHSA-7236-3392-c5c6"},
		{"dockerd", "v2.0.0-beta.23", "CVE-2026-93320"},
		{"dockerd", "v0.0.0-20250101000000-0123456789ab", "CVE-2026-34040"},
		{"dockerd", "v1.13.1", "CVE-2026-34040"},
		{"dockerd", "v17.3.0", "CVE-2026-34040"},
		{"dockerd", "v20.10.24", "CVE-2026-34040"},
		{"dockerd", "v20.10.24+incompatible", "CVE-2024-23652"},
		{"dockerd", "v24.0.9", "CVE-2024-23652"},
		{"dockerd", "v28.5.2", "CVE-2026-41567"},
		{"dockerd", "v29.3.0", "CVE-2026-34040"},
		{"dockerd", "v29.5.0", "CVE-2026-41567"},
		{"dockerd", "v29.8.1", "CVE-2026-93320"},
		{"dockerd", "v29.8.2", ""},
		{"dockerd", "v29.9.3", ""},
		{"dockerd", "v30.0.0", ""},
		{"containerd", "v1.2.14", "CVE-2020-15257"},
		{"containerd", "v1.4.3", "CVE-2022-23648"},
		{"containerd", "v1.6.20", "CVE-2024-40635"},
		{"containerd", "v1.6.38", "CVE-2026-53488"}, // its branch got no fix
		{"containerd", "v1.7.32", "CVE-2026-53488"},
		{"containerd", "v1.7.33", ""},
		{"containerd", "v2.0.9", "CVE-2026-53488"},
		{"containerd", "v2.0.10", ""},
		{"containerd", "v2.1.0-rc.1", "CVE-2026-53489"},
		{"containerd", "v2.1.9", ""},
		{"containerd", "v2.2.4", "CVE-2026-53489"},
		{"containerd", "v2.3.1", "CVE-2026-53488"},
		{"containerd", "v2.4.2", ""},
		{"runc", "v1.0.0-rc94", "CVE-2021-30465"},
		{"runc", "v1.1.4", "CVE-2023-27561"},
		{"runc", "v1.1.5", "CVE-2024-21626"},
		{"runc", "v1.1.12", "CVE-2025-31133"},
		{"runc", "v1.2.8", "CVE-2026-41579"},
		{"runc", "v1.3.6", ""},
		{"runc", "v1.4.0", "CVE-2026-41579"},
		{"runc", "v1.5.0-rc.2", "CVE-2026-41579"},
		{"runc", "v1.5.2", ""},
		{"buildkitd", "v0.12.4", "CVE-2024-23651"},
		{"buildkitd", "v0.28.0", "CVE-2026-33747"},
		{"buildkitd", "v0.31.0", "GHSA-7236-3392-c5c6"},
		{"buildkitd", "v0.31.1", "CVE-2026-15791"},
		{"buildkitd", "v0.33.0", "CVE-2026-93320"},
		{"buildkitd", "v0.34.1", "GHSA-w26x-xg27-7qjc"},
		{"buildkitd", "v0.34.2", ""},
	} {
		t.Run(c.engine+" "+c.version, func(t *testing.T) {
			found := Set{engines: []Engine{{Name: c.engine, Version: c.version}}}.Advisories()
			if c.known == "" && len(found) > 0 {
				t.Errorf("known against it: %v", found)
			}
			if c.known != "" && !slices.ContainsFunc(found, func(f Finding) bool { return strings.Contains(f.ID, c.known) }) {
				t.Errorf("%s is not known against it, but %v", c.known, found)
			}
			for _, f := range found { // what it is to be replaced with is of its own numbering, and newer
				if newest := f.Fixed[len(f.Fixed)-1]; semver.Compare(newest, c.version) <= 0 {
					t.Errorf("%s is said to be fixed in %s", f.ID, newest)
				}
			}
		})
	}
}
