//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// daemon is a runnerd of the test's own, the real binary.
type daemon struct {
	t     *testing.T
	bin   string
	state string
	flags []string
	uid   uint32 // of the command line, if not root
	cmd   *exec.Cmd
	log   *bytes.Buffer
	// before is what traces there were of others.
	before []string
}

// newDaemon returns a daemon that is not started. What is there now, it need not clean up.
func newDaemon(t *testing.T, bin, state string, flags ...string) *daemon {
	return &daemon{t: t, bin: bin, state: state, flags: append(flags, "--state-dir", state), before: traces()}
}

// traces are what daemons leave on a machine that does not say whose it is: the machine's ends of veth pairs, which
// go with the network namespaces at the other end.
func traces() (all []string) {
	interfaces, _ := net.Interfaces()
	for _, i := range interfaces {
		if strings.HasPrefix(i.Name, "veth") {
			all = append(all, "interface "+i.Name)
		}
	}
	return all
}

// newTraces are those that were not there before, a moment after the end: the kernel takes its time to remove a
// network namespace.
func (d *daemon) newTraces() (left []string) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		left = slices.DeleteFunc(traces(), func(trace string) bool { return slices.Contains(d.before, trace) })
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// startDaemon starts a daemon that is stopped, and looked after, at the end of the test.
func startDaemon(t *testing.T, config string) *daemon {
	t.Helper()
	bin, err := filepath.Abs("../bin/runnerd")
	if err != nil {
		t.Fatal(err)
	}
	return startDaemonIn(t, bin, stateDir(t), config)
}

func startDaemonIn(t *testing.T, bin, state, config string) *daemon {
	t.Helper()
	return startMirror(t, bin, state, "", config)
}

// startMirror starts a daemon that mirrors upstreams, in YAML; no test asks a registry of the outside.
func startMirror(t *testing.T, bin, state, upstreams, config string) *daemon {
	t.Helper()
	file := filepath.Join(state, "runnerd.yaml")
	text := "network: {subnet: 10.214.0.0/16}\nuid_range: {first: 1342177280}\nregistry: {address: \":0\", mirror: {upstreams: [" + upstreams + "]}}\ndrain: 2s\n" + config
	if !strings.Contains(config, "spare:") {
		text += "spare: {keep: 0s}\n" // tests look for what is left of a job while the daemon runs
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, bin, state, "--config", file)
	d.start()
	t.Cleanup(func() {
		d.stop(syscall.SIGTERM)
		d.nothingLeft()
	})
	return d
}

func (d *daemon) start() {
	d.t.Helper()
	d.log = &bytes.Buffer{}
	d.cmd = exec.Command(d.bin, append(d.flags, "serve")...)
	d.cmd.Stderr = d.log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if _, _, code := d.run("jobs"); code == 0 {
			return
		}
	}
	d.t.Fatalf("the daemon does not answer:\n%s", d.log)
}

// stop ends the daemon with a signal and waits for it.
func (d *daemon) stop(signal syscall.Signal) {
	d.t.Helper()
	_ = d.cmd.Process.Signal(signal)
	done := make(chan struct{})
	go func() {
		_ = d.cmd.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(90 * time.Second):
		_ = d.cmd.Process.Kill()
		d.t.Errorf("the daemon does not end on %s:\n%s", signal, d.log)
	}
}

// run runs one command of the command line.
func (d *daemon) run(args ...string) (stdout, stderr string, code int) {
	return d.runContext(d.t.Context(), nil, args...)
}

