package probe

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test be the program that some probes start as their other process.
func TestMain(m *testing.M) {
	if os.Args[0] == "runnerd-probe" && len(os.Args) == 2 {
		switch os.Args[1] {
		case "true":
			os.Exit(0)
		case "echo":
			_ = Echo()
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

// startAgent serves in this process, and returns a connection to it.
func startAgent(t *testing.T) *Agent {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	go func() { _ = Serve(socket) }()
	for range 500 {
		if conn, err := net.Dial("unix", socket); err == nil {
			t.Cleanup(func() { _ = conn.Close() })
			return NewAgent(conn)
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the agent does not listen")
	return nil
}

// TestProbes runs every probe, but for those that take seconds: all measure something, and leave nothing in their place.
func TestProbes(t *testing.T) {
	a := startAgent(t)
	dir, lower := t.TempDir(), t.TempDir()
	for range copyUps {
		f, err := os.CreateTemp(lower, "")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = f.WriteString("lower")
		_ = f.Close()
	}
	served, err := a.Ask(t.Context(), Request{Do: DoServe, Args: Args{Server: "127.0.0.1"}})
	if err != nil {
		t.Fatal(err)
	}
	args := Args{Dir: dir, Lower: lower, Server: served.Text, Neighbour: served.Text}
	for _, p := range All() {
		if p.Class == Work || p.Name == "dns" || p.Name == "direct-read" { // O_DIRECT fails where /tmp is a tmpfs
			continue
		}
		answer, err := a.Ask(t.Context(), Request{Probe: p.Name, Loop: time.Millisecond, Reps: 2, Args: args})
		if err != nil || answer.Nanoseconds <= 0 || answer.Ops < 1 {
			t.Errorf("%s: %+v, %v", p.Name, answer, err)
		}
	}
	left, _ := filepath.Glob(filepath.Join(dir, "[^.]*")) // but for the list of what was copied up
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if _, err := a.Ask(t.Context(), Request{Probe: "copy-up", Args: args}); !errors.Is(err, ErrNotHere) {
		t.Errorf("no file is left to be copied up: %v", err)
	}
	if _, err := a.Ask(t.Context(), Request{Probe: "stat"}); !errors.Is(err, ErrNotHere) {
		t.Errorf("without a directory: %v", err)
	}
	if _, err := a.Ask(t.Context(), Request{Probe: "nothing"}); err == nil || !strings.Contains(err.Error(), "no probe") {
		t.Error(err)
	}
	if pid, err := a.PID(); err != nil || pid != os.Getpid() {
		t.Error(pid, err)
	}
}

// TestAskIsCancelled holds that nobody waits for a probe longer than its context lives.
func TestAskIsCancelled(t *testing.T) {
	a := startAgent(t)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(cause) })
	if _, err := a.Ask(ctx, Request{Probe: "integer", Loop: time.Second, Reps: 1}); !errors.Is(err, cause) {
		t.Error(err)
	}
}

// TestTinyProgram holds that the kernel runs it.
func TestTinyProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "true")
	if err := os.WriteFile(file, tinyProgram(), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(file).CombinedOutput(); err != nil {
		t.Error(err, string(out))
	}
}

func TestFacts(t *testing.T) {
	f := facts("/proc")
	if f.Dir.FS != "proc" || f.Root.Point != "/" || f.UIDMap == "" || f.Interfaces["lo"] == 0 || len(f.Namespaces) != 7 {
		t.Errorf("%+v", f)
	}
}

// TestSeccompPolicy holds that names that this kernel's table lacks are left out.
func TestSeccompPolicy(t *testing.T) {
	p := seccompPolicy([]string{"read", "no_such_call"})
	if names := p.Syscalls[0].Names; len(names) != 1 || names[0] != "read" {
		t.Error(names)
	}
	if _, err := p.Assemble(); err != nil {
		t.Error(err)
	}
}
