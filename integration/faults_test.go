//go:build integration

package integration

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// bystander is a job that says something every 100 ms, beside what a test does.
type bystander struct {
	cmd     *exec.Cmd
	errs    bytes.Buffer
	longest chan time.Duration // between two lines
}

const maxGap = 2 * time.Second

// startBystander starts one and returns when it speaks.
func startBystander(d *daemon) *bystander {
	d.t.Helper()
	b := &bystander{longest: make(chan time.Duration, 1)}
	b.cmd = exec.Command(d.bin, append(d.flags, "run", "--name", "bystander", "--", "sh", "-c",
		"trap 'exit 0' TERM; while :; do echo tick; sleep 0.1; done")...)
	b.cmd.Stderr = &b.errs
	stdout, err := b.cmd.StdoutPipe()
	if err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	spoken := make(chan struct{})
	go func() {
		var last time.Time
		var longest time.Duration
		for lines := bufio.NewScanner(stdout); lines.Scan(); last = time.Now() {
			if last.IsZero() {
				close(spoken)
				continue
			}
			longest = max(longest, time.Since(last))
		}
		b.longest <- longest
	}()
	select {
	case <-spoken:
	case <-time.After(time.Minute):
		d.t.Fatalf("the bystander does not start: %s", b.errs.String())
	}
	return b
}

// end ends the bystander, which must have gone on all the while, and succeed.
func (b *bystander) end(t *testing.T) {
	t.Helper()
	_ = b.cmd.Process.Signal(syscall.SIGTERM)
	longest := <-b.longest
	if err := b.cmd.Wait(); err != nil {
		t.Errorf("the bystander: %v: %s", err, b.errs.String())
	}
	if longest > maxGap {
		t.Errorf("the bystander was silent for %s", longest)
	}
	t.Logf("the bystander's longest silence: %s", longest)
}

// TestRefusedStarts starts daemons that must not start, beside one that goes on.
func TestRefusedStarts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	socket := filepath.Join(t.TempDir(), "api.sock")
	live, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()

	own := ownAddress(t)
	d := startDaemon(t, "")
	b := startBystander(d)
	missing, changed, vulnerable := copyEngines(t), copyEngines(t), copyEngines(t)
	if err := errors.Join(
		os.Remove(filepath.Join(missing, "runc")),
		os.Remove(filepath.Join(changed, "runc")),
		os.WriteFile(filepath.Join(changed, "runc"), []byte("#!/bin/sh\n"), 0o755),
	); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(vulnerable, "MANIFEST")
	text, err := os.ReadFile(manifest)
	if err == nil {
		lines := strings.Split(string(text), "\n")
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "runc ") })
		fields := strings.Fields(lines[i])
		lines[i] = "runc v1.1.11 " + fields[2]
		err = os.WriteFile(manifest, []byte(strings.Join(lines, "\n")), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}

	const apart = "network: {subnet: 10.218.0.0/16}\nuid_range: {first: 1744830464, count: 16}\n"
	for name, c := range map[string]struct {
		config string
		flags  []string
		uid    uint32
		code   int
		want   []string
		doctor string // what doctor has to say about it, if it can tell
	}{
		"registry port": {
			config: apart + fmt.Sprintf("registry: {address: \"%s\"}\n", taken.Addr()), code: 125,
			want: []string{"open the registry", taken.Addr().String(), "registry.address"},
		},
		"socket in use": {config: apart, flags: []string{"--socket", socket}, code: 125, want: []string{"another process listens on " + socket, "--socket"}},
		"not root":      {config: apart, uid: 65534, code: 2, want: []string{"must be started as root", "sudo"}},
		"no engines":    {config: apart + "engines_dir: /nonexistent\n", code: 125, want: []string{"/nonexistent/MANIFEST", "make engines"}, doctor: "make engines"},
		"engine missing": {
			config: apart + "engines_dir: " + missing + "\n", code: 125,
			want: []string{"engine runc", "no such file", "make engines"}, doctor: "engine runc",
		},
		"engine changed": {
			config: apart + "engines_dir: " + changed + "\n", code: 125,
			want: []string{"engine runc", "not the file that was built", "make engines"}, doctor: "not the file that was built",
		},
		"engine vulnerable": {
			config: apart + "engines_dir: " + vulnerable + "\n", code: 125,
			want: []string{"engine runc v1.1.11 is unsafe", "CVE-2024-21626", "fixed in v1.1.12", "make engines"}, doctor: "CVE-2024-21626",
		},
		"subnet": {
			config: "network: {subnet: 10.214.128.0/17}\nuid_range: {first: 1744830464, count: 16}\n", code: 125,
			want: []string{"10.214.128.0/17", d.state, "set network.subnet"}, doctor: "set network.subnet",
		},
		"uids": {
			config: "network: {subnet: 10.218.0.0/16}\nuid_range: {first: 1342242816, count: 1}\n", code: 125,
			want: []string{"uids 1342242816-1342308351", d.state, "set uid_range.first"}, doctor: "set uid_range.first",
		},
		"address": {
			config: "network: {subnet: " + own.Masked().String() + "}\nuid_range: {first: 1744830464, count: 16}\n", code: 125,
			want: []string{"overlaps with the address " + own.String(), "set network.subnet"}, doctor: "set network.subnet",
		},
	} {
		t.Run(name, func(t *testing.T) {
			state := stateDir(t)
			file := filepath.Join(state, "runnerd.yaml")
			config := c.config
			if !strings.Contains(config, "registry:") {
				config += "registry: {address: \":0\"}\n"
			}
			if err := os.WriteFile(file, []byte(config+"images: {preload: ["+debianOnly(t)+"]}\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			refused := newDaemon(t, d.bin, state, append([]string{"--config", file}, c.flags...)...)
			if c.uid != 0 { // the binary and the directories must be reachable for it
				refused.uid = c.uid
				refused.bin = filepath.Join(state, "runnerd")
				if out, err := exec.Command("cp", d.bin, refused.bin).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			began := time.Now()
			_, stderr, code := refused.runContext(ctx, nil, "serve")
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q is not in:\n%s", want, stderr)
				}
			}
			t.Logf("after %s: %s", time.Since(began).Round(time.Millisecond), stderr)
			if stdout, _, code := refused.run("doctor"); c.doctor != "" && (code != 1 || !strings.Contains(stdout, c.doctor)) {
				t.Errorf("doctor: exit code %d:\n%s", code, stdout)
			}
			refused.nothingLeft()
		})
	}
	if _, stderr, code := d.run("doctor"); code != 0 { // nothing stands against the one that runs
		stdout, _, _ := d.run("doctor")
		t.Errorf("doctor of the running daemon: exit code %d: %s%s", code, stdout, stderr)
	}
	b.end(t)
	// One that was killed is no hindrance to itself: neither its socket nor its table, nor what it has claimed.
	d.stop(syscall.SIGKILL)
	if _, err := os.Lstat(filepath.Join(d.state, "run/runnerd.sock")); err != nil {
		t.Errorf("there is no old socket to replace: %v", err)
	}
	d.start()
	d.want(0, "", "run", "--", "true")
}

