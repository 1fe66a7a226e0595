//go:build integration

// Package integration tests runnerd on the real thing: engines, images, kernel. It needs root, and what
// "make engines images build" leaves in bin/.
package integration

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/registry"
	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/container"
	"github.com/runnerd/runnerd/sandbox/dind"
)

// machine is what the tests share: a registry with the images, and the drivers.
type machine struct {
	name      string
	dir       string
	port      int
	preloaded string // a registry's directory with the images
	container *container.Driver
	dind      *dind.Driver
}

var host *machine

const (
	debian = "debian:bookworm-slim"
	engine = "runnerd/sandbox:latest"
)

func TestMain(m *testing.M) {
	code := 1
	func() {
		h, stop, err := startMachine()
		if err != nil {
			fmt.Fprintln(os.Stderr, "start:", err)
			return
		}
		defer stop()
		host = h
		code = m.Run()
	}()
	os.Exit(code)
}

func startMachine() (_ *machine, _ func(), err error) {
	bin, err := filepath.Abs("../bin")
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("/var/tmp", "runnerd-integration-") // not on a tmpfs or an overlay
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, nil, err
	}
	ctx := context.Background()
	quiet := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	preloaded := filepath.Join(dir, "preloaded")
	reg, err := registry.New(ctx, registry.Config{Root: preloaded, Log: quiet})
	if err != nil {
		return nil, nil, err
	}
	if err := errors.Join(reg.Preload(ctx, filepath.Join(bin, "images")), reg.Close()); err != nil {
		return nil, nil, err
	}
	if err := linkTree(preloaded, filepath.Join(dir, "registry")); err != nil {
		return nil, nil, err
	}
	if reg, err = registry.New(ctx, registry.Config{Root: filepath.Join(dir, "registry"), Log: quiet}); err != nil {
		return nil, nil, err
	}
	listener, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		return nil, nil, err
	}
	server := &http.Server{Handler: reg.Handler(), ReadHeaderTimeout: time.Minute}
	go server.Serve(listener)
	port := listener.Addr().(*net.TCPAddr).Port

	h := &machine{name: "runnerd-it", dir: dir, port: port, preloaded: preloaded}
	h.container, err = container.New(ctx, container.Config{
		Name: h.name, StateDir: filepath.Join(dir, "state"), RunDir: filepath.Join(dir, "run"),
		EngineDir: filepath.Join(bin, "engines"), Mirror: fmt.Sprintf("127.0.0.1:%d", port),
		Subnet: netip.MustParsePrefix("10.213.0.0/16"), Ports: []int{port}, FirstUID: 1 << 30, UIDRanges: 4000,
		Defaults: sandbox.Limits{CPU: 2000, Memory: 2 << 30, PIDs: 2048, Disk: 8 << 30, Inodes: 1 << 19}, Log: quiet,
	})
	if err != nil {
		return nil, nil, err
	}
	h.dind = dind.New(dind.Config{Image: engine, MTU: h.container.MTU(), Mirror: fmt.Sprintf("%s:%d", h.container.Gateway(), port), Log: quiet})
	return h, func() {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := h.container.Close(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "close:", err)
		}
		server.Close()
		reg.Close()
		if left := h.leftovers(""); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "left behind:\n%s\n", strings.Join(left, "\n"))
		}
		os.RemoveAll(dir)
	}, nil
}

// linkTree makes a registry's directory like another, in no time: its files are never written in place but for the lock.
func linkTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return os.MkdirAll(filepath.Join(to, rel), 0o700)
		case rel == "lock":
			return nil
		}
		return os.Link(path, filepath.Join(to, rel))
	})
}

// leftovers lists what is left of sandboxes whose id starts with prefix.
func (h *machine) leftovers(prefix string) []string {
	var left []string
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, filepath.Join(h.dir, "run/sandboxes", prefix)) {
			left = append(left, "mount "+strings.Fields(line)[4])
		}
	}
	for _, pattern := range []string{
		"/sys/fs/cgroup/*/" + h.name + "/" + prefix + "*", "/sys/fs/cgroup/" + h.name + "/" + prefix + "*",
		"/sys/fs/cgroup/*/" + h.name + ".shims/" + prefix + "*", "/sys/fs/cgroup/" + h.name + ".shims/" + prefix + "*",
		filepath.Join(h.dir, "state/disks/scratch", prefix+"*"), filepath.Join(h.dir, "run/sandboxes", prefix+"*"),
		filepath.Join(h.dir, "state/loans", prefix+"*"),
		filepath.Join(h.dir, "run/runc", h.name, prefix+"*"),
	} {
		found, _ := filepath.Glob(pattern)
		for _, path := range found {
			if info, err := os.Lstat(path); err == nil && (prefix != "" || info.Mode()&fs.ModeDir != 0) {
				left = append(left, path)
			}
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range processes {
		if cmdline, _ := os.ReadFile(p); prefix != "" && strings.Contains(string(cmdline), "\x00"+prefix) {
			left = append(left, p+" "+strings.ReplaceAll(string(cmdline), "\x00", " "))
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if file, _ := os.ReadFile(l); strings.Contains(string(file), filepath.Join(h.dir, "state/disks/scratch", prefix)) {
			left = append(left, "loop "+string(file))
		}
	}
	return left
}
