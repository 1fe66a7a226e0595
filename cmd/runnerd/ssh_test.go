package main

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func keyFile(t *testing.T, passphrase string) string {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return writeKey(t, private, passphrase)
}

func writeKey(t *testing.T, private crypto.PrivateKey, passphrase string) string {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(private, "")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(private, "", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"key": string(pem.EncodeToMemory(block))})
	return filepath.Join(dir, "key")
}

func TestSSHAgents(t *testing.T) {
	agents, err := sshAgents([]string{"default=" + keyFile(t, "") + "," + keyFile(t, "")})
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	go agents["default"](far)
	a := agent.NewClient(near)
	keys, err := a.List()
	if err != nil || len(keys) != 2 {
		t.Fatal(keys, err)
	}
	if _, err := a.Sign(keys[0], []byte("data")); err != nil {
		t.Error(err)
	}
	for what, err := range map[string]error{"remove all": a.RemoveAll(), "lock": a.Lock(nil), "remove": a.Remove(keys[0])} {
		if err == nil {
			t.Errorf("%s was done", what)
		}
	}
	if keys, err := a.List(); err != nil || len(keys) != 2 {
		t.Error(keys, err)
	}
	if _, err := a.Extension("session-bind@openssh.com", nil); err == nil {
		t.Error("an extension was taken")
	}
	t.Setenv("SSH_AUTH_SOCK", "")
	for flag, want := range map[string]string{
		"default": "SSH_AUTH_SOCK is not set", "x=/no/such": "no such file", "x=" + keyFile(t, "secret"): "has a passphrase", "x=/etc/hostname": "no key",
	} {
		if _, err := sshAgents([]string{flag}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}

// TestRSA holds that an RSA key signs by SHA-2, as servers want it.
func TestRSA(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	serve, err := agentOf([]string{writeKey(t, key, "")})
	if err != nil {
		t.Fatal(err)
	}
	near, far := net.Pipe()
	defer near.Close()
	go serve(far)
	a := agent.NewClient(near)
	keys, err := a.List()
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	signature, err := a.SignWithFlags(keys[0], []byte("data"), agent.SignatureFlagRsaSha512)
	if err != nil || signature.Format != ssh.KeyAlgoRSASHA512 {
		t.Errorf("%+v, %v", signature, err)
	}
}
