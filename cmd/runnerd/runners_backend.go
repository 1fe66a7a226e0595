package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// runners is the api.Runners of the forges.
type runners struct {
	*gitlab.Enrolment
	allow func(sandbox.Nesting) error // the policy
}

// forgeOf returns what a registration's forge is asked for, with info about this runner. observe may be nil.
func forgeOf(info spec.Info, observe func(gitlab.Registration, gitlab.Call)) func(gitlab.Registration) (gitlab.Forge, error) {
	return func(r gitlab.Registration) (gitlab.Forge, error) {
		o := gitlab.ClientOptions{Info: info, CAFile: r.CAFile}
		if observe != nil {
			o.Observe = func(k gitlab.Call) { observe(r, k) }
		}
		return gitlab.NewClient(r.URL, o)
	}
}

// enrolInfo is what a forge is told of this runner when it is enrolled. GitLab keeps the features that it is told of
// first for the better part of an hour, so all are said. terminals is whether its jobs have them.
func enrolInfo(terminals bool) spec.Info {
	v := versionInfo()
	return spec.Info{
		Name: "runnerd", Version: v.Version, Platform: runtime.GOOS, Architecture: runtime.GOARCH,
		Executor: gitlab.DefaultExecutor, Shell: "bash", Features: gitlab.Features(terminals),
	}
}

// Runners lists them.
func (rs runners) Runners(context.Context) ([]api.Runner, error) {
	all := rs.Enrolment.Runners.List()
	out := make([]api.Runner, 0, len(all))
	for _, r := range all {
		out = append(out, rs.describe(r))
	}
	return out, nil
}

func (rs runners) describe(r gitlab.Registration) api.Runner {
	c := rs.Contacts.Of(r.Name)
	return api.Runner{
		Name: r.Name, Forge: "gitlab", URL: r.URL, CloneURL: r.CloneURL, Description: r.Description, ID: r.ID, SystemID: r.SystemID,
		Token: gitlab.ShortToken(r.Token), TokenExpires: r.TokenExpires, TokenRenewal: r.RotationDue(),
		Concurrent: r.Concurrent, Sandbox: r.Nesting, Image: r.Image, Pull: r.Pull, Limits: r.Limits, Builds: r.Builds, OutputLimit: r.OutputLimit, CAFile: r.CAFile, Ephemeral: r.Ephemeral,
		State: string(c.Health()), Why: rs.Why(r), LastContact: c.At, Failing: c.Failing, Answers: c.Answers,
	}
}

// Register registers one.
func (rs runners) Register(ctx context.Context, n api.NewRunner) (api.Runner, error) {
	url, err := gitlab.NormalURL(n.URL)
	if err != nil {
		return api.Runner{}, fmt.Errorf("%w: url: %w", api.ErrInvalid, err)
	}
	r := gitlab.Registration{
		Name: n.Name, Description: n.Registration.Description, URL: url, Token: n.Token, TokenObtained: n.TokenObtained, SystemID: n.SystemID,
		Concurrent: n.Concurrent, Nesting: n.Sandbox, Image: n.Image, Pull: sandbox.PullPolicy(n.Pull), Limits: n.Limits, Env: n.Env,
		Builds: n.Builds, OutputLimit: n.OutputLimit, Scripts: script.Scripts(n.Scripts), CAFile: n.CAFile, Ephemeral: n.Ephemeral,
	}
	if n.CloneURL != "" {
		if r.CloneURL, err = gitlab.NormalURL(n.CloneURL); err != nil {
			return api.Runner{}, fmt.Errorf("%w: clone_url: %w", api.ErrInvalid, err)
		}
	}
	if len(n.Sandbox) > 0 {
		if err := rs.allow(n.Sandbox); err != nil {
			return api.Runner{}, err
		}
	}
	with, err := registrationRequest(n)
	if err != nil {
		return api.Runner{}, err
	}
	return rs.answer(rs.Enrolment.Register(ctx, r, with))
}

// registrationRequest is what the forge is asked for with a registration token, nil with an authentication token.
func registrationRequest(n api.NewRunner) (*spec.RegisterRequest, error) {
	own := gitlab.IsAuthenticationToken(n.Token)
	switch {
	case own && n.TokenIs == "registration":
		return nil, fmt.Errorf("%w: token_is: tokens that begin so are authentication tokens", api.ErrInvalid)
	case own || n.TokenIs == "authentication":
		return nil, nil
	}
	d := n.Registration
	if t := time.Duration(d.MaximumTimeout); t != 0 && t < 10*time.Minute { // GitLab, app/models/ci/runner.rb
		return nil, fmt.Errorf("%w: registration.maximum_timeout: GitLab takes at least 10m", api.ErrInvalid)
	}
	return &spec.RegisterRequest{
		Description: d.Description, TagList: strings.Join(d.Tags, ","), RunUntagged: d.RunUntagged, Locked: d.Locked,
		AccessLevel: d.AccessLevel, MaximumTimeout: int(time.Duration(d.MaximumTimeout).Seconds()), Paused: d.Paused,
	}, nil
}

// Verify asks the forge.
func (rs runners) Verify(ctx context.Context, name string) (api.Runner, error) {
	return rs.answer(rs.Enrolment.Verify(ctx, name))
}

// Rotate renews a token.
func (rs runners) Rotate(ctx context.Context, name string) (api.Runner, error) {
	return rs.answer(rs.Enrolment.Rotate(ctx, name))
}

// Unregister removes one.
func (rs runners) Unregister(ctx context.Context, name string, keep bool) error {
	return runnersError(rs.Enrolment.Unregister(ctx, name, keep))
}

func (rs runners) answer(r gitlab.Registration, err error) (api.Runner, error) {
	if err != nil {
		return api.Runner{}, runnersError(err)
	}
	return rs.describe(r), nil
}

// runnersError is an error as api.Runners has it.
func runnersError(err error) error {
	var refused *gitlab.ForgeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &api.ForgeProblem{Status: refused.Status, Text: refused.Text}
	case errors.Is(err, gitlab.ErrUnknown):
		return &wrapped{fmt.Errorf("%w: see 'runnerd runners'", err), api.ErrNoRunner}
	case errors.Is(err, gitlab.ErrExists):
		return &wrapped{err, api.ErrRunnerExists}
	case errors.Is(err, gitlab.ErrInvalid):
		return &wrapped{err, api.ErrInvalid}
	}
	return err
}

// wrapped is an error that is another one, too, without a word of it.
type wrapped struct {
	error
	is error
}

func (w *wrapped) Unwrap() []error { return []error{w.error, w.is} }