// ownAddress is an address of the machine's with its subnet.
func ownAddress(t *testing.T) netip.Prefix {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() && !p.Addr().IsLoopback() && p.Bits() < 30 {
			return p
		}
	}
	t.Fatal("this machine has no address in a subnet")
	return netip.Prefix{}
}

// TestKilledDaemonsClaim holds that what a killed daemon has claimed is another's once nothing of it runs.
func TestKilledDaemonsClaim(t *testing.T) {
	d := startDaemon(t, "images: {preload: ["+debianOnly(t)+"]}\n")
	d.want(0, "", "run", "--name", "left behind", "--detach", "--", "sleep", "4270")
	d.await("left behind", "running")
	d.stop(syscall.SIGKILL)
	state := stateDir(t)
	config := filepath.Join(d.state, "runnerd.yaml")
	other := newDaemon(t, d.bin, state, "--config", config)
	_, stderr, code := other.run("serve")
	for _, want := range []string{"was killed", d.state, "start that one again", "network.subnet", "uid_range.first"} {
		if code != 125 || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, %q is not in %s", code, want, stderr)
		}
	}
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		left := 0
		for _, pid := range cgroupProcesses(d.instance()) {
			left++
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		if left == 0 {
			break
		}
	}
	other.start()
	other.want(0, "", "run", "--", "true")
	_, stderr, code = d.run("serve")
	if code != 125 || !strings.Contains(stderr, other.state) {
		t.Errorf("the first of the two: exit code %d: %s", code, stderr)
	}
	other.stop(syscall.SIGTERM)
	other.nothingLeft()
	d.start() // which removes what it left
}

