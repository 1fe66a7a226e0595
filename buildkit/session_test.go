package buildkit

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/sshforward"
)

func TestAgents(t *testing.T) {
	all := agents{"default": func(context.Context) (net.Conn, error) { return nil, errors.New("not called") }}
	for id, want := range map[string]bool{"": true, "default": true, "other": false} {
		if _, err := all.CheckAgent(t.Context(), &sshforward.CheckAgentRequest{ID: id}); (err == nil) != want {
			t.Errorf("agent %q: %v", id, err)
		}
	}
}

func TestCredentials(t *testing.T) {
	a := authenticator{credentials: map[string]Credentials{"one.test:5000": {"u", "p"}, "hub.test": {"v", "q"}}}
	for host, user := range map[string]string{"one.test:5000": "u", "one.test": "", "hub.test": "v", "registry-1.hub.test": "v", "evil.test": ""} {
		got, err := a.Credentials(t.Context(), &auth.CredentialsRequest{Host: host})
		if err != nil || got.Username != user || (got.Secret == "") != (user == "") {
			t.Errorf("%s: %v, %v", host, got, err)
		}
	}
}
