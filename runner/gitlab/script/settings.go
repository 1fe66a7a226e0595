package script

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// GitStrategy is how a job gets its project's files (GIT_STRATEGY).
type GitStrategy string

// The strategies.
const (
	GitClone GitStrategy = "clone" // anew
	GitFetch GitStrategy = "fetch" // into what is there
	GitNone  GitStrategy = "none"  // not at all
	GitEmpty GitStrategy = "empty" // not at all, into an empty directory
)

// The values of GIT_SUBMODULE_STRATEGY.
const (
	submodulesNone      = "none"
	submodulesNormal    = "normal"
	submodulesRecursive = "recursive"
)

const (
	defaultAfterScriptTimeout = 5 * time.Minute
	maxAttempts               = 10
)

// Settings are what a job sets for its runner through variables.
type Settings struct {
	DebugTrace, DebugServices bool // CI_DEBUG_TRACE, CI_DEBUG_SERVICES

	Strategy          GitStrategy
	Checkout          bool
	SubmoduleStrategy string
	SubmodulePaths    []string
	SubmoduleDepth    int
	CleanFlags        []string // none: what is untracked stays
	FetchFlags        []string
	SubmoduleFlags    []string
	SkipSmudge        bool
	ForceHTTPS        bool

	// How often each part is tried, 1 to 10.
	GetSourcesAttempts, ArtifactAttempts, CacheAttempts, SectionAttempts int

	ScriptTimeout           time.Duration // 0: the job's
	AfterScriptTimeout      time.Duration // 0: the job's
	AfterScriptIgnoreErrors bool
	CacheRequestTimeout     time.Duration
	DockerAuthConfig        string

	// Of gitlab-runner's feature flags, those that mean something here.
	ScriptSections            bool // FF_SCRIPT_SECTIONS
	ExitCodeCheck             bool // FF_ENABLE_BASH_EXIT_CODE_CHECK
	CleanUpFailedCacheExtract bool // FF_CLEAN_UP_FAILED_CACHE_EXTRACT
	HashCacheKeys             bool // FF_HASH_CACHE_KEYS
	MaskAllDefaultTokens      bool // FF_MASK_ALL_DEFAULT_TOKENS
	DirectDownload            bool // FF_USE_DIRECT_DOWNLOAD

	// Warnings say which variables were not understood, and what was taken instead. They belong into the log.
	Warnings []string
}

// Settings reads what the job sets. A value that makes no sense is a warning, and the default holds.
func (v *Variables) Settings(job spec.Job) Settings {
	r := settingsReader{v: v}
	strategy := GitClone
	if job.AllowGitFetch {
		strategy = GitFetch
	}
	s := Settings{
		DebugTrace:         r.bool("CI_DEBUG_TRACE", false),
		DebugServices:      r.bool("CI_DEBUG_SERVICES", false),
		Strategy:           GitStrategy(r.oneOf("GIT_STRATEGY", string(strategy), string(GitClone), string(GitFetch), string(GitNone), string(GitEmpty))),
		Checkout:           r.bool("GIT_CHECKOUT", true),
		SubmoduleStrategy:  r.oneOf("GIT_SUBMODULE_STRATEGY", submodulesNone, submodulesNormal, submodulesRecursive, submodulesNone),
		SubmodulePaths:     strings.Fields(v.Value("GIT_SUBMODULE_PATHS")),
		SubmoduleDepth:     r.int("GIT_SUBMODULE_DEPTH", job.GitInfo.Depth),
		CleanFlags:         r.flags("GIT_CLEAN_FLAGS", "-ffdx"),
		FetchFlags:         r.flags("GIT_FETCH_EXTRA_FLAGS", "--prune", "--quiet"),
		SubmoduleFlags:     r.flags("GIT_SUBMODULE_UPDATE_FLAGS"),
		SkipSmudge:         r.bool("GIT_LFS_SKIP_SMUDGE", false),
		ForceHTTPS:         r.bool("GIT_SUBMODULE_FORCE_HTTPS", false),
		GetSourcesAttempts: r.attempts("GET_SOURCES_ATTEMPTS"),
		ArtifactAttempts:   r.attempts("ARTIFACT_DOWNLOAD_ATTEMPTS"),
		CacheAttempts:      r.attempts("RESTORE_CACHE_ATTEMPTS"),
		SectionAttempts:    r.attempts("EXECUTOR_JOB_SECTION_ATTEMPTS"),

		ScriptTimeout:           r.duration("RUNNER_SCRIPT_TIMEOUT", 0),
		AfterScriptTimeout:      r.duration("RUNNER_AFTER_SCRIPT_TIMEOUT", defaultAfterScriptTimeout),
		AfterScriptIgnoreErrors: r.bool("AFTER_SCRIPT_IGNORE_ERRORS", true),
		CacheRequestTimeout:     time.Duration(r.int("CACHE_REQUEST_TIMEOUT", 10)) * time.Minute,
		DockerAuthConfig:        v.Value("DOCKER_AUTH_CONFIG"),

		ScriptSections:            r.bool("FF_SCRIPT_SECTIONS", false),
		ExitCodeCheck:             r.bool("FF_ENABLE_BASH_EXIT_CODE_CHECK", false),
		CleanUpFailedCacheExtract: r.bool("FF_CLEAN_UP_FAILED_CACHE_EXTRACT", false),
		HashCacheKeys:             r.bool("FF_HASH_CACHE_KEYS", false),
		MaskAllDefaultTokens:      r.bool("FF_MASK_ALL_DEFAULT_TOKENS", true),
		DirectDownload:            r.bool("FF_USE_DIRECT_DOWNLOAD", true),
	}
	if s.Strategy == GitNone || s.Strategy == GitEmpty {
		s.Checkout, s.SubmoduleStrategy = false, submodulesNone
	}
	s.Warnings = r.warnings
	return s
}

