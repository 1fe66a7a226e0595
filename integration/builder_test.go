//go:build integration

package integration

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestBuilderDies kills BuildKit while it builds, once and then each time.
func TestBuilderDies(t *testing.T) {
	d := startDaemon(t, "")
	dir := files(t, "Dockerfile", "FROM debian:bookworm-slim\nARG ROUND\nRUN echo $ROUND; sleep 3; echo built >/built\n", "docker-bake.hcl", `
target "default" {
  args = { ROUND = "" }
  output = ["type=tar,dest=out.tar"]
}
`)
	d.want(0, "", "build", dir, "--set", "default.args.ROUND=warm", "--output", "type=tar,dest="+filepath.Join(t.TempDir(), "out.tar"))
	for _, c := range []struct {
		name  string
		kills int
		code  int
		want  []string
	}{
		{"once", 1, 0, []string{"the builder has ended: default is built once more, on a new one"}},
		{"twice", 2, 1, []string{"is built once more", "the builder has ended twice in this build", "raise builder.memory"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			killed := make(chan int, 1)
			go func() {
				n, last := 0, 0
				for n < c.kills && ctx.Err() == nil {
					time.Sleep(50 * time.Millisecond)
					builder, steps := d.processes("buildkitd"), d.processes("sleep")
					if len(builder) == 1 && len(steps) == 1 && builder[0] != last {
						last = builder[0]
						_ = syscall.Kill(last, syscall.SIGKILL)
						n++
					}
				}
				killed <- n
			}()
			out := filepath.Join(t.TempDir(), "out.tar")
			_, stderr, code := d.run("build", dir, "--set", "default.args.ROUND="+c.name, "--output", "type=tar,dest="+out)
			cancel()
			if n := <-killed; n != c.kills {
				t.Fatalf("killed %d times, not %d: %s", n, c.kills, stderr)
			}
			if (code == 0) != (c.code == 0) {
				t.Errorf("exit code %d: %s", code, stderr)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("%q is not said: %s", want, stderr)
				}
			}
			if _, err := os.Stat(out); (err == nil) != (code == 0) {
				t.Errorf("the output: %v", err)
			}
			outcome := map[int]string{0: "succeeded", 1: "errored"}[c.code]
			if j := d.jobs()[0]; j.Result.Outcome != outcome {
				t.Errorf("%+v", j.Result)
			}
		})
	}
	// A build that fails by the user's doing is built once.
	broken := files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN exit 3\n")
	if _, stderr, code := d.run("build", broken); code == 0 || strings.Contains(stderr, "once more") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

// processes are those of a program in the daemon's sandboxes.
func (d *daemon) processes(program string) (pids []int) {
	for _, pid := range cgroupProcesses(d.instance()) {
		if comm, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm")); strings.TrimSpace(string(comm)) == program {
			pids = append(pids, pid)
		}
	}
	return pids
}

// TestUntrustedBuild builds by the command line on what a trusted build of the project has left.
func TestUntrustedBuild(t *testing.T) {
	d := startDaemon(t, "builder: {idle: 1s, disk: 1GiB}\n")
	dir := files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN cat /proc/sys/kernel/random/uuid >/id\nRUN --mount=type=cache,target=/cache echo trusted-file >/cache/file; date >/date\n")
	peek := func(who string) string {
		return files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN --mount=type=cache,target=/cache cat /cache/* && echo written by "+who+" >/cache/file\n")
	}
	const all = "[stage-0 3/3] RUN --mount=type=cache,target=/cache echo trusted-file >/cache/file; date >/date\n#7 CACHED"
	d.want(0, "", "build", dir, "--project", "p")
	d.want(0, all, "build", dir, "--project", "p", "--untrusted")
	d.want(0, "trusted-file", "build", peek("untrusted"), "--project", "p", "--untrusted")
	if _, stderr, code := d.run("build", peek("trusted"), "--project", "p"); code != 0 || strings.Contains(stderr, "written by untrusted") {
		t.Errorf("a trusted build sees what an untrusted one wrote, exit code %d: %s", code, stderr)
	}
	if _, stderr, code := d.run("build", peek("q"), "--project", "q", "--untrusted"); code == 0 {
		t.Errorf("another project sees it: %s", stderr)
	}
	full := files(t, "Dockerfile", "FROM debian:bookworm-slim\nRUN dd if=/dev/zero of=/zero bs=1M\n")
	if _, stderr, code := d.run("build", full, "--project", "p"); code == 0 || !strings.Contains(stderr, "raise builder.disk") {
		t.Errorf("a full disk, exit code %d: %s", code, stderr)
	}
	d.want(0, all, "build", dir, "--project", "p")
}
