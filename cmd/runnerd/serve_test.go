package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/engine"
)

func TestLockState(t *testing.T) {
	dir := t.TempDir()
	l, err := lockState(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("another runnerd (pid %d) uses %s: stop it or give --state-dir", os.Getpid(), dir)
	if _, err := lockState(dir); err == nil || err.Error() != want {
		t.Error(err)
	}
	l.release()
	if l, err = lockState(dir); err != nil {
		t.Fatal(err)
	}
	l.release()
}

func TestListen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "s")
	c := config.Socket{Path: path, Mode: 0o620}
	l, err := listen(c)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o620 {
		t.Error(fi, err)
	}
	if _, err := listen(c); err == nil || !strings.Contains(err.Error(), "another process listens on "+path) {
		t.Error(err)
	}
	// Killed: the file is left and nobody listens.
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = l.Close()
	if l, err = listen(c); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen(c); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Error(err)
	}
	c.Path, c.Group = path+"2", "no-such-group"
	if _, err := listen(c); err == nil || !strings.Contains(err.Error(), "groupadd") {
		t.Error(err)
	}
}

// engines is a directory with one engine of that version.
func engines(t *testing.T, name, version string) string {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte(name+" "+version+" "+empty+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func serveConfig(t *testing.T) *config.Config {
	c := config.Default()
	c.StateDir = t.TempDir()
	c.RunDir = filepath.Join(c.StateDir, "run")
	c.EnginesDir = engines(t, "runc", "v1.5.2")
	c.Resolve()
	return c
}

// steps is a daemon that tells what is done to it.
type steps struct {
	done    chan string
	release chan struct{}
}

func (s steps) assemble(context.Context, *config.Config, engine.Set, *slog.Logger) (*daemon, error) {
	return &daemon{
		Serve: func(ctx context.Context, l net.Listener) error { <-ctx.Done(); s.done <- "served"; return l.Close() },
		Run: func(ctx context.Context) error {
			<-ctx.Done()
			s.done <- "draining"
			<-s.release
			s.done <- "ran"
			return context.Cause(ctx)
		},
		Drain: func() { s.done <- "refuse jobs" },
		Abort: func() { s.done <- "abort"; close(s.release) },
		Close: func(context.Context) error { s.done <- "closed"; return nil },
	}, nil
}

func TestServe(t *testing.T) {
	c := serveConfig(t)
	notified := filepath.Join(t.TempDir(), "n")
	nl, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notified, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nl.Close() }()
	t.Setenv("NOTIFY_SOCKET", notified)
	heard := func() string {
		buf := make([]byte, 200)
		_ = nl.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, err := nl.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	s := steps{make(chan string, 10), make(chan struct{})}
	signals := make(chan os.Signal, 3)
	ended := make(chan error, 1)
	go func() { ended <- serve(t.Context(), c, slog.New(slog.DiscardHandler), signals, s.assemble) }()
	if got := heard(); !strings.HasPrefix(got, "READY=1") {
		t.Error(got)
	}
	if err := serve(t.Context(), c, slog.New(slog.DiscardHandler), nil, nil); err == nil || !strings.Contains(err.Error(), "another runnerd") {
		t.Error(err)
	}
	signals <- syscall.SIGTERM
	if got := heard(); !strings.HasPrefix(got, "STOPPING=1") {
		t.Error(got)
	}
	signals <- syscall.SIGINT
	if err := <-ended; err != nil {
		t.Error(err)
	}
	var order []string
	for range 6 {
		order = append(order, <-s.done)
	}
	if got := strings.Join(order, ", "); got != "refuse jobs, draining, abort, ran, served, closed" {
		t.Error(got)
	}
	if _, err := os.Stat(c.Socket.Path); err == nil {
		t.Error("the socket was left")
	}
}

func TestServeRefuses(t *testing.T) {
	failing := func(context.Context, *config.Config, engine.Set, *slog.Logger) (*daemon, error) {
		return nil, errors.New("assembled")
	}
	for what, x := range map[string]struct {
		change func(*config.Config)
		text   string
	}{
		"no engines":         {func(c *config.Config) { c.EnginesDir = t.TempDir() }, "make engines"},
		"an unsafe engine":   {func(c *config.Config) { c.EnginesDir = engines(t, "runc", "v1.1.5") }, "unsafe"},
		"allowed":            {func(c *config.Config) { c.EnginesDir, c.AllowVulnerableEngines = engines(t, "runc", "v1.1.5"), true }, "assembled"},
		"a failing assembly": {func(*config.Config) {}, "assembled"},
		"another state dir":  {func(c *config.Config) { c.StateDir = "/proc/nothing" }, "make /proc/nothing"},
	} {
		c := serveConfig(t)
		x.change(c)
		if err := serve(t.Context(), c, slog.New(slog.DiscardHandler), make(chan os.Signal), failing); err == nil || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	c := config.Default()
	c.Limits.Max.CPU = 2000
	c.Resolve()
	c.Capacity.Memory, c.Capacity.CPU = 4<<30, 8000
	p := prepare(c)
	r := runner.Request{Nesting: sandbox.Nesting{sandbox.Container}, Kind: api.KindScript}
	if err := p(&r); err != nil || r.Limits != c.Limits.Default.Limits() || r.Image != c.JobImage || time.Duration(r.Timeout) != time.Hour {
		t.Error(r, err)
	}
	for what, x := range map[string]struct {
		change func(*runner.Request)
		text   string
		is     error
	}{
		"nesting":     {func(r *runner.Request) { r.Nesting = nil }, "without layers", sandbox.ErrDenied},
		"cpu":         {func(r *runner.Request) { r.Limits.CPU = 2001 }, "limits.max.cpu (2)", sandbox.ErrDenied},
		"memory":      {func(r *runner.Request) { r.Limits.Memory = 5 << 30 }, "memory of 5GiB is more than capacity.memory (4GiB)", sandbox.ErrDenied},
		"tiny memory": {func(r *runner.Request) { r.Limits.Memory = 1 }, "too little", api.ErrInvalid},
		"disk":        {func(r *runner.Request) { r.Limits.Disk = 1 << 50 }, "limits.max.disk (200GiB)", sandbox.ErrDenied},
		"timeout":     {func(r *runner.Request) { r.Timeout = runner.Duration(48 * time.Hour) }, "timeout.max", sandbox.ErrDenied},
		"image":       {func(r *runner.Request) { r.Image = "A B" }, "image", api.ErrInvalid},
	} {
		r := runner.Request{Nesting: sandbox.Nesting{sandbox.Container}, Kind: api.KindScript}
		x.change(&r)
		if err := p(&r); err == nil || !errors.Is(err, x.is) || !strings.Contains(err.Error(), x.text) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
