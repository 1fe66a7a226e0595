package main

import (
	"context"
	"fmt"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config"
	"github.com/docker/cli/cli/config/configfile"

	"github.com/runnerd/runnerd/runner/api"
)

// hubKey is what docker login calls Docker Hub.
const hubKey = "https://index.docker.io/v1/"

// credentials are those that docker login, or its helpers, have for the registries that a build names. Which
// ones that are says the plan, so it is read here too. What is wrong with it, the daemon tells.
func (a *app) credentials(ctx context.Context, dir string, b api.Build) (map[string]api.Credentials, error) {
	file, err := config.Load(config.Dir())
	if err != nil {
		return nil, fmt.Errorf("read the credentials of docker login: %w", err)
	}
	if !file.ContainsAuth() {
		return nil, nil
	}
	c, err := a.clientConfig()
	if err != nil {
		return nil, err
	}
	plan, err := builder{read: newPlanner(c.EnginesDir).read, frontends: c.Builder.Frontends}.plan(ctx, dir, b)
	if err != nil {
		return nil, ctx.Err()
	}
	return a.credentialsFor(file, plan.Registries(b.Push)), nil
}

// imageCredentials are those for the registry of a job's image.
func (a *app) imageCredentials(image string) (map[string]api.Credentials, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, nil // the daemon says what is wrong with it, or has an image of its own
	}
	file, err := config.Load(config.Dir())
	if err != nil {
		return nil, fmt.Errorf("read the credentials of docker login: %w", err)
	}
	if !file.ContainsAuth() {
		return nil, nil
	}
	return a.credentialsFor(file, []string{reference.Domain(named)}), nil
}

func (a *app) credentialsFor(file *configfile.ConfigFile, hosts []string) map[string]api.Credentials {
	out := map[string]api.Credentials{}
	for _, host := range hosts {
		key := host
		if host == "docker.io" {
			key = hubKey
		}
		auth, err := file.GetAuthConfig(key)
		if err != nil {
			_, _ = fmt.Fprintf(a.stderr, "runnerd: no credentials for %s: %v\n", host, err)
			continue
		}
		switch {
		case auth.IdentityToken != "":
			out[host] = api.Credentials{Password: auth.IdentityToken}
		case auth.Password != "":
			out[host] = api.Credentials{Username: auth.Username, Password: auth.Password}
		}
	}
	return out
}