// TestLeftVethPair starts a sandbox at an address whose veth pair, of a killed daemon's sandbox, the kernel has not yet
// removed.
func TestLeftVethPair(t *testing.T) {
	const left, address = "veth-0ad60002", "10.214.0.2" // the first that a daemon of a test gives
	for _, args := range [][]string{
		{"link", "add", left, "up", "type", "veth", "peer", "name", "rdit2"},
		{"link", "set", "rdit2", "up"},
		{"addr", "add", "10.214.0.1", "peer", address, "dev", left},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() { _ = exec.Command("ip", "link", "delete", "rdit2").Run() })
	d := startDaemon(t, "images: {preload: ["+debianOnly(t)+"]}\n")
	hosts := d.want(0, "", "run", "--", "bash", "-c", "cat /etc/hosts; exec 3<>/dev/tcp/10.214.0.1/"+registryPort(t, "10.214.0.1"))
	if !strings.Contains(hosts, address+"\t") {
		t.Errorf("the sandbox is not at %s: %s", address, hosts)
	}
	if _, err := net.InterfaceByName("rdit2"); err == nil {
		t.Error("the old pair is still there")
	}
}

// TestHostileNeighbours holds that a job goes on beside those that use up what there is.
func TestHostileNeighbours(t *testing.T) {
	d := startDaemon(t, "")
	b := startBystander(d)
	var all sync.WaitGroup
	for name, c := range map[string]struct {
		code int
		args []string
	}{
		"fork bomb":       {124, []string{"--timeout", "8s", "--", "sh", "-c", "f() { f | f & }; f; sleep 60"}},
		"out of memory":   {137, []string{"--memory", "128MiB", "--", "sh", "-c", "tail /dev/zero"}},
		"disk full":       {0, []string{"--disk", "64MiB", "--", "sh", "-c", "! head -c 200M /dev/zero >/big 2>/dev/null"}},
		"files":           {0, []string{"--disk", "64MiB", "--", "sh", "-c", "mkdir /many && cd /many && i=0; while touch $(seq -f f%g $i $((i+999))) 2>/dev/null; do i=$((i+1000)); done; test $i -gt 1000"}},
		"log flood":       {0, []string{"--detach", "--", "sh", "-c", "head -c 1G /dev/zero | tr '\\0' '\\n'"}},
		"processors":      {124, []string{"--timeout", "8s", "--", "sh", "-c", "for i in 1 2 3 4 5 6 7 8; do while :; do :; done & done; wait"}},
		"ignores SIGTERM": {124, []string{"--timeout", "3s", "--", "sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"}},
	} {
		all.Go(func() {
			began := time.Now()
			_, stderr, code := d.run(append([]string{"run", "--name", name, "--cpu", "0.2", "--memory", "256MiB"}, c.args...)...)
			if code != c.code {
				t.Errorf("%s: exit code %d, want %d: %.500s", name, code, c.code, stderr)
			}
			t.Logf("%s ended after %s", name, time.Since(began))
		})
	}
	all.Wait()
	if j := d.await("log flood", "finished"); j.Result.Outcome != "succeeded" {
		t.Errorf("the log flood: %+v", j.Result)
	}
	b.end(t)
	if j := d.await("bystander", "finished"); j.Result.Outcome != "succeeded" {
		t.Errorf("the bystander: %+v", j.Result)
	}
}

// endsWithin is how long a job may take to end once it is told to: what does not mind SIGTERM is killed.
const endsWithin = 15 * time.Second

