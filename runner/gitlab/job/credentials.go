package job

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// authVariable holds a Docker configuration with credentials for registries.
const authVariable = "DOCKER_AUTH_CONFIG"

// dockerHub are the names that credentials for Docker Hub go by; the first one is that in the names of images.
var dockerHub = []string{"docker.io", "index.docker.io", "registry-1.docker.io"}

// auths are a job's credentials for registries, by host.
type auths struct {
	config      *configfile.ConfigFile // of authVariable; nil if there is none
	credentials []spec.Credential
	other       func(host string) (username, password string, ok bool) // the runner's; may be nil
}

// readAuths reads what a job has of credentials. Its error leaves the rest of use.
func readAuths(text string, credentials []spec.Credential, other func(string) (string, string, bool)) (auths, error) {
	a := auths{credentials: credentials, other: other}
	if strings.TrimSpace(text) == "" {
		return a, nil
	}
	c, err := config.LoadFromReader(strings.NewReader(text))
	if err == nil {
		a.config = c
	}
	return a, err
}

// helpers reports whether the configuration names programs to ask for credentials, which are not run.
func (a auths) helpers() bool {
	return a.config != nil && (a.config.CredentialsStore != "" || len(a.config.CredentialHelpers) > 0)
}

// of finds the credentials for an image, in gitlab-runner's order: the variable, the runner's, those that the forge has
// sent. A username that is empty goes with an identity token.
func (a auths) of(image reference.Named) (username, password string) {
	host, repository := reference.Domain(image), reference.Path(image)
	if a.config != nil {
		best := -1
		for at, c := range a.config.AuthConfigs {
			if n := covers(at, host, repository); n > best {
				best, username, password = n, c.Username, c.Password
				if c.IdentityToken != "" {
					username, password = "", c.IdentityToken
				}
			}
		}
		if best >= 0 {
			return username, password
		}
	}
	if a.other != nil {
		if username, password, ok := a.other(host); ok {
			return username, password
		}
	}
	for _, c := range a.credentials {
		if c.Type == "registry" && covers(c.URL, host, repository) >= 0 {
			return c.Username, c.Password
		}
	}
	return "", ""
}

// secrets are all that must not be shown.
func (a auths) secrets() (all []string) {
	if a.config != nil {
		for _, c := range a.config.AuthConfigs {
			all = append(all, c.Password, c.IdentityToken, c.Auth)
		}
	}
	for _, c := range a.credentials {
		all = append(all, c.Password)
	}
	return all
}

// covers reports how well credentials for at, a registry's URL or host, or a path there, fit a repository: by how many
// bytes of its path; -1: not at all.
func covers(at, host, repository string) int {
	_, rest, ok := strings.Cut(at, "://")
	if !ok {
		rest = at
	}
	of, path, _ := strings.Cut(rest, "/")
	path = strings.Trim(path, "/")
	if path == "v1" || path == "v2" { // of the API: docker login's name of Docker Hub has it
		path = ""
	}
	if of = strings.ToLower(of); slices.Contains(dockerHub, of) {
		of = dockerHub[0]
	}
	if of != host || path != "" && repository != path && !strings.HasPrefix(repository, path+"/") {
		return -1
	}
	return len(path)
}
