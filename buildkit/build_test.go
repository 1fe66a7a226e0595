package buildkit

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/client"
)

// TestBuild builds on a real buildkitd. Its cases share one and run in order, with names of their own.
func TestBuild(t *testing.T) {
	d := startDaemon(t)
	for _, c := range []struct {
		name string
		test func(*testing.T, *daemon)
	}{
		{"parallel", testParallel},
		{"workspaces apart", testWorkspacesApart},
		{"contents", testContents},
		{"ignore", testIgnore},
		{"linked", testLinked},
		{"push", testPush},
		{"credentials", testCredentials},
		{"outputs", testOutputs},
		{"platforms", testPlatforms},
		{"cache", testCache},
		{"record", testRecord},
		{"provenance", testProvenance},
		{"ssh", testSSH},
		{"denied", testDenied},
		{"failures", testFailures},
		{"cancel", testCancel},
		{"gone", testGone},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, d) })
	}
}

// testParallel builds targets that share a base, each as a job of its own, one of which fails.
func testParallel(t *testing.T, d *daemon) {
	b := workspace(
		t, "docker-bake.hcl", `
group "default" { targets = ["app", "broken"] }
target "base" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN sleep 1; cat /proc/sys/kernel/random/uuid >/id\nENV FROM_BASE=yes\n" }
target "app" {
  name     = "app-${n}"
  matrix   = { n = ["0", "1", "2", "3"] }
  contexts = { base = "target:base" }
  args     = { N = n }
  output   = ["type=local"]
}
target "broken" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN echo about to fail; exit 3\n" }
`, "Dockerfile", "FROM base AS build\nARG N\nRUN test \"$FROM_BASE\" = yes && echo $N >/n\nFROM scratch\nCOPY --from=build /id /n /\n")
	var wait sync.WaitGroup
	began := time.Now()
	for _, target := range b.Plan.Build {
		wait.Go(func() {
			result, err := b.of(target).Run(t.Context(), d.Client, nil)
			var step *StepError
			if target != "broken" {
				if err != nil || result.Steps != 3 || result.Duration <= 0 {
					t.Errorf("%s: %+v, %v", target, result, err)
				}
			} else if !errors.As(err, &step) || step.Code != 3 || step.Log != "about to fail" || !strings.Contains(step.Step, "RUN echo about to fail; exit 3") {
				t.Errorf("broken: got %#v", err)
			}
		})
	}
	wait.Wait()
	ids := map[string]bool{}
	for i, target := range numbered("app-%d", 4) {
		files := local(t, b, target)
		ids[files["id"]] = true
		if n := files["n"]; n != fmt.Sprintln(i) {
			t.Errorf("%s: argument %q", target, n)
		}
	}
	if len(ids) != 1 {
		t.Errorf("the shared base was built %d times", len(ids))
	}
	cold := time.Since(began)
	began = time.Now()
	for _, target := range numbered("app-%d", 4) {
		if result := d.run(t, b.of(target)); result.Steps != 3 || result.Cached != result.Steps {
			t.Errorf("%s: the second time %d of %d steps were cached", target, result.Cached, result.Steps)
		}
	}
	t.Logf("5 targets cold, in parallel: %s; 4 cached, one after another: %s", cold, time.Since(began))
}

// testWorkspacesApart builds at the same time what looks the same but for the files.
func testWorkspacesApart(t *testing.T, d *daemon) {
	const n = 6
	var wait sync.WaitGroup
	for i := range n {
		text := fmt.Sprint("workspace ", i)
		b := workspace(
			t, "docker-bake.hcl", "target \"default\" {\n output = [\"type=local\"]\n contexts = { more = \"more\" }\n}",
			"Dockerfile", "FROM scratch\nCOPY file /\nCOPY --from=more file /more\n", "file", text, "more/file", text)
		wait.Go(func() {
			if _, err := b.Run(t.Context(), d.Client, nil); err != nil {
				t.Error(err)
			} else if files := local(t, b, "default"); files["file"] != text || files["more"] != text {
				t.Errorf("workspace %d got the files %q", i, files)
			}
		})
	}
	wait.Wait()
}

