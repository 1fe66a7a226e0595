package buildkit

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
)

// testDenied holds that the worker denies what Read does, should a plan come another way.
func testDenied(t *testing.T, d *daemon) {
	for flag, want := range map[string]string{"--security=insecure": "security.insecure is not allowed", "--network=host": "network.host is not allowed"} {
		b := Build{Dir: t.TempDir(), Target: "default", Plan: Plan{Targets: map[string]Target{"default": {
			Context: ".", DockerfileInline: "FROM debian:bookworm-slim\nRUN " + flag + " echo ran\n",
		}}}}
		ran := false
		_, err := b.Run(t.Context(), d.Client, func(s *client.SolveStatus) { ran = ran || len(s.Logs) > 0 })
		if err == nil || ran || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v", flag, err)
		}
	}
	// A frontend in the Dockerfile is not even looked for.
	b := Build{Dir: t.TempDir(), Target: "default", Plan: Plan{Targets: map[string]Target{"default": {
		Context: ".", DockerfileInline: "# syntax=" + d.registry + "/evil/frontend:1\nFROM scratch\nENV A=1\n",
	}}}}
	if _, err := b.Run(t.Context(), d.Client, nil); err != nil || d.asked("evil/frontend") != 0 {
		t.Errorf("# syntax: %v, %d requests", err, d.asked("evil/frontend"))
	}
	b.Plan.Targets["default"] = Target{Context: ".", DockerfileInline: "FROM scratch", Args: map[string]string{"BUILDKIT_SYNTAX": d.registry + "/evil/frontend:1"}}
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || !strings.Contains(err.Error(), "denied") {
		t.Errorf("BUILDKIT_SYNTAX: %v", err)
	}
	_, err := d.Solve(t.Context(), nil, client.SolveOpt{Frontend: "gateway.v0", FrontendAttrs: map[string]string{"source": d.registry + "/evil/frontend:1"}}, nil)
	if err == nil || d.asked("evil/frontend") != 0 {
		t.Errorf("gateway.v0: %v, %d requests", err, d.asked("evil/frontend"))
	}
}

func testFailures(t *testing.T, d *daemon) {
	for text, want := range map[string]struct {
		code    int
		message string
	}{
		"FROM debian:bookworm-slim\nRUN false || exit 42\n":                                          {42, "exit code: 42"},
		"FROM debian:bookworm-slim\nRUN sh -c 'kill -9 $$'; exit $?\n":                               {137, "exit code: 137"},
		"FROM debian:bookworm-slim\nCOPY nowhere /\n":                                                {1, "\"/nowhere\": not found"},
		"FROM debian:bookworm-slim\nRUN echo No space left on device; exit 2\n":                      {2, "raise builder.disk"},
		"FROM debian:bookworm-slim\nRUN no-such-command\n":                                           {127, "exit code: 127"},
		"FROM " + d.registry + "/no/image:1\nRUN true\n":                                             {1, "image " + d.registry + "/no/image:1 does not exist, or its registry does not give it out: check FROM in Dockerfile:1"},
		"FROM debian:bookworm-slim\nCOPY --from=" + d.registry + "/no/b:1 / /\n":                     {1, "image " + d.registry + "/no/b:1 does not exist"},
		"FROM debian:bookworm-slim\nRUN --mount=type=secret,id=x,required=true cat /run/secrets/x\n": {1, "x: not found"},
	} {
		b := workspace(t, "Dockerfile", text)
		_, err := b.Run(t.Context(), d.Client, nil)
		var step *StepError
		if !errors.As(err, &step) || step.Code != want.code || !strings.Contains(err.Error(), want.message) || step.Step == "" {
			t.Errorf("%q: got %v (%+v), want %+v", text, err, step, want)
		}
	}
}

func testCancel(t *testing.T, d *daemon) {
	b := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo here && sleep 600\n")
	why := errors.New("the user went away")
	ctx, cancel := context.WithCancelCause(t.Context())
	began := time.Now()
	_, err := b.Run(ctx, d.Client, func(s *client.SolveStatus) {
		if len(s.Logs) > 0 {
			began = time.Now()
			cancel(why)
		}
	})
	if took := time.Since(began); !errors.Is(err, why) || took > 10*time.Second {
		t.Errorf("got %v after %s", err, took)
	}
}

// testGone holds that a build whose worker goes away is not the user's failure.
func testGone(t *testing.T, d *daemon) {
	var mu sync.Mutex
	var conns []net.Conn
	gone := false
	c, err := client.New(t.Context(), "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if gone {
			return nil, syscall.ECONNREFUSED
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
		conns = append(conns, conn)
		return conn, err
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo here and then && sleep 600\n")
	_, err = b.Run(t.Context(), c, func(s *client.SolveStatus) {
		if len(s.Logs) > 0 {
			mu.Lock()
			defer mu.Unlock()
			gone = true
			for _, conn := range conns {
				_ = conn.Close()
			}
		}
	})
	var step *StepError
	if err == nil || errors.As(err, &step) || !strings.Contains(err.Error(), "the builder is gone") {
		t.Errorf("got %v", err)
	}
}
