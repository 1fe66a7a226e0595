// Package gitlab makes this daemon a runner of GitLab: who it is there, and the jobs it gets.
package gitlab

import (
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/sandbox"
)

// Registration is one runner of one forge: with whose token jobs are asked for, and what they get that do not say.
type Registration struct {
	// Name is the registration's on this machine, see CheckName; Description is what the forge shows of a runner with
	// a legacy token.
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// URL is the forge's, without /api/v4 and without a slash at its end. CloneURL, if not empty, takes its place in
	// the repositories' URLs.
	URL      string `json:"url"`
	CloneURL string `json:"clone_url,omitempty"`
	// Token authenticates the runner. It was obtained at TokenObtained and ends at TokenExpires; zero: never.
	Token         string    `json:"token"`
	TokenObtained time.Time `json:"token_obtained,omitzero"`
	TokenExpires  time.Time `json:"token_expires,omitzero"`
	// ID is the runner's at the forge, SystemID this machine's: runners of several machines may share a token.
	ID       int64  `json:"id,omitempty"`
	SystemID string `json:"system_id"`
	// Executor is what the forge shows of how jobs run.
	Executor string `json:"executor,omitempty"`

	Concurrent int                `json:"concurrent,omitempty"` // jobs at once; 0: as many as fit
	Nesting    sandbox.Nesting    `json:"sandbox"`
	Image      string             `json:"image,omitempty"` // of a job that names none; empty: as configured
	Pull       sandbox.PullPolicy `json:"pull,omitempty"`  // of a job that does not say; empty: as configured
	Limits     sandbox.Limits     `json:"limits,omitzero"` // of each job; 0: as configured
	Env        []string           `json:"env,omitempty"`   // KEY=value, for each job
	Builds     string             `json:"builds,omitempty"`
	// OutputLimit is the size of a job's log, in bytes, at which no more of it is sent; 0: DefaultTraceLimit.
	OutputLimit int64          `json:"output_limit,omitempty"`
	Scripts     script.Scripts `json:"scripts,omitzero"`
	// CAFile has the certificates (PEM) of who signs the forge's; empty: those that the machine trusts.
	CAFile string `json:"ca_file,omitempty"`
	// Ephemeral registrations are not written down, and end with whoever made them.
	Ephemeral bool `json:"ephemeral,omitempty"`
}

// The marks of runners' own tokens: of those that were made in GitLab, and of those that were made by a registration
// token (GitLab 17.9 and later). A GitLab may have a prefix of its own before them (its instance token prefix).
const (
	createdMark    = "glrt-"
	registeredMark = "glrtr-"
)

// DefaultExecutor is what the forge is told of how jobs run.
const DefaultExecutor = "runnerd"

var (
	nameForm     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)
	tokenForm    = regexp.MustCompile(`^[\x21-\x7e]+$`) // a bound in it would take 10 ms of each start to compile
	systemIDForm = regexp.MustCompile(`^[sr]_[A-Za-z0-9]{12}$`)
)

// maxImage bounds an image's name, in bytes.
const maxImage = 500

// maxScript bounds each script of a registration, in bytes.
const maxScript = 64 << 10

// CheckName reports whether name may name a registration: it is a file's name, too.
func CheckName(name string) error {
	if !nameForm.MatchString(name) {
		return fmt.Errorf("runner name %q: use 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', beginning with a letter or digit", cut(name))
	}
	return nil
}

// IsAuthenticationToken reports whether a token is a runner's own by its look, rather than one with which runners are
// registered. The own tokens of older runners have no look.
func IsAuthenticationToken(token string) bool {
	return isCreated(token) || strings.Contains(token, registeredMark)
}

// isCreated reports whether a token is that of a runner that was made in GitLab. Such a runner has a manager for each
// machine; another one is of one machine.
func isCreated(token string) bool { return strings.Contains(token, createdMark) }

// ShortToken is as much of a token as may be shown: enough to tell it from others, as GitLab shows it.
func ShortToken(token string) string {
	shown := 0
	for _, mark := range []string{createdMark, registeredMark, "GR1348941"} {
		if i := strings.Index(token, mark); i >= 0 {
			shown = i + len(mark)
			break
		}
	}
	return token[:shown+min((len(token)-shown)/3, 9)]
}

// LogValue is a registration in a log: without its token, and without its environment.
func (r Registration) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", r.Name), slog.String("url", r.URL), slog.Int64("id", r.ID), slog.String("token", ShortToken(r.Token)))
}