func testContents(t *testing.T, d *daemon) {
	const canary = "s3cret-canary"
	b := workspace(
		t, "docker-bake.hcl", `
target "default" {
  args   = { WHO = "world" }
  labels = { who = "label" }
  annotations = ["manifest:org.test.note=noted"]
  tags   = ["registry.test/contents:1"]
  secret = ["id=token"]
  extra-hosts = { somewhere = "192.0.2.7" }
  output = ["type=oci,dest=out/image.tar"]
}`, "Dockerfile", `# syntax=docker/dockerfile:1
FROM debian:bookworm-slim
ARG WHO
RUN --mount=type=secret,id=token test "$(wc -c </run/secrets/token)" = 13
RUN grep "192.0.2.7.*somewhere" /etc/hosts && echo hello $WHO >/hello && test ! -e /run/secrets/token
`)
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || !strings.Contains(err.Error(), `secret "token" has no value`) {
		t.Errorf("without its secret: %v", err)
	}
	b.Secrets = map[string][]byte{"token": []byte(canary), "other": []byte("not asked for")}
	result := d.run(t, b)
	if len(result.Outputs) != 1 || result.Outputs[0].Dest != "out/image.tar" || result.Steps != 2 {
		t.Errorf("got %+v", result)
	}
	blobs := untar(t, output(t, b, "default-0.oci.tar"))
	var index v1.IndexManifest
	decode(t, blobs["index.json"], &index)
	if got := index.Manifests[0].Digest.String(); got != result.Digest {
		t.Errorf("the tar holds %s, the result says %s", got, result.Digest)
	}
	var manifest v1.Manifest
	decode(t, blobs["blobs/sha256/"+index.Manifests[0].Digest.Hex], &manifest)
	if manifest.Annotations["org.test.note"] != "noted" {
		t.Errorf("annotations %v", manifest.Annotations)
	}
	var config v1.ConfigFile
	decode(t, blobs["blobs/sha256/"+manifest.Config.Digest.Hex], &config)
	if config.Config.Labels["who"] != "label" {
		t.Errorf("labels %v", config.Config.Labels)
	}
	for name, blob := range blobs {
		if bytes.Contains(blob, []byte(canary)) {
			t.Errorf("the secret is in %s", name)
		}
	}
}

func testIgnore(t *testing.T, d *daemon) {
	b := workspace(
		t, "docker-bake.hcl", `
group "default" { targets = ["a", "b"] }
target "a" { output = ["type=local"] }
target "b" {
  dockerfile = "b.Dockerfile"
  output = ["type=local"]
}
`, "Dockerfile", "FROM scratch\nCOPY . /\n", "b.Dockerfile", "FROM scratch\nCOPY . /\n",
		".dockerignore", "*.log\n", "b.Dockerfile.dockerignore", "*\n!x.log\n", "x.log", "", "file", "")
	for target, want := range map[string]string{"a": "file true, log false", "b": "file false, log true"} {
		d.run(t, b.of(target))
		files := local(t, b, target)
		_, file := files["file"]
		_, log := files["x.log"]
		got := fmt.Sprintf("file %t, log %t", file, log)
		if got != want {
			t.Errorf("%s: got %s, want %s", target, got, want)
		}
	}
}

// testLinked links targets whose contexts are different directories, and a Dockerfile that is a link.
func testLinked(t *testing.T, d *daemon) {
	b := workspace(
		t, "docker-bake.hcl", `
group "default" { targets = ["top"] }
target "left" { context = "left" }
target "right" {
  context  = "right"
  contexts = { left = "target:left" }
}
target "top" {
  context  = "top"
  contexts = {
    left  = "target:left"
    right = "target:right"
    extra = "left"
  }
  output = ["type=local"]
}
`, "left/Dockerfile", "FROM scratch\nCOPY file /left\n", "left/file", "l",
		"right/Dockerfile", "FROM left\nCOPY file /right\n", "right/file", "r",
		"shared/Dockerfile", "FROM right\nCOPY file /top\nCOPY --from=left left /again\nCOPY --from=extra file /extra\n", "top/Dockerfile", "-> ../shared/Dockerfile", "top/file", "t")
	d.run(t, b.of("top"))
	files := local(t, b, "top")
	for file, want := range map[string]string{"left": "l", "right": "r", "top": "t", "again": "l", "extra": "l"} {
		if got := files[file]; got != want {
			t.Errorf("%s: got %q, want %q", file, got, want)
		}
	}
}

