package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDevGitLab starts it, looks at it as people and scripts do, and ends it.
func TestDevGitLab(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write(".gitlab-ci.yml", "build:\n  script: [make]\n  tags: [docker]\n")
	t.Setenv("TMPDIR", t.TempDir())
	var stdout, stderr buffer
	a := &app{stdin: &bytes.Buffer{}, stdout: &stdout, stderr: &stderr}
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- a.execute(ctx, []string{"dev", "gitlab", dir, "--run", "--json"}) }()
	var welcome struct{ URL, Token, Register string }
	for deadline := time.Now().Add(10 * time.Second); welcome.URL == "" && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		_ = json.Unmarshal([]byte(stdout.String()), &welcome)
	}
	if !strings.HasPrefix(welcome.Token, "glrt-") || !strings.Contains(welcome.Register, welcome.Token) {
		t.Fatalf("%+v %s", welcome, stderr.String())
	}
	call := func(method, path, accept string) (int, string) {
		t.Helper()
		r, err := http.NewRequest(method, welcome.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		res, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	for deadline := time.Now().Add(10 * time.Second); !strings.Contains(stderr.String(), "pending") && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	for accept, want := range map[string]string{
		"*/*": "waits for a runner", "application/json": `"name": "build"`, "text/html,*/*": `<a href="/jobs/`,
	} {
		if status, text := call("GET", "/", accept); status != 200 || !strings.Contains(text, want) {
			t.Errorf("%s: %d %s", accept, status, text)
		}
	}
	if status, text := call("POST", "/dev/pipelines", "*/*"); status != 201 || !strings.Contains(text, `"id": 3`) {
		t.Errorf("%d %s", status, text)
	}
	if status, text := call("POST", "/dev/jobs/2/cancel", "*/*"); status != 204 {
		t.Errorf("%d %s", status, text)
	}
	if status, text := call("POST", "/dev/jobs/2/play", "*/*"); status != 409 {
		t.Errorf("%d %s", status, text)
	}
	if status, _ := call("POST", "/dev/jobs/99/cancel", "*/*"); status != 404 {
		t.Errorf("%d", status)
	}
	if status, text := call("POST", "/dev/jobs/2/retry", "*/*"); status != 204 {
		t.Errorf("%d %s", status, text)
	}
	if status, text := call("GET", "/dev/project/-/jobs/2", "text/html"); status != 200 || !strings.Contains(text, "build") {
		t.Errorf("%d %s", status, text)
	}
	cancel()
	if got := <-code; got != 0 {
		t.Errorf("exit code %d: %s", got, stderr.String())
	}
	if left, _ := os.ReadDir(os.Getenv("TMPDIR")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if _, err := http.Get(welcome.URL); err == nil {
		t.Error("it still listens")
	}
}

func TestDevGitLabUsage(t *testing.T) {
	dir := t.TempDir()
	faults := filepath.Join(dir, "faults.json")
	if err := os.WriteFile(faults, []byte(`{"faults": [{"on": "nothing"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{filepath.Join(dir, "missing")}, {faults}, {dir, "--variable", "KEY"}, {dir, "--faults", faults}, {dir, "--run"},
	} {
		var out bytes.Buffer
		a := &app{stdin: &bytes.Buffer{}, stdout: &out, stderr: &out}
		if code := a.execute(t.Context(), append([]string{"dev", "gitlab"}, args...)); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, out.String())
		}
	}
}

func TestProjectName(t *testing.T) {
	for dir, want := range map[string]string{"/a/my project": "my-project", "/": "project", "/x/y.git": "y", "/.hidden": "hidden"} {
		if got := projectName(dir); got != want {
			t.Errorf("%s: %s", dir, got)
		}
	}
}
