//go:build integration

package integration

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/buildkit/planfile"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

func newWorkers(t *testing.T) *buildkit.Workers {
	if err := host.container.Pull(t.Context(), engine); err != nil { // which may take longer than a start may
		t.Fatal(err)
	}
	engines, err := filepath.Abs("../bin/engines")
	if err != nil {
		t.Fatal(err)
	}
	ws := buildkit.NewWorkers(buildkit.WorkersConfig{
		Open: func(ctx context.Context, spec sandbox.Spec) (sandbox.Sandbox, error) {
			return host.container.StartEngine(ctx, spec)
		},
		Image: engine, Mirror: fmt.Sprintf("%s:%d", host.container.Gateway(), host.port),
		Registry: fmt.Sprintf("registry.runnerd.internal:%d", host.port), RegistryAddress: host.container.Gateway().String(),
		Cloner: filepath.Join(engines, "runnerd-clone"), KeepBytes: 4 << 30, IdleTimeout: time.Minute, Log: slog.Default(),
	})
	t.Cleanup(func() {
		ws.Close()
		if left := host.leftovers("builder-"); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return ws
}

func TestBuild(t *testing.T) {
	dir := t.TempDir()
	tag := fmt.Sprintf("registry.runnerd.internal:%d/it/app:1", host.port)
	for name, text := range map[string]string{
		"docker-bake.hcl": `
variable "TAG" { default = "unset" }
group "default" { targets = ["base", "app", "broken"] }
target "base" { dockerfile = "base.Dockerfile" }
target "app" {
  contexts = { base = "target:base" }
  args = { WHO = "world" }
  tags = [TAG]
  secret = ["type=env,id=token,env=TOKEN"]
}
target "broken" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN exit 3\n" }
`,
		"base.Dockerfile": "FROM debian:bookworm-slim\nRUN echo base >/base\nENV FROM_BASE=1\n",
		"Dockerfile":      "# syntax=docker/dockerfile:1\nFROM base\nARG WHO\nRUN --mount=type=secret,id=token test \"$(cat /run/secrets/token)\" = s3cret && test \"$FROM_BASE\" = 1 && test ! -e /run/secrets/nothing && echo hello $WHO >/hello\nCOPY Dockerfile /src\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	plan, err := planfile.Read(t.Context(), buildkit.Input{Dir: dir, Vars: map[string]string{"TAG": tag}})
	if err != nil {
		t.Fatal(err)
	}
	if len(plan.Build) != 3 {
		t.Fatalf("targets: %v", plan.Build)
	}
	ws := newWorkers(t)
	began := time.Now()
	lease, err := ws.Lease(t.Context(), trusted("it"))
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Close(context.Background())
	t.Logf("worker ready after %s", time.Since(began))
	run := func(target string) (buildkit.Result, error) {
		b := buildkit.Build{
			Dir: dir, Plan: plan.Closure(target), Target: target, Push: target == "app",
			Secrets: map[string][]byte{"token": []byte("s3cret")}, Insecure: func(string) bool { return true },
		}
		return b.Run(t.Context(), lease.Client, func(*client.SolveStatus) {})
	}
	cold, err := run("app")
	if err != nil {
		t.Fatal(err)
	}
	warm, err := run("app")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("cold %+v\nwarm %+v", cold, warm)
	if cold.Digest == "" || cold.Digest != warm.Digest || warm.Cached == 0 || warm.Cached != warm.Steps {
		t.Errorf("the second build was not all cached, or another image")
	}
	var step *buildkit.StepError
	if _, err := run("broken"); !errors.As(err, &step) || step.Code != 3 {
		t.Errorf("broken: got %v, want exit code 3", err)
	}
}

// TestClone builds in an untrusted scope on what the trusted one of its project has.
func TestClone(t *testing.T) {
	ws := newWorkers(t)
	lease := func(of scope.Scope) *buildkit.Lease {
		t.Helper()
		began := time.Now()
		l, err := ws.Lease(t.Context(), of)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("worker of %s ready after %s", of, time.Since(began))
		return l
	}
	run := func(l *buildkit.Lease, step string) (buildkit.Result, string) {
		t.Helper()
		dir := files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN --mount=type=cache,target=/cache "+step+"\n")
		plan, err := planfile.Read(t.Context(), buildkit.Input{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		var log strings.Builder
		b := buildkit.Build{Dir: dir, Plan: plan, Target: "default", Insecure: func(string) bool { return true }}
		result, err := b.Run(t.Context(), l.Client, func(s *client.SolveStatus) {
			for _, line := range s.Logs {
				log.Write(line.Data)
			}
		})
		if err != nil {
			t.Fatalf("%v: %s", err, log.String())
		}
		return result, log.String()
	}
	const first, poison = "echo trusted-file >/cache/file", "cat /cache/file; echo poison >/cache/file"
	up := lease(trusted("clone"))
	defer up.Close(t.Context())
	run(up, first)
	of := trusted("clone")
	of.Trust = scope.Untrusted
	down := lease(of)
	defer down.Close(t.Context())
	if result, _ := run(down, first); result.Steps != 1 || result.Cached != 1 {
		t.Errorf("an untrusted build is not warm: %+v", result)
	}
	if _, log := run(down, poison); log != "trusted-file\n" {
		t.Errorf("an untrusted build reads %q from the cache mount", log)
	}
	if result, log := run(up, poison); result.Cached != 0 || log != "trusted-file\n" {
		t.Errorf("a trusted build reads %q from the cache mount: %+v", log, result)
	}
}

func trusted(project string) scope.Scope {
	return scope.Scope{Forge: scope.Local, Project: project, Trust: scope.Trusted}
}