func (d *daemon) runContext(ctx context.Context, started func(*os.Process), args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, d.bin, append(d.flags, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if d.uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: d.uid, Gid: d.uid}}
	}
	err := cmd.Start()
	if err == nil {
		if started != nil {
			started(cmd.Process)
		}
		err = cmd.Wait()
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		d.t.Errorf("%v: %v", args, err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// jobs are the newest jobs, as --json tells them.
func (d *daemon) jobs() []job {
	d.t.Helper()
	stdout, stderr, code := d.run("jobs", "--all", "--json")
	var all []job
	if err := json.Unmarshal([]byte(stdout), &all); err != nil || code != 0 {
		d.t.Fatalf("jobs: %v, exit code %d: %s", err, code, stderr)
	}
	return all
}

type job struct {
	ID, Name, State string
	Result          struct{ Outcome, Reason, Message string }
}

// nothingLeft asserts that a stopped daemon has left nothing on the machine but its state.
func (d *daemon) nothingLeft() {
	d.t.Helper()
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, d.state) {
			left = append(left, "mount "+strings.Fields(line)[4])
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if file, _ := os.ReadFile(l); strings.Contains(string(file), d.state) {
			left = append(left, "loop "+string(file))
		}
	}
	left = append(left, d.newTraces()...)
	scratch, _ := filepath.Glob(filepath.Join(d.state, "disks/scratch/*"))
	left = append(left, scratch...)
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if text, _ := os.ReadFile(p); strings.Contains(string(text), d.state) {
			left = append(left, p+" "+strings.ReplaceAll(string(text), "\x00", " "))
		}
	}
	instance := d.instance()
	for _, pattern := range []string{"/sys/fs/cgroup/*/", "/sys/fs/cgroup/"} {
		for _, name := range []string{instance, instance + ".shims"} {
			groups, _ := filepath.Glob(pattern + name)
			left = append(left, groups...)
		}
	}
	for _, file := range []string{"/run/runnerd-claims/" + instance + ".json", "/run/" + instance + ".shims"} {
		if _, err := os.Lstat(file); err == nil {
			left = append(left, file)
		}
	}
	if tables, _ := exec.Command("nft", "list", "tables").Output(); strings.Contains(string(tables), instance) {
		left = append(left, "nftables table "+instance)
	}
	if len(left) > 0 {
		log := d.log.String()
		d.t.Errorf("left behind:\n%s\nthe end of its log:\n%s", strings.Join(left, "\n"), log[max(0, len(log)-4<<10):])
	}
}

