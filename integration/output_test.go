//go:build integration

package integration

import (
	"archive/tar"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/registry"
)

// files writes files, as name and text in turn, into a new directory.
func files(t *testing.T, namesAndTexts ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i+1 < len(namesAndTexts); i += 2 {
		path := filepath.Join(dir, namesAndTexts[i])
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(namesAndTexts[i+1]), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (d *daemon) want(code int, stderr string, args ...string) (stdout string) {
	d.t.Helper()
	stdout, errs, got := d.run(args...)
	if got != code || !strings.Contains(errs, stderr) {
		d.t.Errorf("%v: exit code %d, want %d and %q\nstdout: %.300q\nstderr: %s", args, got, code, stderr, stdout, errs[max(0, len(errs)-2000):])
	}
	return stdout
}

// entries are the names in a tar.
func entries(t *testing.T, r io.Reader) (names []string) {
	t.Helper()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return names
		} else if err != nil {
			t.Error(err)
			return names
		}
		names = append(names, h.Name)
	}
}

// TestOutputs builds files and fetches them.
func TestOutputs(t *testing.T) {
	d := startDaemon(t, "outputs: {max_bytes: 4MiB}\n")
	dir := files(t, "docker-bake.hcl", `
group "default" { targets = ["tree", "image"] }
target "tree" { output = ["type=local,dest=out/tree"] }
target "image" {
  tags   = ["x.test/image:1"]
  output = ["type=oci,dest=out/image.tar", "type=docker,dest=out/docker.tar", "type=tar,dest=out/root.tar"]
}
target "outside" { output = ["type=local,dest=../elsewhere"] }
target "link" { output = ["type=tar,dest=link/evil.tar"] }
target "linkdir" { output = ["type=local,dest=link/evil"] }
target "big" {
  dockerfile-inline = "FROM debian:bookworm-slim"
  output = ["type=tar,dest=out/big.tar"]
}
`, "Dockerfile", "FROM scratch\nCOPY file sub/\n", "file", "text")
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, ".dockerignore"), []byte("link\nout\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.want(0, "", "build", dir)
	if text, err := os.ReadFile(filepath.Join(dir, "out/tree/sub/file")); string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	for name, want := range map[string]string{"image.tar": "oci-layout", "docker.tar": "manifest.json", "root.tar": "sub/file"} {
		f, err := os.Open(filepath.Join(dir, "out", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if names := strings.Join(entries(t, f), " "); !strings.Contains(names, want) {
			t.Errorf("%s: %s", name, names)
		}
		_ = f.Close()
	}
	// The command line's outputs are anywhere.
	there := filepath.Join(t.TempDir(), "a/b")
	d.want(0, "", "build", dir, "tree", "-o", there)
	if text, err := os.ReadFile(filepath.Join(there, "sub/file")); string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	if names := entries(t, strings.NewReader(d.want(0, "", "build", dir, "tree", "-o", "-"))); len(names) == 0 || names[len(names)-1] != "sub/file" {
		t.Errorf("%v", names)
	}
	d.want(2, "name one target", "build", dir, "-o", "type=oci,dest="+there)
	// The bake file's only into the context.
	d.want(2, "outside of the context", "build", dir, "outside")
	d.want(125, "escapes", "build", dir, "link")
	d.want(125, "escapes", "build", dir, "linkdir")
	if left, _ := os.ReadDir(elsewhere); len(left) > 0 {
		t.Errorf("written outside: %v", left)
	}
	// What could not be put there can be fetched to another place, once.
	id := d.jobs()[0].ID
	if list := d.want(0, "", "outputs", id); !strings.Contains(list, "linkdir-0.local.tar") || !strings.Contains(list, "link/evil") {
		t.Errorf("list: %s", list)
	}
	d.want(0, "", "outputs", id, "-o", filepath.Join(elsewhere, "x"))
	if _, err := os.Stat(filepath.Join(elsewhere, "x/sub/file")); err != nil {
		t.Error(err)
	}
	d.want(1, "no outputs", "outputs", id, "-o", elsewhere)
	d.want(125, "outputs.max_bytes", "build", dir, "big")

	detached := strings.TrimSpace(d.want(0, "", "build", dir, "image", "--detach"))
	d.await("image", "finished")
	d.want(0, "", "outputs", detached, "-o", filepath.Join(elsewhere, "y"))
	if _, err := os.Stat(filepath.Join(elsewhere, "y/image-1.docker.tar")); err != nil {
		t.Error(err)
	}
	left, _ := filepath.Glob(filepath.Join(d.state, "outputs/*"))
	if len(left) != 1 { // that of the target "link"
		t.Errorf("outputs left: %v", left)
	}
}

func keyPair(t *testing.T) (private ed25519.PrivateKey, file string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		t.Fatal(err)
	}
	return private, filepath.Join(files(t, "key", string(pem.EncodeToMemory(block))), "key")
}

// speak asks the agent for its keys, signs with the first, and tries to remove all.
const speak = `use Socket;
sub ask { my $m = shift; socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un($ENV{SSH_AUTH_SOCK})) or die "connect: $!";
  syswrite(S, pack("N", length $m).$m); my $h; sysread(S, $h, 4); my $b; sysread(S, $b, unpack("N", $h)); close S; return $b }
my $keys = ask(chr(11)); my ($type, $n, $key) = unpack("CNN/a", $keys);
print "keys $n\n"; print "signed ", ord(ask(chr(13).pack("N/aN/aN", $key, "data", 0))), "\n"; print "removed ", ord(ask(chr(19))), "\n";`

// TestSSH forwards agents to builds: one that listens on a socket, and one made of a key file.
func TestSSH(t *testing.T) {
	d := startDaemon(t, "")
	private, file := keyPair(t)
	keyring := agent.NewKeyring()
	if err := keyring.Add(agent.AddedKey{PrivateKey: private}); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _ = agent.ServeAgent(keyring, conn); _ = conn.Close() }()
		}
	}()
	t.Setenv("SSH_AUTH_SOCK", socket)
	dir := files(t, "speak.pl", speak,
		"Dockerfile", "FROM debian:bookworm-slim\nARG ROUND\nRUN --mount=type=ssh --mount=target=/src perl /src/speak.pl\n",
		"other", "FROM debian:bookworm-slim\nARG ROUND\nRUN --mount=type=ssh,id=other --mount=target=/src perl /src/speak.pl\n")
	for name, args := range map[string][]string{
		"socket": {"--ssh", "default"}, "key": {"--ssh", "default=" + file}, "id": {"-f", "other", "--ssh", "other=" + file},
	} {
		_, stderr, code := d.run(append([]string{"build", dir, "--build-arg", "ROUND=" + name}, args...)...)
		if code != 0 || !strings.Contains(stderr, "keys 1\n") || !strings.Contains(stderr, "signed 14\n") || !strings.Contains(stderr, "removed 5\n") {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
	}
	if keys, _ := keyring.List(); len(keys) != 1 {
		t.Error("the build removed the agent's keys")
	}
	if _, stderr, code := d.run("build", dir, "-f", "other", "--ssh", "default"); code != 1 || !strings.Contains(stderr, "connect") && !strings.Contains(stderr, "agent") {
		t.Errorf("an agent that was not given: exit code %d: %s", code, stderr)
	}
	if text, _ := exec.Command("grep", "-rl", "PRIVATE KEY", filepath.Join(d.state, "queue"), filepath.Join(d.state, "logs"), filepath.Join(d.state, "workspaces")).Output(); len(text) > 0 {
		t.Errorf("a key is in %s", text)
	}
}

