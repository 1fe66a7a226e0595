package dind

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/runnerd/runnerd/sandbox"
)

// Where things are in an engine's container: on /dev no image has anything. The others are dockerd's own choices
// (moby, daemon/command/daemon.go and daemon/config).
const (
	lenderPath       = "/dev/.runnerd-lend"
	loansPath        = "/dev/.runnerd-loans"
	containerdSocket = "/var/run/docker/containerd/containerd.sock"
	containerdRoot   = DataRoot + "/containerd/daemon"
	imageNamespace   = "moby"
)

var errNoEngine = errors.New("the engine does not run")

// Borrow has the machine lend an image to the engine. See sandbox.Borrower.
//
// The engine's containerd is written to in the engine's container, by a program that is given nothing but what is lent:
// root of the sandbox, which may be the job, can change all that the program sees.
func (e *engine) Borrow(ctx context.Context, ref string, how sandbox.Pull) error {
	e.mu.Lock()
	member := e.member
	e.mu.Unlock()
	if member == nil {
		return errNoEngine
	}
	lender, ok := sandbox.As[sandbox.Lender](e.host)
	if !ok {
		return fmt.Errorf("%T lends nothing", e.host)
	}
	loan, err := lender.Lend(ctx, ref, how)
	if err != nil {
		return err
	}
	input, err := json.Marshal(loan)
	if err != nil {
		return err
	}
	log := sandbox.NewTail(4096)
	exit, err := member.Exec(ctx, sandbox.Process{
		Args:  []string{lenderPath, containerdSocket, imageNamespace, containerdRoot, loansPath},
		Stdin: bytes.NewReader(input), Stdout: log, Stderr: log,
	})
	if err == nil && !exit.Success() {
		err = fmt.Errorf("%s: %s", exit, log)
	}
	if err != nil {
		return fmt.Errorf("lend %s to the engine: %w", ref, err)
	}
	return nil
}
