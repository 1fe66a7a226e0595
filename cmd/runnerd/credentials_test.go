package main

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/docker/cli/cli/config"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

// TestCredentials holds that only registries that the build names are given theirs.
func TestCredentials(t *testing.T) {
	docker, bin := t.TempDir(), t.TempDir()
	write(t, docker, map[string]string{"config.json": `{
  "auths": {"one.test": {"auth": "bWU6cGFzc3dvcmQ="}, "other.test": {"auth": "bWU6cGFzc3dvcmQ="}, "https://index.docker.io/v1/": {"auth": "aHViOnNlY3JldA=="}},
  "credHelpers": {"two.test": "test"}
}`})
	write(t, bin, map[string]string{"docker-credential-test": "#!/bin/sh\necho '{\"ServerURL\":\"two.test\",\"Username\":\"<token>\",\"Secret\":\"an identity\"}'\n"})
	if err := os.Chmod(filepath.Join(bin, "docker-credential-test"), 0o755); err != nil {
		t.Fatal(err)
	}
	config.SetDir(docker)
	defer config.SetDir("/nonexistent")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "ARG HOST\nFROM $HOST/a AS x\nFROM busybox\n"})
	settings := t.TempDir()
	write(t, settings, map[string]string{"runnerd.yaml": "engines_dir: " + filepath.Dir(testPlanner(t).program) + "\n"})
	a := &app{configPath: filepath.Join(settings, "runnerd.yaml"), stderr: &buffer{}}
	b := api.Build{Tags: []string{"two.test/app"}, BuildArgs: map[string]string{"HOST": "one.test"}}
	for push, want := range map[bool]map[string]api.Credentials{
		false: {"one.test": {Username: "me", Password: "password"}, "docker.io": {Username: "hub", Password: "secret"}},
		true:  {"one.test": {Username: "me", Password: "password"}, "docker.io": {Username: "hub", Password: "secret"}, "two.test": {Password: "an identity"}},
	} {
		b.Push = push
		got, err := a.credentials(t.Context(), dir, b)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("push %t: %v, %v", push, got, err)
		}
	}
}

// TestCredentialsOfAJob holds that credentials are in what is kept in memory and masked, not in the payload.
func TestCredentialsOfAJob(t *testing.T) {
	plan := buildkit.Plan{Targets: map[string]buildkit.Target{"a": {Images: []string{"one.test/x"}}}, Build: []string{"a"}}
	bd := builder{read: func(context.Context, buildkit.Input) (buildkit.Plan, error) { return plan, nil }}
	targets, err := bd.Plan(t.Context(), t.TempDir(), api.Build{
		Registries: map[string]api.Credentials{"one.test": {Username: "me", Password: "pass:word"}, "other.test": {Username: "you", Password: "other"}},
		Secrets:    map[string][]byte{"s": []byte("value")},
	})
	if err != nil || len(targets) != 1 {
		t.Fatal(targets, err)
	}
	if text := string(targets[0].Request.Payload); strings.Contains(text, "word") || strings.Contains(text, "bWU6") || strings.Contains(text, "other") {
		t.Errorf("payload: %s", text)
	}
	var p buildPayload
	if err := json.Unmarshal(targets[0].Request.Payload, &p); err != nil {
		t.Fatal(err)
	}
	masked := runner.NewMask(targets[0].Secrets).String("pass:word bWU6cGFzczp3b3Jk other")
	if strings.Contains(masked, "word") || strings.Contains(masked, "bWU6") || !strings.Contains(masked, "other") {
		t.Errorf("masked: %s", masked)
	}
	auth, secrets, err := p.secrets(targets[0].Secrets)
	if err != nil || auth["one.test"] != (buildkit.Credentials{Username: "me", Password: "pass:word"}) || len(auth) != 1 || string(secrets["s"]) != "value" {
		t.Errorf("%v, %v, %v", auth, secrets, err)
	}
}
