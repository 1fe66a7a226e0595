package engine

import (
	"fmt"
	"strings"

	"golang.org/x/mod/semver"
)

// AdvisoriesDate is the day up to which the projects' advisories were looked through for the table below.
const AdvisoriesDate = "2026-09-04"

// Finding is an engine of a version that is known to let a payload out, or to do its bidding on the host.
type Finding struct {
	Engine Engine
	ID     string   // CVE or GHSA numbers
	What   string   // what a payload can do
	Fixed  []string // the first good version of each release branch that got one, oldest first
}

// Error makes a Finding fit where an engine is refused because of it.
func (f Finding) Error() string {
	return fmt.Sprintf("engine %s %s is unsafe: %s (%s): fixed in %s: %s",
		f.Engine.Name, f.Engine.Version, f.What, f.ID, strings.Join(f.Fixed, ", "), mend)
}

// Advisories returns what is known against the engines' versions, in the order of Engines; nil is good.
func (s Set) Advisories() []Finding {
	var found []Finding
	for _, e := range s.engines {
		for _, a := range advisories() {
			if a.engine == e.Name && a.affects(e.Version) {
				found = append(found, Finding{Engine: e, ID: a.id, What: a.what, Fixed: a.fixes(e.Version)})
			}
		}
	}
	return found
}

type advisory struct {
	engine string
	id     string
	what   string
	since  string   // the first bad version, where older ones are known to be good
	fixed  []string // as in Finding
	docker []string // of dockerd: fixed, in the numbers of Docker's releases
}

// firstDockerRelease is where the numbers of Docker's releases begin (v17.03); Go modules are not yet there.
const firstDockerRelease = "v17.0.0-0"

// fixes returns the fixed versions in the numbering that version is of. A dockerd that bears its release (v29.3.0)
// is not newer than a Go module's v2.0.0-beta.24 for that.
func (a advisory) fixes(version string) []string {
	if a.docker != nil && semver.Compare(version, firstDockerRelease) >= 0 {
		return a.docker
	}
	return a.fixed
}

// affects compares within version's own release branch (v1.2) where that got a fix. A branch that got none
// is bad if it is older than the newest fix: it may have been at its end of life, and nobody looked.
func (a advisory) affects(version string) bool {
	if a.since != "" && semver.Compare(version, a.since) < 0 {
		return false
	}
	fixed := a.fixes(version)
	for _, f := range fixed {
		if semver.MajorMinor(f) == semver.MajorMinor(version) {
			return semver.Compare(version, f) < 0
		}
	}
	return semver.Compare(version, fixed[len(fixed)-1]) < 0
}

