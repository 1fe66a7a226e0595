package buildkit

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"testing"

	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/sshforward"
	"golang.org/x/crypto/ssh"
)

func testKey(t testing.TB) []byte {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

func TestAgents(t *testing.T) {
	all, err := newAgents(map[string]SSH{"default": {Keys: [][]byte{testKey(t)}}})
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range map[string]bool{"": true, "default": true, "other": false} {
		if _, err := all.CheckAgent(t.Context(), &sshforward.CheckAgentRequest{ID: id}); (err == nil) != want {
			t.Errorf("agent %q: %v", id, err)
		}
	}
	a, done, err := all["default"](t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	keys, err := a.List()
	if err != nil || len(keys) != 1 {
		t.Fatalf("keys %v, %v", keys, err)
	}
	if _, err := a.Sign(keys[0], []byte("data")); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{"remove": a.RemoveAll(), "lock": a.Lock(nil), "remove one": a.Remove(keys[0])} {
		if !errors.Is(err, errReadOnly) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := newAgents(map[string]SSH{"x": {Keys: [][]byte{[]byte("no key")}}}); err == nil {
		t.Error("a key that is none was taken")
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