func testPush(t *testing.T, d *daemon) {
	b := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo pushed >/file\n")
	target := b.Plan.Targets["default"]
	b.Push = true
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || !strings.Contains(err.Error(), "give the target a tag") {
		t.Errorf("without a tag: %v", err)
	}
	target.Tags = []string{d.registry + "/push/app:1", d.registry + "/push/app:2"}
	target.Outputs = []Option{{Type: "oci"}}
	b.Plan.Targets["default"] = target
	result := d.run(t, b)
	for _, tag := range target.Tags {
		ref, err := name.ParseReference(tag)
		if err != nil {
			t.Fatal(err)
		}
		if head, err := remote.Head(ref); err != nil || head.Digest.String() != result.Digest {
			t.Errorf("%s: %v, %v, want %s", tag, head, err, result.Digest)
		}
	}
	if len(result.Outputs) != 1 || len(output(t, b, result.Outputs[0].Name)) == 0 {
		t.Errorf("beside the push: %v", result.Outputs)
	}
	target.Tags = []string{"127.0.0.1:1/nobody/listens:1"}
	b.Plan.Targets["default"] = target
	var step *StepError
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || errors.As(err, &step) {
		t.Errorf("a push to nowhere: %v, which is not the user's failure", err)
	}
}

// testCredentials pushes to, and starts from, what is behind a password.
func testCredentials(t *testing.T, d *daemon) {
	private := d.registry + "/private/app:1"
	push := workspace(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo pushed >/file\n")
	target := push.Plan.Targets["default"]
	target.Tags = []string{private}
	push.Plan.Targets["default"], push.Push = target, true
	pull := workspace(t, "Dockerfile", "FROM "+private+"\nRUN grep pushed /file\n")
	for _, password := range []string{"", "wrong", "s3cret-password"} {
		if password != "" {
			push.Auth = map[string]Credentials{d.registry: {"me", password}}
			pull.Auth = push.Auth
		}
		for what, b := range map[string]Build{"push": push, "pull": pull} {
			if what == "pull" && password == "s3cret-password" {
				d.run(t, push)
			}
			_, err := b.Run(t.Context(), d.Client, nil)
			var step *StepError
			if password == "s3cret-password" {
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
			} else if !errors.As(err, &step) || !strings.Contains(err.Error(), "log in with 'docker login "+d.registry+"'") {
				t.Errorf("%s with the password %q: %T: %v", what, password, err, err)
			}
		}
	}
}

func testOutputs(t *testing.T, d *daemon) {
	b := workspace(
		t, "docker-bake.hcl", `target "default" {
  tags = ["registry.test/outputs:1"]
  output = ["type=docker,dest=docker.tar", "type=tar,dest=root.tar", "type=local,dest=tree"]
}`, "Dockerfile", "FROM scratch\nCOPY file /\n", "file", "text")
	d.run(t, b)
	if !bytes.Contains(untar(t, output(t, b, "default-0.docker.tar"))["manifest.json"], []byte("registry.test/outputs:1")) {
		t.Error("docker.tar: no tag")
	}
	if got := untar(t, output(t, b, "default-1.tar.tar"))["file"]; string(got) != "text" {
		t.Errorf("root.tar: %q", got)
	}
	if files := local(t, b, "default"); files["file"] != "text" {
		t.Errorf("tree: %q", files)
	}
	full := errors.New("the outputs are full")
	b.Create = func(string) (io.WriteCloser, error) { return nil, full }
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || !strings.Contains(err.Error(), full.Error()) {
		t.Errorf("without room: %v", err)
	}
}

// testPlatforms links targets of two platforms.
func testPlatforms(t *testing.T, d *daemon) {
	b := workspace(
		t, "docker-bake.hcl", `
group "default" { targets = ["app"] }
target "base" {
  platforms = ["linux/amd64", "linux/arm64"]
  dockerfile-inline = "FROM scratch\nARG TARGETARCH\nENV ARCH=$TARGETARCH\nCOPY file /base\n"
}
target "app" {
  platforms = ["linux/amd64", "linux/arm64"]
  contexts = { base = "target:base" }
  output = ["type=oci,dest=app.tar"]
}`, "Dockerfile", "FROM base\nCOPY file /app\n", "file", "text")
	result := d.run(t, b)
	blobs := untar(t, output(t, b, b.Target+"-0.oci.tar"))
	var top, index v1.IndexManifest
	decode(t, blobs["index.json"], &top)
	if top.Manifests[0].Digest.String() != result.Digest {
		t.Errorf("digest %s, want %s", result.Digest, top.Manifests[0].Digest)
	}
	decode(t, blobs["blobs/sha256/"+top.Manifests[0].Digest.Hex], &index)
	if len(index.Manifests) != 2 {
		t.Fatalf("%d manifests", len(index.Manifests))
	}
	for _, m := range index.Manifests {
		var manifest v1.Manifest
		decode(t, blobs["blobs/sha256/"+m.Digest.Hex], &manifest)
		var config v1.ConfigFile
		decode(t, blobs["blobs/sha256/"+manifest.Config.Digest.Hex], &config)
		if env := strings.Join(config.Config.Env, " "); !strings.Contains(env, "ARCH="+config.Architecture) || config.Architecture != m.Platform.Architecture {
			t.Errorf("%s: %s, %s", m.Platform, config.Architecture, env)
		}
	}
}

// testCache builds from a cache in a registry what the worker has forgotten.
func testCache(t *testing.T, d *daemon) {
	ref := d.registry + "/cache/app:cache"
	b := workspace(t, "docker-bake.hcl", fmt.Sprintf(`target "default" {
  cache-to = ["type=registry,ref=%s,mode=max"]
  cache-from = ["type=registry,ref=%[1]s"]
}`, ref), "Dockerfile", "FROM debian:bookworm-slim\nRUN cat /proc/sys/kernel/random/uuid >/cached\n")
	d.run(t, b)
	if err := d.Prune(t.Context(), nil, client.PruneAll); err != nil {
		t.Fatal(err)
	}
	if result := d.run(t, b); result.Cached != 1 || result.Steps != 1 {
		t.Errorf("%d of %d steps came from the registry's cache", result.Cached, result.Steps)
	}
}

func testProvenance(t *testing.T, d *daemon) {
	b := workspace(t, "docker-bake.hcl", `target "default" {
  attest = ["type=provenance,mode=max"]
  output = ["type=oci,dest=app.tar"]
}`, "Dockerfile", "FROM scratch\nCOPY file /\n", "file", "text")
	d.run(t, b)
	found := false
	for _, blob := range untar(t, output(t, b, b.Target+"-0.oci.tar")) {
		found = found || bytes.Contains(blob, []byte("https://slsa.dev/provenance/"))
	}
	if !found {
		t.Error("no provenance in the image")
	}
}

func testSSH(t *testing.T, d *daemon) {
	b := workspace(t, "docker-bake.hcl", `target "default" { ssh = ["default"] }`,
		"Dockerfile", "FROM debian:bookworm-slim\nRUN --mount=type=ssh test -S \"$SSH_AUTH_SOCK\"\n")
	if _, err := b.Run(t.Context(), d.Client, nil); err == nil || !strings.Contains(err.Error(), `ssh agent "default" is not there`) {
		t.Errorf("without an agent: %v", err)
	}
	b.SSH = map[string]Dial{"default": func(context.Context) (net.Conn, error) { near, _ := net.Pipe(); return near, nil }}
	d.run(t, b)
}

// output is what a build of b has written; local are the files of target's "local" output.
func output(t testing.TB, b Build, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(b.Dir, "..", "out", name))
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

func local(t testing.TB, b Build, target string) map[string]string {
	t.Helper()
	matches, _ := filepath.Glob(filepath.Join(b.Dir, "..", "out", target+"-*.local.tar"))
	files := map[string]string{}
	for _, path := range matches {
		for name, text := range untar(t, output(t, b, filepath.Base(path))) {
			files[name] = string(text)
		}
	}
	return files
}

func untar(t testing.TB, text string) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	r := tar.NewReader(strings.NewReader(text))
	for {
		header, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		} else if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t testing.TB, text []byte, into any) {
	t.Helper()
	if err := json.Unmarshal(text, into); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
}
