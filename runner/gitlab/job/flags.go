package job

import (
	"slices"
	"strconv"
	"strings"
)

// honoured are the feature flags that do what they say, here or in package script.
var honoured = []string{
	"FF_SCRIPT_SECTIONS", "FF_TIMESTAMPS", "FF_ENABLE_BASH_EXIT_CODE_CHECK", "FF_CLEAN_UP_FAILED_CACHE_EXTRACT",
	"FF_HASH_CACHE_KEYS", "FF_MASK_ALL_DEFAULT_TOKENS", "FF_USE_DIRECT_DOWNLOAD",
}

// moot are those that ask for what every job has here, or concern what no job has here.
var moot = []string{
	"FF_NETWORK_PER_BUILD", "FF_USE_FASTZIP", "FF_ENABLE_JOB_CLEANUP", "FF_SKIP_NOOP_BUILD_STAGES", "FF_USE_IMPROVED_URL_MASKING",
	"FF_SECRET_RESOLVING_FAILS_IF_MISSING", "FF_RETRIEVE_POD_WARNING_EVENTS", "FF_PRINT_POD_EVENTS", "FF_RESOLVE_FULL_TLS_CHAIN",
	"FF_USE_GIT_NATIVE_CLONE", "FF_USE_GIT_BUNDLE_URIS", "FF_DISABLE_POWERSHELL_STDIN", "FF_USE_POWERSHELL_PATH_RESOLVER",
	"FF_SET_PERMISSIONS_BEFORE_CLEANUP", "FF_USE_INIT_WITH_DOCKER_EXECUTOR", "FF_POSIXLY_CORRECT_ESCAPES", "FF_USE_NEW_BASH_EVAL_STRATEGY",
	"FF_USE_NEW_SHELL_ESCAPE", "FF_KUBERNETES_HONOR_ENTRYPOINT", "FF_GIT_URLS_WITHOUT_TOKENS", "FF_LOG_IMAGES_CONFIGURED_FOR_JOB",
	"FF_CLEAN_UP_FAILED_CACHE_EXTRACT", "FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", "FF_WAIT_FOR_POD_TO_BE_REACHABLE",
	"FF_USE_POD_ACTIVE_DEADLINE_SECONDS", "FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", "FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY",
	"FF_TEST_FEATURE",
}

// flags says in the log which feature flags of gitlab-runner's a job sets to no effect, and what else it asks for that
// is left undone.
func (p *plan) flags() {
	for _, v := range p.vars.All() {
		if !strings.HasPrefix(v.Key, "FF_") || slices.Contains(honoured, v.Key) || slices.Contains(moot, v.Key) {
			continue
		}
		if on, err := strconv.ParseBool(v.Value); err == nil && on {
			p.note("%s is not honoured by this runner", v.Key)
		}
	}
	if len(p.Job.Inputs) > 0 {
		p.note("The job's inputs are not filled in by this runner")
	}
	for _, key := range []string{"KUBERNETES_CPU_REQUEST", "KUBERNETES_CPU_LIMIT", "KUBERNETES_MEMORY_REQUEST", "KUBERNETES_MEMORY_LIMIT"} {
		if p.vars.Get(key) != "" {
			p.note("%s is not used: this runner is no cluster; its own limits are those of its registration", key)
		}
	}
}
