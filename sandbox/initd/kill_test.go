package initd

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

var errStop = errors.New("no longer wanted")

func TestCancelKillsTheTree(t *testing.T) {
	c, _ := startInit(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	began := time.Now()
	_, err := c.Exec(ctx, sandbox.Process{
		Args: []string{"sh", "-c", `trap '' TERM INT HUP; (trap '' TERM; sleep 9471) & (sleep 9472 & sleep 9473) &
			setsid sleep 9474 & setsid sh -c 'sleep 9475 & sleep 9476' & (setsid sleep 9477 >/dev/null &) ; sleep 0.1; echo ready; sleep 9478`},
		Stdout: &onWrite{do: func() { cancel(errStop); began = time.Now() }},
	})
	if err != errStop {
		t.Errorf("got %v, want the cause itself", err)
	}
	// 9477 has left both the session and its parent: it is the sandbox's to end.
	if left := sleepers(t, c); left != "sleep 9477 \n" && left != "" {
		t.Errorf("alive: %s", left)
	}
	t.Logf("%s from the cancellation to the return", time.Since(began))
	if _, err := c.Exec(ctx, sandbox.Process{Args: []string{"true"}}); err != errStop {
		t.Errorf("cancelled before: %v", err)
	}
}

func sleepers(t *testing.T, c *Client) string {
	stdout, _, _ := sh(t, c, `for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null <$p/cmdline | grep '^sleep 94' ; done; true`)
	return stdout
}

func TestWhatIsLeftInTheSessionEnds(t *testing.T) {
	c, _ := startInit(t)
	began := time.Now()
	stdout, _, exit := sh(t, c, `trap '' HUP TERM; sleep 9481 & (sleep 9482 & sleep 9483 &) ; echo started`)
	if stdout != "started\n" || !exit.Success() || time.Since(began) > drainTimeout {
		t.Errorf("%q, %v after %s", stdout, exit, time.Since(began))
	}
	if left := sleepers(t, c); left != "" {
		t.Errorf("alive: %s", left)
	}
}
