package script

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// SourcesOptions say how a job's sources are got.
type SourcesOptions struct {
	Variables *Variables
	Job       spec.Job
	Settings  Settings
	// ServerURL is the forge's, from the registration. The job's token goes there and to where the repository is, and
	// nowhere else.
	ServerURL string
	// CloneURL is where the registration says that repositories are (clone_url); empty: as the job says.
	CloneURL string
	// CorrelationID is the X-Request-Id of the request that brought the job; empty: none.
	CorrelationID string
	// Scripts are the registration's.
	Scripts Scripts
	// Sections and InEnvironment are as in StepOptions.
	Sections, InEnvironment bool
	// Backoff is the time before the second attempt, and doubles; 0: 5 s, as gitlab-runner waits.
	Backoff time.Duration
}

// The names of hooks.
const (
	hookBefore = "pre_get_sources_script"
	hookAfter  = "post_get_sources_script"
)

const (
	defaultBackoff = 5 * time.Second
	maxBackoff     = 5 * time.Minute
)

// SourcesCommand is a command line for Sources, for root. Bash reads a pipe byte by byte, but a file, even if it is the
// same pipe, in blocks: that saves milliseconds.
func SourcesCommand() []string {
	return []string{"bash", "-c", "if [ -r /dev/stdin ]; then . /dev/stdin; else exec bash; fi"}
}

// Sources is the script that gets a job's sources, for the standard input of a Bash with git 2.31 or newer. The
// process need not be the job's own container, but has the builds directory and the same variables.
//
// The job's token is in the environment only, in a header for git, which sends it unasked and so saves a refused
// request. What git writes has no token: the repository's configuration has a credential helper that reads
// CI_JOB_TOKEN, so that git works in the job's script too. A fresh repository costs three processes of ours: mkdir, git
// fetch, git checkout.
//
// The error says which of the job's data makes no sense.
func Sources(o SourcesOptions) (string, error) {
	s := sources{SourcesOptions: o}
	if err := s.check(); err != nil {
		return "", err
	}
	v := o.Variables

	b := &s.b
	b.WriteString(onTerm + "\n")
	writeOptions(b, false)
	b.WriteString("umask 0000\n") // the job may run as another user
	writeVariables(b, v, o.InEnvironment)
	b.WriteString("export GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never\n")
	if !o.Settings.SkipSmudge {
		b.WriteString("export GIT_LFS_SKIP_SMUDGE=1\n") // git lfs pull is quicker than one file at a time
	}
	b.WriteString(functions)
	fmt.Fprintf(b, "dir=%s attempt=1 pauses=(%s)\nwhile :; do\n", Quote(v.ProjectDir), s.pauses())
	b.WriteString("set +o errexit\n(\n" + onTerm + "\nset -o errexit\n")
	s.body()
	fmt.Fprintf(b, `) </dev/null
status=$?
set -o errexit
if [ "$status" = 0 ]; then exit 0; fi
if [ "$attempt" -ge %[1]d ]; then git version </dev/null || true; exit "$status"; fi
pause=${pauses[attempt - 1]}
warn "Getting the sources failed (attempt $attempt of %[1]d). Retrying in $pause s..."
sleep "$pause" </dev/null
attempt=$((attempt + 1))
if [ -d "$dir/.git" ]; then
	notice 'Deleting tracked and untracked files...'
	(cd "$dir" && git -c safe.directory='*' rm -rf --ignore-unmatch --quiet . && git -c safe.directory='*' clean -ffdx -q) </dev/null || rm -rf "$dir"
fi
done
`, s.Settings.GetSourcesAttempts)
	return b.String(), nil
}

// functions are what the script needs more than once. Configuration in the environment, unlike a file, is gone with
// the script, and goes on where the job's own GIT_CONFIG_COUNT ends.
const functions = `notice() { printf '\033[32;1m%s\033[0;m\n' "$1"; }
warn() { printf '\033[0;33mWARNING: %s\033[0;m\n' "$1"; }
configure() {
	case ${GIT_CONFIG_COUNT:=0} in *[!0-9]*) GIT_CONFIG_COUNT=0 ;; esac
	export "GIT_CONFIG_KEY_$GIT_CONFIG_COUNT=$1" "GIT_CONFIG_VALUE_$GIT_CONFIG_COUNT=$2" GIT_CONFIG_COUNT=$((GIT_CONFIG_COUNT + 1))
}
`

// sources makes the script of one SourcesOptions.
type sources struct {
	SourcesOptions
	b      strings.Builder
	remote *url.URL // without user and password
	hosts  []string // that get the token: https://gitlab.example.com[:port]
	token  string
}

