//go:build integration

package buildkit

import (
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/scope"
)

func untrusted(project string) scope.Scope {
	return scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Untrusted}
}

// mustLease leases a scope's worker and says how long that took.
func mustLease(t *testing.T, ws *Workers, of scope.Scope) *Lease {
	t.Helper()
	began := time.Now()
	l, err := ws.Lease(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("worker of %s ready after %s", of, time.Since(began))
	return l
}

// run builds a Dockerfile with a worker and returns what its steps wrote.
func run(t *testing.T, l *Lease, b Build) (Result, string) {
	t.Helper()
	var log strings.Builder
	result, err := b.Run(t.Context(), l.Client, func(s *client.SolveStatus) {
		for _, line := range s.Logs {
			log.Write(line.Data)
		}
	})
	if err != nil {
		t.Fatalf("build: %v\n%s", err, log.String())
	}
	return result, log.String()
}

const cachedSteps = `FROM debian:bookworm-slim
RUN cat /proc/sys/kernel/random/uuid >/id
COPY Dockerfile /copied
RUN --mount=type=cache,target=/cache,id=c echo trusted-file >/cache/file; date >/date
`

// TestClone has an untrusted scope build on what the trusted one of its project has, and try to change it.
func TestClone(t *testing.T) {
	m := newRealMachine(t)
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	b := workspace(t, "Dockerfile", cachedSteps)
	l := mustLease(t, ws, trusted("p"))
	cold, _ := run(t, l, b)
	t.Logf("cold: %+v", cold)
	for name, end := range map[string]func(){
		"with the trusted worker running": func() {},
		"with none":                       func() { _ = l.Close(t.Context()); waitGone(t, ws, trusted("p")) },
	} {
		t.Run(name, func(t *testing.T) {
			end()
			u := mustLease(t, ws, untrusted("p"))
			defer waitGone(t, ws, untrusted("p"))
			defer u.Close(t.Context())
			warm, _ := run(t, u, b)
			if warm.Cached != warm.Steps || warm.Steps != 3 || warm.Digest != cold.Digest {
				t.Errorf("an untrusted build is not warm: %+v, the trusted one %+v", warm, cold)
			}
			_, log := run(t, u, workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN --mount=type=cache,target=/cache,id=c cat /cache/file; echo po''ison >/cache/file; echo po''ison >>/cache/more\n"))
			if !strings.Contains(log, "trusted-file") {
				t.Errorf("an untrusted build does not see the cache mount: %s", log)
			}
		})
	}
}

func waitGone(t *testing.T, ws *Workers, of scope.Scope) {
	t.Helper()
	eventually(t, "the worker of "+of.String()+" ends", func() bool {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		return ws.all[of] == nil && ws.ending[of] == nil
	})
}
