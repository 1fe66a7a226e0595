package initd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
)

// initBinary is the runnerd-init under test; empty when this user cannot have namespaces.
var initBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "initd")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // the sandbox's users run it
		panic(err)
	}
	initBinary = filepath.Join(dir, "runnerd-init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", initBinary, "github.com/runnerd/runnerd/cmd/runnerd-init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	return m.Run()
}

// startInit starts an init in namespaces of its own, on the machine's files.
func startInit(t testing.TB) (*Client, *exec.Cmd) {
	t.Helper()
	if initBinary == "" {
		t.Skip("needs root")
	}
	script := `mount -t proc proc /proc && mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts &&
		mount -t tmpfs -o mode=1777 tmpfs /run && { ip link set lo up || true; } && exec "$0"`
	cmd := exec.Command("sh", "-c", script, initBinary)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 200000, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{}, Pdeathsig: syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return connect(t, cmd), cmd
}

func connect(t testing.TB, cmd *exec.Cmd) *Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := Connect(ctx, cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// sh runs a script and returns what it wrote.
func sh(t testing.TB, c *Client, script string) (stdout, stderr string, exit sandbox.Exit) {
	t.Helper()
	var out, errs bytes.Buffer
	exit, err := c.Exec(context.Background(), sandbox.Process{Args: []string{"sh", "-c", script}, Stdout: &out, Stderr: &errs})
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out.String(), errs.String(), exit
}

func fds(t *testing.T, pid int) int {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func rss(t testing.TB, cmd *exec.Cmd, field string) int {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), field+":")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return kib
}

func TestIdleMemory(t *testing.T) {
	c, cmd := startInit(t)
	fresh := rss(t, cmd, "VmRSS")
	for range 20 {
		sh(t, c, "true")
	}
	time.Sleep(time.Second) // it gives back what it has used when it is idle
	used := rss(t, cmd, "VmRSS")
	t.Logf("%d KiB when started, %d KiB after 20 processes (%d KiB its own)", fresh, used, rss(t, cmd, "RssAnon"))
	if used > 5<<10 { // most of it is the program's own pages, which all of them share
		t.Errorf("the init takes %d KiB", used)
	}
}