// settingsReader reads variables and collects what is wrong with them.
type settingsReader struct {
	v        *Variables
	warnings []string
}

func (r *settingsReader) warn(format string, args ...any) {
	r.warnings = append(r.warnings, fmt.Sprintf(format, args...))
}

func (r *settingsReader) bool(name string, def bool) bool {
	raw := r.v.Value(name)
	if raw == "" {
		return def
	}
	b, err := strconv.ParseBool(raw)
	if err != nil {
		r.warn("%s: expected bool got %q, using default value: %v", name, raw, def)
		return def
	}
	return b
}

func (r *settingsReader) int(name string, def int) int {
	raw := r.v.Value(name)
	if raw == "" {
		return def
	}
	i, err := strconv.ParseInt(raw, 10, 32)
	if err != nil {
		r.warn("%s: expected int got %q, using default value: %v", name, raw, def)
		return def
	}
	return int(i)
}

func (r *settingsReader) attempts(name string) int {
	n := r.int(name, 1)
	within := max(1, min(maxAttempts, n))
	if within != n {
		r.warn("%s: number of attempts out of the range [1, %d], clamping to: %d", name, maxAttempts, within)
	}
	return within
}

// duration is not negative; 0 is none.
func (r *settingsReader) duration(name string, def time.Duration) time.Duration {
	raw := strings.TrimSpace(r.v.Value(name))
	if raw == "" {
		return def
	}
	d, err := time.ParseDuration(raw)
	switch {
	case err != nil:
		r.warn("Ignoring malformed %s timeout: %s", name, raw)
	case d < 0:
		r.warn("Ignoring relative %s timeout: %s", name, raw)
	case d > 0:
		return d
	}
	return def
}

// flags are words; "none" is for none at all.
func (r *settingsReader) flags(name string, def ...string) []string {
	switch raw := r.v.Value(name); raw {
	case "":
		return def
	case "none":
		return nil
	default:
		return strings.Fields(raw)
	}
}

func (r *settingsReader) oneOf(name, def string, values ...string) string {
	raw := r.v.Value(name)
	if raw == "" || slices.Contains(values, raw) {
		if raw == "" {
			return def
		}
		return raw
	}
	last := len(values) - 1
	r.warn("%s: expected either '%s' or '%s' got %q, using default value '%s'",
		name, strings.Join(values[:last], "', '"), values[last], raw, def)
	return def
}
