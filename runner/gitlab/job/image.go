package job

import (
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// image is an image of a job, its own or a service's, made ready to be got.
type image struct {
	// tries are the names and ways by which it is asked for, in order.
	tries      []runner.Image
	entrypoint []string // empty but not nil: none; nil: the image's
	command    []string
	user       string
}

// options are what the executors of gitlab-runner can do with an image (spec.Image.ExecutorOpts).
type options struct {
	Docker struct {
		Platform string `json:"platform"`
		User     string `json:"user"`
	} `json:"docker"`
	Kubernetes map[string]any `json:"kubernetes"`
}

// image reads an image, and notes what of it is not done.
func (p *plan) image(what string, i spec.Image) (image, error) {
	name := p.vars.Expand(i.Name)
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return image{}, configurationError("%s %q: %w: correct its name", what, name, err)
	}
	out := image{entrypoint: i.Entrypoint, command: i.Command}
	if len(i.Entrypoint) == 1 && i.Entrypoint[0] == "" { // as the Docker Engine reads it
		out.entrypoint = []string{}
	}
	var o options
	if len(i.ExecutorOpts) > 0 {
		if err := json.Unmarshal(i.ExecutorOpts, &o); err != nil {
			return image{}, configurationError("%s %q: its executor_opts cannot be read: %w", what, name, err)
		}
	}
	if !samePlatform(o.Docker.Platform) {
		return image{}, configurationError("%s %q: it is to run on %s, and this machine is %s: leave out docker:platform, or tag the job for another runner",
			what, name, o.Docker.Platform, machine)
	}
	if len(o.Kubernetes) > 0 {
		p.note("%s %s: its kubernetes options are not used: this runner is no cluster", what, name)
	}
	if len(i.Ports) > 0 {
		p.note("%s %s: its ports are not used: they are for the terminal of the Web IDE", what, name)
	}
	out.user = p.vars.Expand(o.Docker.User)
	policies, err := p.policies(what, i.PullPolicies)
	if err != nil {
		return image{}, err
	}
	username, password := p.auths.of(named)
	for _, policy := range policies {
		out.tries = append(out.tries, runner.Image{Ref: name, Pull: sandbox.Pull{
			Policy: policy, Asking: p.asking, Username: username, Password: password,
		}})
	}
	return out, nil
}

// policies are those that a job gives, to be tried one after the other, or the runner's.
func (p *plan) policies(what string, names []string) ([]sandbox.PullPolicy, error) {
	if len(names) == 0 {
		return []sandbox.PullPolicy{p.pull}, nil
	}
	var all []sandbox.PullPolicy
	for _, name := range names {
		policy := sandbox.PullPolicy(name)
		if !slices.Contains([]sandbox.PullPolicy{sandbox.IfNotPresent, sandbox.Always, sandbox.Never}, policy) {
			return nil, configurationError("%s: the pull policy %q is none: use %s, %s or %s", what, name, sandbox.Always, sandbox.IfNotPresent, sandbox.Never)
		}
		all = append(all, policy)
	}
	return all, nil
}

const machine = "linux/" + runtime.GOARCH

// samePlatform reports whether a platform (os/architecture[/variant]) is the machine's; the empty one is.
func samePlatform(platform string) bool {
	return platform == "" || platform == machine || strings.HasPrefix(platform, machine+"/")
}

// isDocker reports whether an image is Docker's own, with its command line or its engine in it, in whatever mirror.
func isDocker(name string) bool {
	named, err := reference.ParseNormalizedNamed(name)
	return err == nil && path.Base(reference.Path(named)) == "docker"
}

// isEngine reports whether a service is a Docker Engine, such as docker:27-dind.
func isEngine(name string, s spec.Image) bool {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return false
	}
	base, tag := path.Base(reference.Path(named)), ""
	if tagged, ok := named.(reference.Tagged); ok {
		tag = tagged.Tag()
	}
	words := strings.FieldsFunc(base, func(r rune) bool { return r == '-' || r == '_' || r == '.' })
	if slices.Contains(words, "dind") {
		return true
	}
	if base != "docker" {
		return false
	}
	args := slices.Concat(s.Entrypoint, s.Command)
	return strings.Contains(tag, "dind") || slices.ContainsFunc(args, func(arg string) bool { return strings.Contains(arg, "dockerd") })
}

// serviceNames are those by which a service's image is reached, beside its aliases: with its registry, as
// gitlab-runner makes them (helpers/container/services, SplitNameAndVersion), and without it.
func serviceNames(name string) []string {
	named, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil
	}
	host, _, _ := strings.Cut(reference.Domain(named), ":")
	short := reference.Path(named)
	if reference.Domain(named) == "docker.io" {
		return spellings(reference.FamiliarName(named))
	}
	return unique(append(spellings(host+"/"+short), spellings(short)...))
}

func spellings(repository string) []string {
	return unique([]string{strings.ReplaceAll(repository, "/", "__"), strings.ReplaceAll(repository, "/", "-")})
}

// unique drops what is there twice, and keeps the order.
func unique(names []string) []string {
	var all []string
	for _, name := range names {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// aliases are the names that a job gives to a service.
func (p *plan) aliases(s spec.Image) []string {
	return strings.FieldsFunc(p.vars.Expand(s.Alias), func(r rune) bool { return r == ',' || r == ' ' || r == '\t' || r == '\n' })
}

// String is the image for people.
func (i image) String() string {
	if len(i.tries) == 0 {
		return ""
	}
	return i.tries[0].Ref
}

// argv is the command that an image's container runs: what the job says, else the image. As with the Docker Engine,
// who gives an entrypoint has to give the command too.
func (i image) argv(c sandbox.ImageConfig) []string {
	entrypoint, command := i.entrypoint, i.command
	if entrypoint == nil {
		entrypoint = c.Entrypoint
		if len(command) == 0 {
			command = c.Cmd
		}
	}
	return slices.Concat(entrypoint, command)
}

func configurationError(format string, args ...any) error {
	return &Failure{Reason: spec.ConfigurationError, Err: fmt.Errorf(format, args...)}
}