// advisories is the table: escapes and what comes near them, no mere denials of service. dockerd goes by the
// version of its Go module, or by Docker's release if it bears that; where BuildKit's advisories hold for the
// BuildKit inside it, its fix is the first version that is built with a fixed one.
func advisories() []advisory {
	return []advisory{
		// github.com/opencontainers/runc, CHANGELOG.md
		{
			engine: "runc", id: "CVE-2019-5736", what: "a container overwrites the host's runc through /proc/self/exe",
			fixed: []string{"v1.0.0-rc7"},
		},
		{
			engine: "runc", id: "CVE-2021-30465", what: "a container that swaps a mount's target for a link mounts the host's file system",
			fixed: []string{"v1.0.0-rc95"},
		},
		{
			engine: "runc", id: "CVE-2023-27561", what: "an image whose /proc is a link gets by the masked files of the host's /proc",
			fixed: []string{"v1.1.5"},
		},
		{
			engine: "runc", id: "CVE-2024-21626", what: "a leaked file descriptor gives a container the host's file system",
			fixed: []string{"v1.1.12"},
		},
		{
			engine: "runc", id: "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881",
			what:  "a container that swaps /dev/null, /dev/console or procfs files for links writes to the host's /proc",
			fixed: []string{"v1.2.8", "v1.3.3", "v1.4.0-rc.3"},
		},
		{
			engine: "runc", id: "CVE-2026-41579", what: "an image whose /dev is a link has runc make files on the host",
			fixed: []string{"v1.3.6", "v1.4.3", "v1.5.0-rc.3"},
		},
		// github.com/containerd/containerd, security advisories
		{
			engine: "containerd", id: "CVE-2020-15257", what: "a container in the host's network namespace commands the shims",
			fixed: []string{"v1.3.9", "v1.4.3"},
		},
		{
			engine: "containerd", id: "CVE-2022-23648", what: "an image's volumes give a container files of the host to read",
			fixed: []string{"v1.4.13", "v1.5.10", "v1.6.1"},
		},
		{
			engine: "containerd", id: "CVE-2024-40635", what: "an image with a user id beyond 31 bits runs as root",
			fixed: []string{"v1.6.38", "v1.7.27", "v2.0.4"},
		},
		{
			engine: "containerd", id: "CVE-2026-53488", what: "a label in an image runs a command as the host's root",
			fixed: []string{"v1.7.33", "v2.0.10", "v2.1.9", "v2.2.5", "v2.3.2"},
		},
		{
			engine: "containerd", id: "CVE-2026-50195, CVE-2026-53489, CVE-2026-53492",
			what:  "a checkpoint image injects devices and mounts of the host, or replaces other images",
			since: "v2.1.0-0", fixed: []string{"v2.1.9", "v2.2.5", "v2.3.2"},
		},
		// github.com/moby/buildkit, security advisories
		{
			engine: "buildkitd", id: "CVE-2024-23651, CVE-2024-23652, CVE-2024-23653",
			what:  "a build reads and deletes files of the host, and runs containers with privileges it was not given",
			fixed: []string{"v0.12.5"},
		},
		{
			engine: "buildkitd", id: "CVE-2026-33747, CVE-2026-33748",
			what:  "a frontend writes outside the state directory, a git subdirectory reads outside the checkout",
			fixed: []string{"v0.28.1"},
		},
		{
			engine: "buildkitd", id: "GHSA-7236-3392-c5c6", what: "a build step runs without seccomp and AppArmor, without asking for it",
			fixed: []string{"v0.31.1"},
		},
		{
			engine: "buildkitd", id: "CVE-2026-15791, CVE-2026-15793, GHSA-g2h8-426c-7976",
			what:  "a git bundle runs commands in buildkitd, a file operation empties its /tmp, an export leaves its directory",
			fixed: []string{"v0.31.2"},
		},
		{
			engine: "buildkitd", id: "CVE-2026-93320", what: "special files in a build's snapshots give it devices of the host",
			fixed: []string{"v0.33.1"}, // v0.33.0 is the last that is known to be bad
		},
		{
			engine: "buildkitd", id: "GHSA-w26x-xg27-7qjc", what: "a client sets extended attributes, and so privileges, on files outside the state directory",
			fixed: []string{"v0.34.2"},
		},
		// github.com/moby/moby, security advisories; the Go vulnerability database for versions of moby/v2
		{
			engine: "dockerd", id: "CVE-2026-34040", what: "a request with a large body passes by the authorization plugin",
			fixed: []string{"v2.0.0-beta.8"}, docker: []string{"v29.3.1"},
		},
		{
			engine: "dockerd", id: "CVE-2026-41567, CVE-2026-42306",
			what:  "copying files into a container runs its programs as the engine's root, or mounts over the engine's files",
			fixed: []string{"v2.0.0-beta.14"}, docker: []string{"v29.5.1"},
		},
		{
			engine: "dockerd", id: "CVE-2024-23651, CVE-2024-23652, CVE-2024-23653",
			what:  "its BuildKit (before 0.12.5) lets a build read and delete files of the host",
			fixed: []string{"v2.0.0-beta.1"}, docker: []string{"v25.0.2"},
		},
		{
			engine: "dockerd", id: "GHSA-7236-3392-c5c6, CVE-2026-15791, CVE-2026-15793",
			what:  "its BuildKit (before 0.31.2) runs steps without seccomp, and commands from a git bundle",
			fixed: []string{"v2.0.0-beta.19"}, docker: []string{"v29.8.2"}, // or an earlier one that nobody has looked for
		},
		{
			engine: "dockerd", id: "CVE-2026-93320", what: "its BuildKit (before 0.33.1) lets special files in a build's snapshots give it devices of the host",
			// beta.24 requires 0.33.0, and engines/go.mod builds it with a newer one.
			fixed: []string{"v2.0.0-beta.24"}, docker: []string{"v29.8.2"},
		},
	}
}