// Check reports all that is wrong with r.
func (r Registration) Check() error {
	errs := []error{CheckName(r.Name), checkURL("url", r.URL)}
	if r.CloneURL != "" {
		errs = append(errs, checkURL("clone_url", r.CloneURL))
	}
	if n := len(r.Token); n < 8 || n > 500 || !tokenForm.MatchString(r.Token) {
		errs = append(errs, errors.New("token: it must have 8 to 500 printable characters without blanks"))
	}
	if !systemIDForm.MatchString(r.SystemID) {
		errs = append(errs, fmt.Errorf("system_id %q: it must be s_ or r_ and 12 letters or digits", cut(r.SystemID)))
	}
	if r.Concurrent < 0 {
		errs = append(errs, fmt.Errorf("concurrent: %d: it must not be negative", r.Concurrent))
	}
	if l := r.Limits; l.CPU < 0 || l.Memory < 0 || l.PIDs < 0 || l.Disk < 0 || l.Inodes < 0 {
		errs = append(errs, errors.New("limits: they must not be negative"))
	}
	if len(r.Image) > maxImage || strings.ContainsFunc(r.Image, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		errs = append(errs, fmt.Errorf("image %q: it is none", cut(r.Image)))
	}
	if len(r.Nesting) == 0 || r.Nesting[0] != sandbox.Container {
		errs = append(errs, fmt.Errorf("sandbox %q: use container or container/dind", r.Nesting))
	}
	switch r.Pull {
	case "", sandbox.IfNotPresent, sandbox.Always, sandbox.Never:
	default:
		errs = append(errs, fmt.Errorf("pull %q: use %s, %s or %s", cut(string(r.Pull)), sandbox.IfNotPresent, sandbox.Always, sandbox.Never))
	}
	for _, e := range r.Env {
		if key, _, ok := strings.Cut(e, "="); !ok || key == "" || strings.ContainsRune(e, 0) {
			errs = append(errs, fmt.Errorf("env: %q is not KEY=value", cut(key)))
		}
	}
	if r.OutputLimit < 0 {
		errs = append(errs, fmt.Errorf("output_limit: %d: it must not be negative", r.OutputLimit))
	}
	for name, text := range map[string]string{
		"pre_get_sources_script": r.Scripts.PreGetSources, "post_get_sources_script": r.Scripts.PostGetSources,
		"pre_build_script": r.Scripts.PreBuild, "post_build_script": r.Scripts.PostBuild,
	} {
		if len(text) > maxScript || strings.ContainsRune(text, 0) {
			errs = append(errs, fmt.Errorf("%s: it must have at most %d bytes, none of them 0", name, maxScript))
		}
	}
	return errors.Join(append(errs, checkPath("builds", r.Builds), checkPath("ca_file", r.CAFile))...)
}

// checkPath reports whether a path, if there is one, is absolute and has no detours.
func checkPath(what, path string) error {
	if path != "" && (!filepath.IsAbs(path) || filepath.Clean(path) != path) {
		return fmt.Errorf("%s %q: it must be an absolute path", what, cut(path))
	}
	return nil
}

// checkURL reports whether text is a forge's URL as Registration has it.
func checkURL(what, text string) error {
	normal, err := NormalURL(text)
	if err == nil && normal != text {
		err = fmt.Errorf("write it as %s", normal)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// NormalURL is a forge's URL as Registration has it: gitlab-runner takes it with a path of the API, and with a slash,
// at its end.
func NormalURL(text string) (string, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return "", fmt.Errorf("%q is no URL", cut(text))
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		return "", fmt.Errorf("%q is not that of a forge: use https://HOST", cut(text))
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", fmt.Errorf("the forge's URL at %s holds a user, query or fragment: leave it out", u.Host)
	}
	path := strings.TrimRight(u.EscapedPath(), "/")
	for _, end := range []string{"/api/v4", "/ci"} {
		path = strings.TrimRight(strings.TrimSuffix(path, end), "/")
	}
	return u.Scheme + "://" + strings.ToLower(u.Host) + path, nil
}

// Host is the forge's, with its port if it has one: the forge of the jobs' scopes.
func (r Registration) Host() string {
	u, err := url.Parse(r.URL)
	if err != nil {
		return ""
	}
	return u.Host
}

// cut bounds foreign text in an error.
func cut(text string) string {
	const most = 100
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "…"
}