func (s *sources) check() error {
	git := s.Job.GitInfo
	if s.Backoff <= 0 {
		s.Backoff = defaultBackoff
	}
	s.Settings.GetSourcesAttempts = max(1, s.Settings.GetSourcesAttempts)
	switch s.Settings.Strategy {
	case GitNone, GitEmpty:
		return nil
	case GitClone, GitFetch:
	default:
		return fmt.Errorf("get the sources: unknown GIT_STRATEGY %q: use clone, fetch, none or empty", s.Settings.Strategy)
	}
	if len(git.SHA) != 40 && len(git.SHA) != 64 || strings.Trim(git.SHA, "0123456789abcdef") != "" {
		return fmt.Errorf("get the sources: the job's commit %q is no SHA-1 or SHA-256: the server must send git_info.sha", git.SHA)
	}
	if slices.Contains(s.Settings.SubmodulePaths, ":(exclude)") {
		return fmt.Errorf("GIT_SUBMODULE_PATHS: invalid submodule pathspec %q: write :(exclude)PATH without a space", s.Settings.SubmodulePaths)
	}
	remote, err := url.Parse(git.RepoURL)
	if err == nil && s.CloneURL != "" {
		path := s.Variables.Value("CI_PROJECT_PATH") + ".git"
		if remote, err = url.Parse(s.CloneURL); err == nil {
			remote = remote.JoinPath(path)
		}
	}
	if err != nil || remote.Scheme == "" {
		return fmt.Errorf("get the sources: the repository's URL is no URL: the server must send git_info.repo_url, or set clone_url")
	}
	remote.User = nil
	if remote.Scheme == "ssh" {
		remote.User = url.User("git")
	}
	s.remote = remote
	s.token = repoToken(s.Job)
	for _, u := range []string{remote.String(), s.ServerURL} {
		if host := webHost(u); host != "" && !slices.Contains(s.hosts, host) {
			s.hosts = append(s.hosts, host)
		}
	}
	return nil
}

// webHost is the scheme, host and port of an HTTP URL; empty for others.
func webHost(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ""
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
}

// body is one attempt.
func (s *sources) body() {
	set := s.Settings
	if set.DebugTrace {
		s.linef("warn %s\nset -o xtrace", Quote(debugNotice))
	}
	switch set.Strategy {
	case GitNone:
		s.linef(`notice 'Skipping Git repository setup'; mkdir -p "$dir"`)
	case GitEmpty:
		s.linef(`notice 'Skipping Git repository setup and creating an empty build directory'; rm -rf "$dir"; mkdir -p "$dir"`)
	default:
		s.hook(hookBefore, s.Scripts.PreGetSources, "")
		s.fetch()
	}
	if set.Checkout {
		s.checkout()
	} else {
		s.linef("notice 'Skipping Git checkout'")
	}
	if set.SubmoduleStrategy == submodulesNone {
		s.linef("notice 'Skipping Git submodules setup'")
	} else {
		s.submodules()
	}
	if set.Strategy == GitClone || set.Strategy == GitFetch {
		s.hook(hookAfter, "", s.Scripts.PostGetSources)
	}
}

// hook writes the job's hook, after what the registration wants before it, or before what it wants after it.
func (s *sources) hook(name, before, after string) {
	var script []string
	if before != "" {
		script = append(script, before)
	}
	for _, h := range s.Job.Hooks {
		if h.Name == name {
			script = append(script, h.Script...)
		}
	}
	if after != "" {
		script = append(script, after)
	}
	if len(script) == 0 {
		return
	}
	section := "pre_clone_script"
	if name == hookAfter {
		section = "post_clone_script"
	}
	var commands strings.Builder
	writeCommands(&commands, script, section, s.Sections && s.Settings.ScriptSections, s.Settings.ExitCodeCheck)
	s.linef("eval %s", Quote(commands.String()))
}

// prepareRepository makes a repository or takes one over: without the locks that a git leaves that was killed, and
// without configuration and hooks, which an earlier job may have left.
const prepareRepository = `fresh= empty=
if [ -s "$dir/.git/HEAD" ]; then
	mkdir -p "$dir"/.git/{objects,refs}
	rm -rf "$dir"/.git/{index,shallow,HEAD,config,packed-refs}.lock "$dir"/.git/hooks
	find "$dir/.git/refs" -name '*.lock' -type f -exec rm -f {} +
	printf 'Reinitialized existing Git repository in %s/.git/\n' "$dir"
else
	fresh=1
	shopt -s nullglob dotglob
	entries=("$dir"/*)
	shopt -u nullglob dotglob
	if [ "${#entries[@]}" = 0 ]; then empty=1; fi
	mkdir -p "$dir"/.git/{objects/info,objects/pack,refs/heads,refs/tags,info}
	printf 'ref: refs/heads/none\n' >"$dir/.git/HEAD"
	printf 'Initialized empty Git repository in %s/.git/\n' "$dir"
fi
`