// TestOutcomes gives a daemon what goes wrong in real life, and looks at what the user is told.
func TestOutcomes(t *testing.T) {
	d := startDaemon(t, "")
	empty, bad := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"Dockerfile":      "FROM debian:bookworm-slim\nRUNN true\n",
		"missing.hcl":     "target \"default\" {\n  args = { A = NOSUCH }\n}\n",
		"noimage":         "FROM no-such-image:1\n",
		"frontend":        "# syntax=evil/frontend:1\nFROM scratch\n",
		"outside.hcl":     "target \"default\" {\n  context = \"../..\"\n}\n",
		"privileged.json": `{"target": {"default": {"dockerfile": "noimage", "entitlements": ["security.insecure"]}}}`,
	} {
		if err := os.WriteFile(filepath.Join(bad, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		args   []string
		code   int
		stdout string // part of it
		stderr string
	}{
		"succeeds":              {[]string{"run", "--", "sh", "-c", "echo out; echo err >&2"}, 0, "out\n", "err\n"},
		"script fails":          {[]string{"run", "--", "sh", "-c", "exit 3"}, 3, "", ""},
		"command not found":     {[]string{"run", "--", "no-such-command"}, 127, "", "no-such-command"},
		"out of memory":         {[]string{"run", "--memory", "64MiB", "--", "sh", "-c", "tail /dev/zero"}, 137, "", "out of memory"},
		"timeout":               {[]string{"run", "--timeout", "1s", "--", "sleep", "60"}, 124, "", "timeout"},
		"ignores SIGTERM":       {[]string{"run", "--timeout", "1s", "--", "sh", "-c", "trap '' TERM; while :; do sleep 1; done"}, 124, "", "timeout"},
		"image does not exist":  {[]string{"run", "--image", "no-such-image:1", "--", "true"}, 3, "", "no-such-image"},
		"too big":               {[]string{"run", "--memory", "1000GiB", "--", "true"}, 3, "", "memory"},
		"nesting denied":        {[]string{"run", "--sandbox", "container/dind/container", "--", "true"}, 3, "", "denied"},
		"fork bomb":             {[]string{"run", "--timeout", "5s", "--", "sh", "-c", "f() { f | f & }; f; sleep 60"}, 124, "", "timeout"},
		"disk full":             {[]string{"run", "--disk", "64MiB", "--", "sh", "-c", "! head -c 200M /dev/zero >/big 2>/dev/null && echo full"}, 0, "full", ""},
		"no Dockerfile":         {[]string{"build", empty}, 2, "", "Dockerfile does not exist"},
		"Dockerfile not parsed": {[]string{"build", bad}, 2, "", "Dockerfile:2"},
		"variable missing":      {[]string{"build", "-f", "missing.hcl", bad}, 2, "", "NOSUCH"},
		"no such base image":    {[]string{"build", "-f", "noimage", bad}, 1, "", "no-such-image"},
		"foreign frontend":      {[]string{"build", "-f", "frontend", bad}, 2, "", "evil/frontend"},
		"context outside":       {[]string{"build", "-f", "outside.hcl", bad}, 2, "", "outside"},
		"entitlement":           {[]string{"build", "-f", "privileged.json", bad}, 2, "", "security.insecure"},
		"no such job":           {[]string{"logs", "nosuchjob"}, 1, "", "nosuchjob"},
	} {
		t.Run(name, func(t *testing.T) {
			stdout, stderr, code := d.run(c.args...)
			if code != c.code || !strings.Contains(stdout, c.stdout) || !strings.Contains(stderr, c.stderr) {
				t.Errorf("got exit code %d, want %d\nstdout: %.500q, want %q\nstderr: %.1000s\nwant: %q", code, c.code, stdout, c.stdout, stderr, c.stderr)
			}
		})
	}
	for _, j := range d.jobs() {
		if j.State != "finished" {
			t.Errorf("job %s (%s) is %s", j.ID, j.Name, j.State)
		}
	}
	if _, stderr, code := d.runOther("--state-dir", d.state, "serve"); code == 0 || !strings.Contains(stderr, "another runnerd") {
		t.Errorf("a second daemon on one state directory: exit code %d: %s", code, stderr)
	}
}

// runOther runs the binary without the daemon's own flags.
func (d *daemon) runOther(args ...string) (stdout, stderr string, code int) {
	other := &daemon{t: d.t, bin: d.bin}
	return other.run(args...)
}

func TestUnknownConfigurationKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("policy:\n  max_dept: 9\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	bin, _ := filepath.Abs("../bin/runnerd")
	d := &daemon{t: t, bin: bin}
	if _, stderr, code := d.run("config", "check", file); code != 2 || !strings.Contains(stderr, ":2:3") || !strings.Contains(stderr, "max_dept") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// TestInterrupts holds that what a client leaves behind ends: Ctrl-C, a killed client, a cancelled job.
func TestInterrupts(t *testing.T) {
	d := startDaemon(t, "")
	for name, signal := range map[string]syscall.Signal{"ctrl-c": syscall.SIGINT, "killed": syscall.SIGKILL} {
		t.Run(name, func(t *testing.T) {
			d.runContext(t.Context(), func(p *os.Process) {
				go func() {
					d.await("sleep 4242", "running")
					_ = p.Signal(signal)
				}()
			}, "run", "--name", "sleep 4242", "--", "sleep", "4242")
			d.await("sleep 4242", "finished")
		})
	}
	t.Run("cancel", func(t *testing.T) {
		stdout, stderr, code := d.run("run", "--name", "sleep 4243", "--detach", "--", "sleep", "4243")
		id := strings.TrimSpace(stdout)
		if code != 0 || id == "" {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		d.await("sleep 4243", "running")
		if _, stderr, code := d.run("cancel", id); code != 0 {
			t.Errorf("cancel: exit code %d: %s", code, stderr)
		}
		if j := d.await("sleep 4243", "finished"); j.Result.Outcome != "cancelled" {
			t.Errorf("outcome %q", j.Result.Outcome)
		}
	})
}

// await waits until the newest job of a name is in a state.
func (d *daemon) await(name, state string) job {
	d.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, j := range d.jobs() {
			if j.Name != name {
				continue
			}
			if j.State == state {
				return j
			}
			break
		}
	}
	d.t.Errorf("no job %q comes to be %s", name, state)
	return job{}
}

// TestDisjointUIDs runs 20 jobs at once and compares the host ids that their roots are.
func TestDisjointUIDs(t *testing.T) {
	d := startDaemon(t, "capacity: {cpu: 40, memory: 20GiB, jobs: 40}\n")
	var mu sync.Mutex
	seen := map[string]bool{}
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			stdout, stderr, code := d.run("run", "--cpu", "0.5", "--memory", "128MiB", "--", "sh", "-c", "cat /proc/self/uid_map; sleep 3")
			fields := strings.Fields(stdout)
			if code != 0 || len(fields) != 3 || fields[2] != "65536" {
				t.Errorf("exit code %d: %q %s", code, stdout, stderr)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if seen[fields[1]] {
				t.Errorf("two jobs have the host ids from %s", fields[1])
			}
			seen[fields[1]] = true
		})
	}
	all.Wait()
}