// TestCancelTheUnwilling cancels a job whose processes ignore all signals that they can.
func TestCancelTheUnwilling(t *testing.T) {
	d := startDaemon(t, "images: {preload: ["+debianOnly(t)+"]}\n")
	d.want(0, "", "run", "--name", "unwilling", "--detach", "--", "sh", "-c",
		"trap '' TERM INT HUP QUIT USR1; setsid sh -c 'sleep 4271; sleep 4271' & while :; do sleep 4271; done")
	j := d.await("unwilling", "running")
	for deadline := time.Now().Add(10 * time.Second); len(processesWith("sleep\x004271\x00")) < 2 && time.Now().Before(deadline); {
		time.Sleep(20 * time.Millisecond)
	}
	began := time.Now()
	d.want(0, "", "cancel", "--reason", "enough of it", j.ID)
	j = d.await("unwilling", "finished")
	if took := time.Since(began); j.Result.Outcome != "cancelled" || took > endsWithin {
		t.Errorf("after %s: %+v", took, j.Result)
	}
	if left := processesWith("sleep\x004271\x00"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	t.Logf("ended after %s", time.Since(began))
}

// TestCancelBuild ends one of two builds that share a worker, in both ways that there are.
func TestCancelBuild(t *testing.T) {
	d := startDaemon(t, "")
	b := startBystander(d)
	dir := files(t, "docker-bake.hcl", `
target "long" {
  args = { ROUND = "" }
  dockerfile-inline = "FROM debian:bookworm-slim\nARG ROUND\nRUN echo $ROUND; (trap '' TERM INT; sleep 4272) & sleep 4272\n"
}
target "warm" { dockerfile-inline = "FROM debian:bookworm-slim\nRUN true\n" }
target "other" {
  args = { ROUND = "" }
  dockerfile-inline = "FROM debian:bookworm-slim\nARG ROUND\nRUN for i in 1 2 3 4 5 6 7 8; do echo $ROUND; sleep 1; done; echo done >/done\n"
}
`)
	d.want(0, "", "build", dir, "warm") // the worker is there
	builders := processesWith("buildkitd")
	for name, end := range map[string]func(client *os.Process, job string){
		"Ctrl-C": func(client *os.Process, _ string) { _ = client.Signal(syscall.SIGINT) },
		"cancel": func(_ *os.Process, job string) { d.want(0, "", "cancel", job) },
	} {
		t.Run(name, func(t *testing.T) {
			other := make(chan error, 1)
			go func() {
				_, stderr, code := d.run("build", dir, "other", "--set", "other.args.ROUND="+name)
				if code != 0 {
					other <- fmt.Errorf("exit code %d: %s", code, stderr)
				}
				close(other)
			}()
			var told time.Time
			_, stderr, code := d.runContext(t.Context(), func(p *os.Process) {
				go func() {
					deadline := time.Now().Add(time.Minute)
					for len(processesWith("sleep\x004272\x00")) < 2 && time.Now().Before(deadline) {
						time.Sleep(20 * time.Millisecond)
					}
					told = time.Now()
					end(p, d.await("long", "running").ID)
				}()
			}, "build", dir, "long", "--set", "long.args.ROUND="+name)
			took := time.Since(told)
			if code != 130 || !strings.Contains(stderr, "cancelled") {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			// BuildKit says that a step is cancelled before it has killed it.
			for len(processesWith("sleep\x004272\x00")) > 0 && time.Since(told) < 5*time.Second {
				time.Sleep(20 * time.Millisecond)
			}
			if left := processesWith("sleep\x004272\x00"); len(left) > 0 || took > 5*time.Second {
				t.Errorf("ended after %s, with %d steps left", took, len(left))
			}
			t.Logf("ended after %s: %s", took, stderr[max(0, len(stderr)-200):])
			if j := d.await("long", "finished"); j.Result.Outcome != "cancelled" {
				t.Errorf("%+v", j.Result)
			}
			if err := <-other; err != nil {
				t.Errorf("the other build: %v", err)
			}
		})
	}
	if now := processesWith("buildkitd"); !slices.Equal(now, builders) {
		t.Errorf("the worker is another: %v, then %v", builders, now)
	}
	b.end(t)
}

// smallDisk mounts a file system of a size, and returns its directory.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	dir := stateDir(t)
	image, mounted := filepath.Join(dir, "image"), filepath.Join(dir, "mounted")
	for _, args := range [][]string{
		{"truncate", "-s", size, image},
		{"mkfs.ext4", "-q", "-m", "0", "-N", "20000", image},
		{"mkdir", mounted},
		{"mount", "-o", "loop", image, mounted},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", mounted).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return mounted
}

// fill takes all the room of a disk and returns what gives it back.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	name := filepath.Join(dir, "filler")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 1<<20); len(block) > 0; {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// startDaemonOnDisk starts a daemon whose state directory lies on a disk of a size, and returns the disk's directory too.
func startDaemonOnDisk(t *testing.T, size, config string) (*daemon, string) {
	t.Helper()
	disk := smallDisk(t, size)
	state := filepath.Join(disk, "state")
	if err := os.Mkdir(state, 0o711); err != nil {
		t.Fatal(err)
	}
	bin, err := filepath.Abs("../bin/runnerd")
	if err != nil {
		t.Fatal(err)
	}
	return startDaemonIn(t, bin, state, config), disk
}

// TestFullStateDisk fills the disk of the state directory under a daemon: what runs goes on, new jobs are refused,
// and all is well again when there is room.
func TestFullStateDisk(t *testing.T) {
	d, disk := startDaemonOnDisk(t, "700M", "images: {preload: ["+debianOnly(t)+"]}\n")
	d.want(0, "", "run", "--", "true") // the image is unpacked
	b := startBystander(d)
	type ended struct {
		stdout, stderr string
		code           int
	}
	ends := make(chan ended, 1)
	go func() {
		var e ended
		e.stdout, e.stderr, e.code = d.run("run", "--name", "ends meanwhile", "--", "sh", "-c", "echo one; sleep 6; echo two; exit 7")
		ends <- e
	}()
	d.await("ends meanwhile", "running")
	context := files(t, "Dockerfile", "FROM debian:bookworm-slim\n", "more", strings.Repeat("more", 1<<20))

	empty := fill(t, disk)
	for name, args := range map[string][]string{
		"run": {"run", "--", "true"}, "dind": {"run", "--sandbox", "container/dind", "--", "true"}, "build": {"build", context},
	} {
		_, stderr, code := d.run(args...)
		if code != 125 || !strings.Contains(stderr, "make room") {
			t.Errorf("%s: exit code %d: %s", name, code, stderr)
		}
		t.Logf("%s: %s", name, stderr)
	}
	if e := <-ends; e.code != 7 || e.stdout != "one\ntwo\n" {
		t.Errorf("what ended on a full disk: exit code %d: %q %s", e.code, e.stdout, e.stderr)
	}
	d.want(0, "", "jobs")
	empty()

	d.want(0, "", "run", "--", "true")
	b.end(t)
	for _, name := range []string{"ends meanwhile", "bystander"} {
		j := d.await(name, "finished")
		t.Logf("%s: %+v", name, j.Result)
	}
	for _, bad := range []string{"panic", "the result of a job"} {
		if strings.Contains(d.log.String(), bad) {
			t.Errorf("%s", d.log)
		}
	}
	d.stop(syscall.SIGKILL) // what was told is also written down
	d.start()
	if j := d.await("ends meanwhile", "finished"); j.Result.Outcome != "failed" {
		t.Errorf("after the next start: %+v", j.Result)
	}
}

// cgroupProcesses are the processes in the cgroup of an instance, on v1 or v2.
func cgroupProcesses(instance string) (pids []int) {
	for _, root := range []string{"/sys/fs/cgroup/pids/", "/sys/fs/cgroup/"} {
		_ = filepath.WalkDir(root+instance, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == "cgroup.procs" {
				text, _ := os.ReadFile(path)
				for field := range strings.FieldsSeq(string(text)) {
					if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
						pids = append(pids, pid)
					}
				}
			}
			return nil
		})
	}
	return pids
}