// privateRegistry is a registry with a password that sandboxes reach like one of another machine.
func privateRegistry(t *testing.T, user, password string) (address string) {
	t.Helper()
	const ns, gateway, host = "runnerd-it", "10.215.0.1", "10.215.0.2"
	for _, args := range [][]string{
		{"netns", "add", ns},
		{"link", "add", "rdit0", "type", "veth", "peer", "name", "rdit1", "netns", ns},
		{"addr", "add", gateway + "/30", "dev", "rdit0"},
		{"link", "set", "rdit0", "up"},
		{"-n", ns, "addr", "add", host + "/30", "dev", "rdit1"},
		{"-n", ns, "link", "set", "rdit1", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		if args[1] == "add" && args[0] == "netns" {
			t.Cleanup(func() {
				if out, err := exec.Command("ip", "netns", "delete", ns).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
	}
	type listening struct {
		net.Listener
		error
	}
	opened := make(chan listening)
	go func() { // the thread ends with the goroutine, since it stays locked
		runtime.LockOSThread()
		f, err := os.Open("/run/netns/" + ns)
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err != nil {
			opened <- listening{nil, err}
			return
		}
		l, err := net.Listen("tcp", host+":0")
		opened <- listening{l, err}
	}()
	l := <-opened
	if l.error != nil {
		t.Fatal(l.error)
	}
	r, err := registry.New(t.Context(), registry.Config{Root: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if u, p, _ := req.BasicAuth(); u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		r.Handler().ServeHTTP(w, req)
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { _ = errors.Join(server.Close(), r.Close()) })
	return l.Addr().String()
}

// TestCredentials pushes to and pulls from a registry with a password, which is nowhere to be seen.
func TestCredentials(t *testing.T) {
	const password = "c0rrect-horse-battery"
	address := privateRegistry(t, "me", password)
	d := startDaemon(t, fmt.Sprintf("builder: {insecure_registries: [%q]}\n", address))
	push := files(t, "Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
	pull := files(t, "Dockerfile", "ARG HOST\nFROM $HOST/app:1\nCOPY --from=debian:bookworm-slim /etc/debian_version /\n")
	login := func(password string) {
		auth := base64.StdEncoding.EncodeToString([]byte("me:" + password))
		text, _ := json.Marshal(map[string]any{"auths": map[string]any{address: map[string]string{"auth": auth}, "other.test": map[string]string{"auth": auth}}})
		t.Setenv("DOCKER_CONFIG", files(t, "config.json", string(text)))
	}
	refused := fmt.Sprintf("log in with 'docker login %s'", address)
	pushArgs := []string{"build", push, "--push", "-t", address + "/app:1"}
	pullArgs := []string{"build", pull, "--build-arg", "HOST=" + address}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	d.want(1, refused, pushArgs...)
	d.want(1, refused, pullArgs...)
	login("wrong-password")
	d.want(1, refused, pushArgs...)
	login(password)
	d.want(0, "", pushArgs...)
	d.want(0, "", pullArgs...)
	for _, text := range []string{password, base64.StdEncoding.EncodeToString([]byte("me:" + password))} {
		if found, _ := exec.Command("grep", "-rlF", text, filepath.Join(d.state, "queue"), filepath.Join(d.state, "logs"), filepath.Join(d.state, "workspaces")).Output(); len(found) > 0 {
			t.Errorf("the password is in %s", found)
		}
		if strings.Contains(d.log.String(), text) {
			t.Error("the password is in the daemon's log")
		}
	}
}

// TestFailureLog holds that the end of a failed step's log is told once, whatever the progress.
func TestFailureLog(t *testing.T) {
	d := startDaemon(t, "")
	dir := files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo first; echo the last words >&2; exit 3\n")
	for _, mode := range []string{"plain", "quiet", "rawjson"} {
		_, stderr, code := d.run("build", dir, "--progress", mode)
		_, block, _ := strings.Cut(stderr, "------\n")
		block, _, closed := strings.Cut(block, "------\n")
		if code != 1 || !closed || strings.Count(stderr, "------\n") != 2 || !strings.Contains(block, "RUN echo first") || strings.Count(block, "the last words\n") != 1 || !strings.Contains(stderr, "failed: process \"/bin/sh -c echo first; echo the last words >&2; exit 3\" did not complete successfully: exit code: 3") {
			t.Errorf("%s: exit code %d:\n%s", mode, code, stderr)
		}
	}
}

// TestBuildOutOfMemory kills one step of a worker for want of memory.
func TestBuildOutOfMemory(t *testing.T) {
	d := startDaemon(t, "builder: {memory: 256MiB}\n")
	dir := files(t, "docker-bake.hcl", `
group "default" { targets = ["hog", "calm"] }
target "hog" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN sleep 2; tail /dev/zero\n" }
target "calm" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN sleep 8; echo calm >/calm\n" }
target "fails" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN exit 137\n" }
`)
	stdout := d.want(137, "out of memory", "build", dir)
	if !strings.Contains(stdout, "failed (oom)") || !strings.Contains(stdout, "succeeded") {
		t.Errorf("%s", stdout)
	}
	if j := d.await("hog", "finished"); j.Result.Outcome != "failed" || j.Result.Reason != "oom" || !strings.Contains(j.Result.Message, "out of memory") {
		t.Errorf("%+v", j.Result)
	}
	if strings.Contains(d.log.String(), "builder died") {
		t.Error("the builder died too")
	}
	d.want(1, "exit code: 137", "build", dir, "fails")
	if j := d.await("fails", "finished"); j.Result.Reason != "" {
		t.Errorf("%+v", j.Result)
	}
}

// TestHostilePlan holds that the daemon goes on while it is given a build file that would use it up.
func TestHostilePlan(t *testing.T) {
	d := startDaemon(t, "")
	var values strings.Builder
	for i := range 10000 {
		fmt.Fprintf(&values, "%q,", fmt.Sprint(i))
	}
	dir := files(t, "docker-bake.hcl", "target \"default\" {\n name = \"t-${n}\"\n matrix = { n = ["+values.String()+"] }\n dockerfile-inline = \"FROM scratch\"\n}\n")
	ended := make(chan string, 1)
	go func() {
		_, stderr, code := d.runContext(context.Background(), nil, "build", dir)
		ended <- fmt.Sprint(code, stderr)
	}()
	began := time.Now()
	d.want(0, "", "run", "--", "true")
	t.Logf("a job beside it took %s", time.Since(began))
	if text := <-ended; !strings.HasPrefix(text, "2") || !strings.Contains(text, "at most 1000 targets") {
		t.Errorf("%s", text)
	}
}