func (s *sources) fetch() {
	set, git := s.Settings, s.Job.GitInfo
	if set.Strategy == GitClone {
		s.linef(`if [ -e "$dir" ]; then chmod -R u+rwX "$dir"; rm -rf "$dir"; fi`)
	}
	if s.CorrelationID != "" {
		s.linef("notice %s", Quote("Gitaly correlation ID: "+s.CorrelationID))
	}
	if git.Depth > 0 {
		s.linef("notice 'Fetching changes with git depth set to %d...'", git.Depth)
	} else {
		s.linef("notice 'Fetching changes...'")
	}
	s.b.WriteString(prepareRepository)
	if set.SubmoduleStrategy != submodulesNone {
		s.b.WriteString(cleanModules)
	}
	s.linef(`printf %%s %s >"$dir/.git/config"`, Quote(repositoryConfig(s.remote.String(), git.RepoObjectFormat)))
	s.linef(`printf %%s %s >"$dir/.git/%s"`, Quote(s.jobConfig()), jobConfigFile)
	s.linef(`cd "$dir"`)
	s.linef(`if [ "$fresh" ]; then notice 'Created fresh repository.'; fi`)
	s.environment()

	args := append([]string{"git", "fetch", "origin", "--no-recurse-submodules"}, git.Refspecs...)
	if git.Depth > 0 {
		args = append(args, "--depth", strconv.Itoa(git.Depth))
	}
	args = append(args, set.FetchFlags...)
	if git.Depth > 0 {
		s.linef("%s", quoteAll(args))
	} else {
		s.linef("if [ -e .git/shallow ]; then %s; else %s; fi", quoteAll(append(slices.Clip(args), "--unshallow")), quoteAll(args))
	}
}

// environment configures git for this script only.
func (s *sources) environment() {
	if s.Settings.DebugTrace { // the token is in it
		s.linef("set +o xtrace")
	}
	configure := func(key, value string) { s.linef("configure %s %s", Quote(key), Quote(value)) }
	configure("safe.directory", "*") // the directory may be another user's
	for _, host := range s.hosts {
		if s.token != "" {
			basic := base64.StdEncoding.EncodeToString([]byte(tokenUser + ":" + s.token))
			configure("http."+host+".extraHeader", "Authorization: Basic "+basic)
			configure("http."+host+".followRedirects", "false") // git would take the header along
		}
		if s.CorrelationID != "" {
			configure("http."+host+".extraHeader", "X-Gitaly-Correlation-ID: "+s.CorrelationID)
		}
	}
	// A new repository has nothing to be tidied up, what is not yet there cannot be lost, and one pack is less work
	// than a file for each object.
	s.linef("if [ \"$fresh\" ]; then configure maintenance.auto false; configure core.fsync none; configure fetch.unpackLimit 1; fi")
	if s.Settings.SubmoduleStrategy != submodulesNone { // git reads no repository's configuration for its submodules
		s.linef(`configure include.path "$dir/.git/%s"`, jobConfigFile)
	}
	if s.Settings.DebugTrace {
		s.linef("set -o xtrace")
	}
}

func (s *sources) checkout() {
	git, set := s.Job.GitInfo, s.Settings
	s.linef("notice %s", Quote(fmt.Sprintf("Checking out %s as detached HEAD (ref is %s)...", git.SHA[:8], git.Ref)))
	s.linef("git -c submodule.recurse=false checkout -f -q %s", git.SHA)
	if len(set.CleanFlags) > 0 {
		s.linef(`if [ -z "$empty" ]; then git clean %s; fi`, quoteAll(set.CleanFlags))
	}
	if !set.SkipSmudge {
		s.b.WriteString(pullLFS)
	}
}

// pullLFS asks git lfs for nothing where nothing is there to get.
const pullLFS = `if command -v git-lfs >/dev/null; then
	if git grep -q filter=lfs -- '*.gitattributes'; then
		configure filter.lfs.clean 'git-lfs clean -- %f'
		configure filter.lfs.smudge 'git-lfs smudge -- %f'
		configure filter.lfs.process 'git-lfs filter-process'
		configure filter.lfs.required true
		git lfs pull
		echo
	fi
elif [ -f .gitattributes ]; then
	case "$(<.gitattributes)" in *filter=lfs*) warn 'This repository uses Git LFS and there is no git-lfs: files are pointers' ;; esac
fi
`

func (s *sources) linef(format string, args ...any) { fmt.Fprintf(&s.b, format+"\n", args...) }

// pauses are the seconds before each further attempt.
func (s *sources) pauses() string {
	var all []string
	for i, d := 1, s.Backoff; i < s.Settings.GetSourcesAttempts; i, d = i+1, min(2*d, maxBackoff) {
		all = append(all, strconv.FormatFloat(d.Seconds(), 'f', -1, 64))
	}
	return strings.Join(all, " ")
}