// processesWith are the processes whose command line contains text.
func processesWith(text string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		if cmdline, _ := os.ReadFile(file); strings.Contains(string(cmdline), text) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func (d *daemon) instance() string {
	sum := sha256.Sum256([]byte(d.state))
	return "runnerd-" + hex.EncodeToString(sum[:4])
}

// stateDir is one whose registry has the images already, as a daemon finds it that has run before.
func stateDir(t *testing.T) string {
	t.Helper()
	state, err := os.MkdirTemp("/var/tmp", "runnerd-daemon-")
	if err == nil {
		err = os.Chmod(state, 0o711)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	if err := linkTree(host.preloaded, filepath.Join(state, "registry")); err != nil {
		t.Fatal(err)
	}
	return state
}

// copyEngines is a directory with links to the engines and a manifest of its own.
func copyEngines(t *testing.T) string {
	t.Helper()
	from, err := filepath.Abs("../bin/engines")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	entries, err := os.ReadDir(from)
	for _, e := range entries {
		if e.Name() != "MANIFEST" {
			err = errors.Join(err, os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())))
		}
	}
	text, readErr := os.ReadFile(filepath.Join(from, "MANIFEST"))
	if err := errors.Join(err, readErr, os.WriteFile(filepath.Join(dir, "MANIFEST"), text, 0o644)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// debianOnly is an OCI layout that has nothing but the image of jobs, for daemons with little room or time.
func debianOnly(t *testing.T) string {
	t.Helper()
	from, err := filepath.Abs("../bin/images")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var index map[string]any
	text, err := os.ReadFile(filepath.Join(from, "index.json"))
	if err == nil {
		err = json.Unmarshal(text, &index)
	}
	if err != nil {
		t.Fatal(err)
	}
	manifests, _ := index["manifests"].([]any)
	index["manifests"] = slices.DeleteFunc(manifests, func(m any) bool {
		text, _ := json.Marshal(m)
		return !strings.Contains(string(text), `"`+debian+`"`)
	})
	text, err = json.Marshal(index)
	if err := errors.Join(err,
		os.WriteFile(filepath.Join(dir, "index.json"), text, 0o644),
		os.Symlink(filepath.Join(from, "oci-layout"), filepath.Join(dir, "oci-layout")),
		os.Symlink(filepath.Join(from, "blobs"), filepath.Join(dir, "blobs")),
	); err != nil {
		t.Fatal(err)
	}
	return dir
}
