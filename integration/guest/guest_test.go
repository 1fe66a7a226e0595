//go:build integration

// Package guest runs tests of package integration in a machine with cgroup version 2 that qemu emulates. It
// needs what "make guest" leaves in bin/guest.
package guest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// timeout bounds the guest's life; half of that is usual.
const timeout = 15 * time.Minute

// tests are what runs in the guest. All of their parts must be reported as passed.
var tests = []struct {
	name  string
	parts string // run always
	more  string // run without -short
}{
	{"TestLimits", "Memory CPU PIDs ForkBomb Pool Engine", ""},
	{"TestDinDWorks", "memory_limit bridge", "build driver volume bind_mount mtu"},
	{
		"TestContainer", "Exec CancelKillsTheWholeTree StartCancelled Parallel",
		"ExitCodes NotFound Signals Stream BigEnvironment BackgroundProcessesEnd Terminal CloseIsIdempotent CloseEndsExec",
	},
	{"TestDinD", "", "Exec CancelKillsTheWholeTree CloseIsIdempotent CloseEndsExec StartCancelled Parallel"},
	{"TestOutcomes", "", "succeeds out_of_memory fork_bomb"},
	{"TestBuild", "", "."},
	{"TestClone", "", "."},
}

// choose returns the pattern for -test.run, and the results without which the guest has not passed.
func choose(short bool) (pattern string, expected []string) {
	var patterns []string
	expected = []string{"DoctorNamesModules", "Doctor", "Tests", "NoCgroupLeft"}
	for _, test := range tests {
		parts := strings.Fields(test.parts)
		if !short {
			parts = append(parts, strings.Fields(test.more)...)
		}
		if len(parts) == 0 {
			continue
		}
		if parts[0] == "." { // it has none
			patterns, expected = append(patterns, "^"+test.name+"$"), append(expected, test.name)
			continue
		}
		patterns = append(patterns, fmt.Sprintf("^%s$/^(%s)$", test.name, strings.Join(parts, "|")))
		for _, part := range parts {
			expected = append(expected, test.name+"/"+part)
		}
	}
	return strings.Join(patterns, "|"), expected
}

// result is a line of go test's about one test.
var result = regexp.MustCompile(`^\s*[0-9.]+\s+--- (PASS|FAIL|SKIP): (\S+)`)

func TestGuest(t *testing.T) {
	dir, err := filepath.Abs("../../bin/guest")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "inputs")); err != nil {
		t.Fatalf("%v: run \"make guest\"", err)
	}
	pattern, expected := choose(testing.Short())
	console := boot(t, dir, pattern)
	results := map[string]string{}
	for _, line := range console {
		if m := result.FindStringSubmatch(line); m != nil {
			results[m[2]] = m[1]
			if m[1] == "FAIL" {
				t.Errorf("%s failed", m[2])
			}
		}
	}
	for _, name := range expected {
		t.Run(name, func(t *testing.T) {
			if results[name] != "PASS" {
				t.Errorf("the guest reports %q", results[name])
			}
		})
	}
	if t.Failed() {
		t.Logf("the guest's console:\n%s", strings.Join(console, "\n"))
	}
}

// boot runs the guest until it powers off and returns what it wrote to its console, each line with the seconds
// since the start.
func boot(t *testing.T, dir, pattern string) []string {
	t.Helper()
	scratch, err := os.MkdirTemp("/var/tmp", "runnerd-guest-") // what the guest writes to its disk
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(scratch); err != nil { // qemu leaves it empty
			t.Error(err)
			os.RemoveAll(scratch)
		}
	}()
	// Software emulation: it works wherever there is a processor. The disk itself is not written to.
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-nic", "none", "-serial", "stdio",
		"-machine", "pc", "-cpu", "max", "-accel", "tcg,thread=multi,tb-size=1024", "-smp", "2", "-m", "4G",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd"),
		"-drive", "file="+filepath.Join(dir, "disk")+",if=virtio,format=raw,snapshot=on,cache=unsafe",
		"-append", "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off cgroup_no_v1=all -- "+
			"-test.v -test.short -test.timeout="+timeout.String()+" -test.run="+pattern)
	cmd.Env = append(os.Environ(), "TMPDIR="+scratch)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	runtime.LockOSThread() // a parent-death signal is bound to the thread that forked
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		t.Fatalf("start the guest: %v: run \"make guest\"", err)
	}
	began := time.Now()
	var console []string
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		line := fmt.Sprintf("%6.1f %s", time.Since(began).Seconds(), strings.TrimRight(lines.Text(), "\r"))
		if strings.Contains(line, "=== RUN") {
			t.Log(line) // how far it is
		}
		console = append(console, line)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("the guest ended with %v after %s", err, time.Since(began))
	}
	t.Logf("the guest ran for %s", time.Since(began).Round(time.Second))
	return console
}
