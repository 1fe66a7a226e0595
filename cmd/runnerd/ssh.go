package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/runnerd/runnerd/runner/api/client"
)

// agentServer speaks the ssh agent's protocol on a connection, and closes it.
type agentServer func(conn io.ReadWriteCloser)

// sshAgents reads --ssh: default|ID[=SOCKET|KEY[,KEY]], as docker buildx has it. Without a path it is the agent
// of SSH_AUTH_SOCK. Keys are held by an agent in this process.
func sshAgents(flags []string) (map[string]agentServer, error) {
	out := map[string]agentServer{}
	for _, s := range flags {
		id, list, given := strings.Cut(s, "=")
		paths := strings.Split(list, ",")
		if !given {
			paths = []string{os.Getenv("SSH_AUTH_SOCK")}
		}
		switch {
		case id == "" || out[id] != nil:
			return nil, fmt.Errorf("--ssh %s: the id is empty or comes twice", s)
		case paths[0] == "":
			return nil, fmt.Errorf("--ssh %s: SSH_AUTH_SOCK is not set: start an ssh-agent, or write --ssh %s=KEYFILE", s, id)
		}
		var err error
		if out[id], err = agentOf(paths); err != nil {
			return nil, fmt.Errorf("--ssh %s: %w", s, err)
		}
	}
	return out, nil
}

// agentOf is the agent that listens on a socket, or one made of key files.
func agentOf(paths []string) (agentServer, error) {
	keyring := agent.NewKeyring().(agent.ExtendedAgent)
	for _, path := range paths {
		fi, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if fi.Mode()&fs.ModeSocket != 0 {
			if len(paths) > 1 {
				return nil, errors.New("give one socket, or key files")
			}
			return func(conn io.ReadWriteCloser) { forwardAgent(conn, path) }, nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		key, err := ssh.ParseRawPrivateKey(text)
		if missing := (*ssh.PassphraseMissingError)(nil); errors.As(err, &missing) {
			return nil, fmt.Errorf("%s has a passphrase: add it to an ssh-agent, and give that", path)
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		if err := keyring.Add(agent.AddedKey{PrivateKey: key}); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return func(conn io.ReadWriteCloser) { serveAgent(conn, keyring) }, nil
}

func forwardAgent(conn io.ReadWriteCloser, socket string) {
	real, err := net.Dial("unix", socket)
	if err != nil {
		_ = conn.Close() // as of an agent that is not there
		return
	}
	defer func() { _ = real.Close() }()
	serveAgent(conn, agent.NewClient(real))
}

func serveAgent(conn io.ReadWriteCloser, a agent.ExtendedAgent) {
	_ = agent.ServeAgent(signer{a}, conn) // it ends with the connection
	_ = conn.Close()
}

// serveAgents serves a job's agents until it is finished or ctx ends.
func (a *app) serveAgents(ctx context.Context, c *client.Client, job string, agents map[string]agentServer) {
	log.SetOutput(io.Discard) // where x/crypto's agent tells what it has refused, and a build may ask forever
	for id, serve := range agents {
		go func() {
			if err := c.ServeAgent(ctx, job, id, serve); err != nil && ctx.Err() == nil {
				_, _ = fmt.Fprintf(a.stderr, "runnerd: ssh agent %s: %v\n", id, err)
			}
		}()
	}
}

// signer is an agent that lists its keys and signs with them, and refuses all else. It is an ExtendedAgent for
// the flags with which RSA keys sign by SHA-2.
type signer struct{ agent.ExtendedAgent }

var errReadOnly = errors.New("a build may not change the agent")

func (signer) Add(agent.AddedKey) error   { return errReadOnly }
func (signer) Remove(ssh.PublicKey) error { return errReadOnly }
func (signer) RemoveAll() error           { return errReadOnly }
func (signer) Lock([]byte) error          { return errReadOnly }
func (signer) Unlock([]byte) error        { return errReadOnly }
func (signer) Extension(string, []byte) ([]byte, error) {
	return nil, agent.ErrExtensionUnsupported
}