// TestSpare has a second job get what the first one made known: a sandbox that is ready, unless its image has changed.
func TestSpare(t *testing.T) {
	d := startDaemon(t, "spare: {size: 1}\n")
	image := "registry.runnerd.internal:" + registryPort(t, "10.214.0.1") + "/team/spare"
	build := func(version string) {
		t.Helper()
		if _, stderr, code := d.run("build", "--push", "-t", image, files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN echo "+version+" >/version\n")); code != 0 {
			t.Fatal(stderr)
		}
	}
	run := func() (version string, pooled bool) {
		t.Helper()
		stdout, stderr, code := d.run("run", "--image", image, "--", "sh", "-c", "cat /version /etc/hostname")
		lines := strings.Fields(stdout)
		if code != 0 || len(lines) != 2 {
			t.Fatalf("exit code %d: %q %s", code, stdout, stderr)
		}
		return lines[0], strings.HasPrefix(lines[1], "pool-")
	}
	becomesPooled := func(want string) {
		t.Helper()
		for range 50 {
			version, pooled := run()
			if version != want {
				t.Fatalf("the job has version %s of its image, want %s", version, want)
			}
			if pooled {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Error("no job got a sandbox of the pool")
	}
	build("one")
	if version, pooled := run(); version != "one" || pooled {
		t.Errorf("the first job: version %s, pooled %v", version, pooled)
	}
	becomesPooled("one")
	build("two")
	becomesPooled("two")
}

// TestKilledDaemon kills the daemon under running jobs, and looks for what is left after its next start.
func TestKilledDaemon(t *testing.T) {
	d := startDaemon(t, "pool: [{sandbox: container, size: 2}]\n")
	for i := range 2 {
		if _, stderr, code := d.run("run", "--name", fmt.Sprintf("sleep %d", 4250+i), "--detach", "--", "sleep", fmt.Sprint(4250+i)); code != 0 {
			t.Fatal(stderr)
		}
		d.await(fmt.Sprintf("sleep %d", 4250+i), "running")
	}
	d.stop(syscall.SIGKILL)
	// As when the daemon was killed while it killed a job, whose processes it had frozen for that.
	frozen := 0
	for _, f := range [][2]string{{"freezer/%s/*/freezer.state", "FROZEN"}, {"%s/*/cgroup.freeze", "1"}} {
		files, _ := filepath.Glob("/sys/fs/cgroup/" + fmt.Sprintf(f[0], d.instance()))
		for _, file := range files {
			if err := os.WriteFile(file, []byte(f[1]), 0o644); err != nil {
				t.Fatal(err)
			}
			frozen++
		}
	}
	if frozen < 2 {
		t.Errorf("%d sandboxes were frozen, of two jobs and those in the pool", frozen)
	}
	// As when it was killed while it looked into an image, and while a shim started.
	for _, dir := range []string{filepath.Join(d.state, "run/tmp/containerd-mount1"), "/run/" + d.instance() + ".shims/no-one's"} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	d.start()
	for i := range 2 {
		j := d.await(fmt.Sprintf("sleep %d", 4250+i), "finished")
		if j.Result.Outcome != "errored" || j.Result.Reason != "interrupted" {
			t.Errorf("%s: %+v", j.Name, j.Result)
		}
	}
	if stdout, stderr, code := d.run("run", "--", "echo", "again"); code != 0 || stdout != "again\n" {
		t.Errorf("exit code %d: %q %s", code, stdout, stderr)
	}
}

// TestStoppedDaemon stops the daemon with a job running: it has the drain time, then it is cancelled.
func TestStoppedDaemon(t *testing.T) {
	d := startDaemon(t, "")
	if _, stderr, code := d.run("run", "--name", "sleep 4260", "--detach", "--", "sleep", "4260"); code != 0 {
		t.Fatal(stderr)
	}
	d.await("sleep 4260", "running")
	d.stop(syscall.SIGTERM)
	d.nothingLeft()
	d.start()
	if j := d.await("sleep 4260", "finished"); j.Result.Outcome != "cancelled" || j.Result.Reason != "shutdown" {
		t.Errorf("%+v", j.Result)
	}
}

// TestLogFlood writes 1 GiB to a log, of which the beginning and the end are kept.
func TestLogFlood(t *testing.T) {
	d := startDaemon(t, "")
	stdout, stderr, code := d.run("run", "--detach", "--", "sh", "-c", "echo first; head -c 1G /dev/zero | tr '\\0' x; echo; echo last")
	if code != 0 {
		t.Fatal(stderr)
	}
	log, stderr, code := d.run("logs", "-f", strings.TrimSpace(stdout))
	if code != 0 || !strings.HasPrefix(log, "first\n") {
		t.Errorf("exit code %d: %.100q %s", code, log, stderr)
	}
	log, _, _ = d.run("logs", strings.TrimSpace(stdout))
	if len(log) > 20<<20 || !strings.Contains(log[max(0, len(log)-200):], "last\n") {
		t.Errorf("the log has %d bytes and ends with %q", len(log), log[max(0, len(log)-100):])
	}
}
