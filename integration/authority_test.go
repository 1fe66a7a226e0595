//go:build integration

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
)

// TestNoAuthority holds that nothing in a sandbox has a capability in the machine's user namespace.
//
// CapEff in /proc/PID/status does not tell: it is the set that a process has in its own user namespace, and root
// of a sandbox has all of them there. In the machine's namespace a process of another one has none, whatever
// CapEff says (cap_capable in security/commoncap.c goes up from the namespace that is asked for, and finds the
// process's own only below it); that no process of a sandbox is in the machine's is what assertUnprivileged looks
// at. So what is measured here is what a process can do: what root of the machine can, as the control shows, root
// of a sandbox cannot, from three places. "namespace" is a process that has entered nothing of the sandbox but
// its user namespace, with all its capabilities: no seccomp filter, no mount, PID or network namespace stands
// before the machine, so that a refusal is the user namespace's. "job" is a job's process as root, "privileged"
// one in a container to which the job's engine gives all that it has to give.
func TestNoAuthority(t *testing.T) {
	sb, err := openDinD(t.Context(), "no-authority")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sb.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	below, ok := sandbox.As[*container.Sandbox](sb)
	if !ok {
		t.Fatal("no container sandbox below the engine")
	}
	dir := stateDir(t)
	probe := filepath.Join(dir, "probe")
	build := exec.Command("go", "build", "-tags", "integration", "-o", probe, "./probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	env := probeTargets(t, dir)

	run := func(cmd *exec.Cmd) ([]byte, error) {
		cmd.Env = append(os.Environ(), append(env, "TMPDIR=/dev/shm")...)
		return cmd.Output()
	}
	inside := func(stdin []byte, args ...string) ([]byte, error) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		var out, errs bytes.Buffer
		exit, err := sb.Exec(ctx, sandbox.Process{Args: args, Stdin: bytes.NewReader(stdin), Stdout: &out, Stderr: &errs, User: "0"})
		if err == nil && !exit.Success() {
			err = fmt.Errorf("%v: %s", exit, errs.String())
		}
		return out.Bytes(), err
	}
	program, err := os.ReadFile(probe)
	if err == nil {
		_, err = inside(program, "sh", "-c", "cat >/workspace/probe && chmod 755 /workspace/probe")
	}
	if err != nil {
		t.Fatal(err)
	}
	docker := []string{"docker", "run", "--rm", "--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "-v", "/workspace:/w", "-v", "/dev:/dev"}
	for _, e := range env {
		docker = append(docker, "-e", e)
	}
	results := map[string]map[string]string{}
	for place, try := range map[string]func() ([]byte, error){
		"machine": func() ([]byte, error) { return run(exec.Command(probe)) },
		"namespace": func() ([]byte, error) {
			return run(exec.Command("nsenter", "--user", "--target", strconv.Itoa(below.PIDs()[0]), "--setuid", "0", "--setgid", "0", probe))
		},
		"job": func() ([]byte, error) {
			return inside(nil, append(append([]string{"env"}, env...), "/workspace/probe")...)
		},
		"privileged": func() ([]byte, error) { return inside(nil, append(docker, debian, "/w/probe")...) },
	} {
		out, err := try()
		var result map[string]string
		if err == nil {
			err = json.Unmarshal(out, &result)
		}
		if err != nil {
			t.Fatalf("%s: %v: %s", place, err, out)
		}
		results[place] = result
	}

	everywhere := []string{"namespace", "job", "privileged"}
	outside := []string{"namespace"} // in the sandbox it is about the sandbox's own, where it is allowed
	for name, places := range map[string][]string{
		"write core_pattern":      everywhere,
		"write a cgroup's limit":  everywhere,
		"sethostname":             outside,
		"setns":                   outside,
		"make a device":           everywhere,
		"open a device":           everywhere,
		"open /dev/mem":           everywhere,
		"mount a device":          everywhere,
		"chown outside the range": everywhere,
		"signal a process":        everywhere,
		"read a process's memory": everywhere,
		"load bpf":                everywhere,
		"load a module":           everywhere,
		"set the clock":           everywhere,
		"raise the priority":      everywhere,
		"open by handle":          everywhere,
		"set up an interface":     outside,
	} {
		t.Run(name, func(t *testing.T) {
			for _, place := range places {
				if got, tried := results[place][name]; !tried || got == "" {
					t.Errorf("%s: it is not refused", place)
				} else {
					t.Logf("%s: %s", place, got)
				}
			}
			switch control, tried := results["machine"][name]; {
			case !tried:
				t.Error("not tried")
			case strings.Contains(control, unix.ENOSYS.Error()) || strings.Contains(control, unix.ENOENT.Error()):
				t.Skipf("this machine has no such thing: %s", control)
			case control != "":
				t.Errorf("the control, root of the machine: %s", control)
			}
		})
	}
	for name := range results["machine"] {
		if !slices.Contains(slices.Collect(maps.Keys(results["job"])), name) {
			t.Errorf("%s is not tried in the sandbox", name)
		}
	}
	assertUnprivileged(t, below)
}

// probeTargets makes what the probe is to reach for, and returns its environment: a block device with a file
// system, a process of the machine's root, and a limit of the sandbox's own.
func probeTargets(t *testing.T, dir string) []string {
	t.Helper()
	image := filepath.Join(dir, "image")
	for _, args := range [][]string{{"truncate", "-s", "4M", image}, {"mkfs.ext4", "-q", image}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	out, err := exec.Command("losetup", "--find", "--show", image).Output()
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	var st unix.Stat_t
	if err := unix.Stat(device, &st); err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "300")
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sleep.Process.Kill(); _ = sleep.Wait() })
	limits, _ := filepath.Glob("/sys/fs/cgroup/memory/" + host.name + "/no-authority/memory.limit_in_bytes")
	limits2, _ := filepath.Glob("/sys/fs/cgroup/" + host.name + "/no-authority/memory.max")
	if limits = append(limits, limits2...); len(limits) != 1 {
		t.Fatalf("the sandbox's limit is not found: %v", limits)
	}
	return []string{
		"DEVICE=" + device, fmt.Sprintf("MAJOR=%d", unix.Major(st.Rdev)), fmt.Sprintf("MINOR=%d", unix.Minor(st.Rdev)),
		fmt.Sprintf("PID=%d", sleep.Process.Pid), "CGROUP_FILE=" + limits[0],
	}
}
