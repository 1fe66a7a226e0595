//go:build integration

package buildkit

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// mustLease leases a scope's worker and says how long that took.
func mustLease(t *testing.T, ws *Workers, of scope.Scope) *Lease {
	t.Helper()
	began := time.Now()
	l, err := ws.Lease(t.Context(), of)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("worker of %s ready after %s", of, time.Since(began))
	return l
}

// run builds a Dockerfile with a worker and returns what its steps wrote.
func run(t *testing.T, l *Lease, dockerfile string) (Result, string) {
	t.Helper()
	result, log, err := tryRun(t, l, dockerfile)
	if err != nil {
		t.Fatalf("build: %v\n%s", err, log)
	}
	return result, log
}

func tryRun(t *testing.T, l *Lease, dockerfile string) (Result, string, error) {
	t.Helper()
	var log strings.Builder
	result, err := workspace(t, "Dockerfile", dockerfile, "file", "of the context\n").Run(t.Context(), l.Client, func(s *client.SolveStatus) {
		for _, line := range s.Logs {
			log.Write(line.Data)
		}
	})
	return result, log.String(), err
}

// waitGone waits until nothing is left of a scope's worker, whose lease has been closed.
func waitGone(t *testing.T, ws *Workers, of scope.Scope) {
	t.Helper()
	eventually(t, "the worker of "+of.String()+" ends", func() bool {
		ws.mu.Lock()
		defer ws.mu.Unlock()
		return ws.all[of] == nil && ws.ending[of] == nil
	})
}

// withCacheMount is a Dockerfile of one step that has the cache mount "c".
func withCacheMount(script string) string {
	return "FROM debian:bookworm-slim\nRUN --mount=type=cache,target=/cache,id=c " + script + "\n"
}

const (
	trustedBuild = `FROM debian:bookworm-slim
RUN cat /proc/sys/kernel/random/uuid >/id
COPY file /copied
RUN --mount=type=cache,target=/cache,id=c echo trusted-file >/cache/file; mkdir /cache/dir; setfattr -n user.x -v y /cache/dir; cat /id
`
	changedBuild = "FROM debian:bookworm-slim\nRUN echo changed >/id; cat /proc/sys/kernel/random/uuid\n"
	canary       = "canary-7d1f0c52"
)

// poison writes the canary into the cache mount, without having it in BuildKit's records.
var poison = withCacheMount("cat /cache/file; echo " + canary[:8] + "''" + canary[8:] + " | tee /cache/file >/cache/more; rm -r /cache/dir; cat /cache/more")

// TestClone has an untrusted scope build on what the trusted one of its project has, and try to change it.
func TestClone(t *testing.T) {
	m := newRealMachine(t)
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	l := mustLease(t, ws, trusted("p"))
	cold, _ := run(t, l, trustedBuild)
	for _, c := range []struct {
		name    string
		running bool
	}{{"the trusted worker runs", true}, {"it does not", false}} {
		t.Run(c.name, func(t *testing.T) {
			if !c.running {
				_ = l.Close(t.Context())
				waitGone(t, ws, trusted("p"))
			}
			u := mustLease(t, ws, untrusted("p"))
			defer waitGone(t, ws, untrusted("p"))
			defer u.Close(t.Context())
			warm, _ := run(t, u, trustedBuild)
			if warm.Cached != warm.Steps || warm.Steps != 3 || warm.Digest != cold.Digest {
				t.Errorf("an untrusted build is not warm: %+v, the trusted one %+v", warm, cold)
			}
			if _, log := run(t, u, poison); !strings.Contains(log, "trusted-file") || !strings.Contains(log, canary) {
				t.Errorf("an untrusted build does not see the trusted cache mount, or cannot write its own: %s", log)
			}
			if _, log := run(t, u, withCacheMount("cat /cache/file; ls /cache")); !strings.Contains(log, canary) || strings.Contains(log, "dir") {
				t.Errorf("an untrusted build does not see what it wrote: %s", log)
			}
			run(t, u, changedBuild)
			writesUp(t, u)
		})
	}
	l = mustLease(t, ws, trusted("p"))
	if _, log := run(t, l, withCacheMount("cat /cache/*; ls /cache")); !strings.Contains(log, "trusted-file") || strings.Contains(log, canary) || !strings.Contains(log, "dir") {
		t.Errorf("a trusted build sees what an untrusted one did to its cache mount: %s", log)
	}
	if result, _ := run(t, l, changedBuild); result.Cached != 0 {
		t.Errorf("a trusted build takes an untrusted result: %+v", result)
	}
	if again, _ := run(t, l, trustedBuild); again.Cached != again.Steps || again.Digest != cold.Digest {
		t.Errorf("the trusted cache is lost: %+v", again)
	}
	other := mustLease(t, ws, untrusted("q"))
	if result, log := run(t, other, poison[:strings.Index(poison, "cat ")]+"ls /cache\n"); result.Cached != 0 || log != "" {
		t.Errorf("another project sees %q: %+v", log, result)
	}
	_ = other.Close(t.Context())
	_ = l.Close(t.Context())
	waitGone(t, ws, trusted("p"))
	if m.diskHas(t, trusted("p"), canary) {
		t.Error("what an untrusted build wrote is on the trusted disk")
	}
	t.Log(m.log)
	// Without the defence, one worker for both, all of this is seen.
	l = mustLease(t, ws, trusted("p"))
	run(t, l, poison)
	if _, log := run(t, l, withCacheMount("cat /cache/* # again")); !strings.Contains(log, canary) {
		t.Errorf("the attack does not work where nothing stands against it: %s", log)
	}
	_ = l.Close(t.Context())
	waitGone(t, ws, trusted("p"))
	if !m.diskHas(t, trusted("p"), canary) {
		t.Error("what is written cannot be found on the disk")
	}
}

// writesUp tries, as root of a clone's sandbox, to write to what it stands on.
func writesUp(t *testing.T, u *Lease) {
	t.Helper()
	out := sandbox.NewTail(4096)
	exit, err := u.Exec(t.Context(), sandbox.Process{Stdout: out, Stderr: out, Args: []string{"/bin/sh", "-c", `cd /var/lib/buildkit-base
		for dir in snapshots content; do
			ls -d $dir/* >/dev/null || echo "$dir is not there"
			{ echo >$dir/x; } 2>/dev/null && echo "$dir is written to"
			rm -rf $dir/* 2>/dev/null && echo "$dir is emptied"
			mount -o remount,bind,rw $dir 2>/dev/null && echo "$dir is mounted anew"
			mount -o remount,rw $dir 2>/dev/null && echo "its file system is"
			mkdir -p /mnt/x && mount --bind $dir /mnt/x && { mount -o remount,bind,rw /mnt/x 2>/dev/null && echo "a copy of $dir is mounted anew"; umount /mnt/x; }
		done; true`}})
	if text := out.String(); err != nil || !exit.Success() || text != "" {
		t.Errorf("root of a clone: %s %v: %s", exit, err, text)
	}
}

// diskHas looks for a text on the disk of a scope that has no worker.
func (m *realMachine) diskHas(t *testing.T, of scope.Scope, text string) bool {
	t.Helper()
	file, err := os.Open(filepath.Join(m.dir, "state", "disks", "state", workerID(of)+".ext4"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	buf := make([]byte, 4<<20)
	for offset := int64(0); ; {
		start, err := unix.Seek(int(file.Fd()), offset, unix.SEEK_DATA)
		if err != nil {
			return false
		}
		n, _ := file.ReadAt(buf, start)
		if bytes.Contains(buf[:n], []byte(text)) {
			return true
		}
		if n < len(buf) {
			return false
		}
		offset = start + int64(n-len(text))
	}
}

// TestCloneWhileBuilding makes clones of a worker that builds.
func TestCloneWhileBuilding(t *testing.T) {
	m := newRealMachine(t)
	log := sandbox.NewTail(4096)
	m.cfg.Log = slog.New(slog.NewTextHandler(log, nil))
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	l := mustLease(t, ws, trusted("p"))
	first, _ := run(t, l, trustedBuild)
	ctx, stop := context.WithCancel(t.Context())
	var builds sync.WaitGroup
	built := 0
	builds.Go(func() {
		for ; ctx.Err() == nil; built++ {
			run(t, l, withCacheMount(fmt.Sprintf("for i in $(seq 200); do echo %d >/cache/new-$i; done; dd if=/dev/zero of=/zero bs=1M count=8 status=none", built)))
		}
	})
	var ready time.Duration
	const clones = 10
	for range clones {
		began := time.Now()
		u := mustLease(t, ws, untrusted("p"))
		ready += time.Since(began)
		if result, _ := run(t, u, trustedBuild); result.Cached != result.Steps || result.Digest != first.Digest {
			t.Errorf("a clone of a busy worker: %+v", result)
		}
		run(t, u, withCacheMount("cat /cache/file && cat /cache/new-1 && echo untrusted >/cache/new-1"))
		_ = u.Close(t.Context())
		waitGone(t, ws, untrusted("p"))
	}
	stop()
	builds.Wait()
	if again, _ := run(t, l, trustedBuild); again.Cached != again.Steps || again.Digest != first.Digest {
		t.Errorf("after that, the trusted worker: %+v", again)
	}
	if text := log.String(); text != "" {
		t.Error(text)
	}
	var empty time.Duration
	for i := range 3 {
		began := time.Now()
		e := mustLease(t, ws, untrusted(fmt.Sprint("empty-", i)))
		empty += time.Since(began)
		_ = e.Close(t.Context())
	}
	t.Logf("a clone is ready after %s, an empty worker after %s, means; %d trusted builds meanwhile", ready/clones, empty/3, built)
	_ = l.Close(t.Context())
}

// TestStateDiskFull fills a worker's disk to the last byte, twice: with a layer, which is gone when its build has
// failed, and with a cache mount, which stays.
func TestStateDiskFull(t *testing.T) {
	m := newRealMachine(t)
	m.cfg.Limits = sandbox.Limits{Disk: 700 << 20}
	m.cfg.KeepBytes = 560 << 20
	m.cfg.IdleTimeout = 500 * time.Millisecond
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	l := mustLease(t, ws, trusted("p"))
	if _, log, err := tryRun(t, l, "FROM debian:bookworm-slim\nRUN dd if=/dev/zero of=/zero bs=1M\n"); err == nil || !strings.Contains(err.Error(), "raise builder.disk") {
		t.Errorf("a full disk: %v: %s", err, log)
	}
	for i := range 4 { // by the worker that has been filled, and by one that starts on a full disk
		if _, log, err := tryRun(t, l, withCacheMount(fmt.Sprintf("dd if=/dev/zero of=/cache/zero bs=1M || echo full, %d", i))); err != nil && !strings.Contains(err.Error(), "raise builder.disk") {
			t.Errorf("a cache mount that fills the disk: %v: %s", err, log)
		}
		full := l.w.diskUsed(t.Context())
		_ = l.Close(t.Context())
		if i%2 == 1 {
			waitGone(t, ws, trusted("p"))
		}
		l = mustLease(t, ws, trusted("p"))
		left := l.w.diskUsed(t.Context())
		if t.Logf("of %d bytes %d are used, after a prune %d", m.cfg.Limits.Disk, full, left); full < m.cfg.KeepBytes || left > m.cfg.KeepBytes {
			t.Error("the disk was not filled, or is still full")
		}
		run(t, l, fmt.Sprintf("FROM debian:bookworm-slim\nRUN echo works again, %d\n", i))
	}
	// An untrusted build does not keep it full.
	u := mustLease(t, ws, untrusted("p"))
	ended := make(chan error, 1)
	go func() {
		_, _, err := tryRun(t, u, "FROM debian:bookworm-slim\nRUN sleep 300\n")
		ended <- err
	}()
	_, _, _ = tryRun(t, l, withCacheMount("dd if=/dev/zero of=/cache/zero bs=1M || echo full again"))
	_ = l.Close(t.Context())
	l = mustLease(t, ws, trusted("p"))
	if left := l.w.diskUsed(t.Context()); left > m.cfg.KeepBytes {
		t.Errorf("%d bytes are used while an untrusted build runs", left)
	}
	if err := <-ended; err == nil || !u.Died() {
		t.Errorf("the untrusted build: %v, to be built again: %t", err, u.Died())
	}
	if err := u.Renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	run(t, u, "FROM debian:bookworm-slim\nRUN echo built again\n")
	_, _ = u.Close(t.Context()), l.Close(t.Context())
}

// TestStoreOnDisk removes what real workers keep.
func TestStoreOnDisk(t *testing.T) {
	m := newRealMachine(t)
	m.cfg.Disks, m.cfg.Dir = m.driver, filepath.Join(m.dir, "builders")
	ws := NewWorkers(m.cfg)
	t.Cleanup(ws.Close)
	all := func() (ids []string, bytes int64, busy bool) {
		t.Helper()
		entries, err := ws.Entries(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Scope != "p" || e.Description == "" || e.Created.IsZero() || e.LastUsed.IsZero() {
				t.Errorf("%+v", e)
			}
			ids, bytes, busy = append(ids, e.ID), bytes+e.Bytes, busy || e.InUse
		}
		return ids, bytes, busy
	}
	remove := func(ids ...string) int64 {
		t.Helper()
		freed, err := ws.Remove(t.Context(), ids)
		if err != nil {
			t.Error(err)
		}
		return freed
	}
	l := mustLease(t, ws, trusted("p"))
	first, _ := run(t, l, trustedBuild)
	ids, bytes, _ := all()
	used, _ := ws.Usage(t.Context())
	t.Logf("%d records of %d bytes on a disk that takes %d", len(ids), bytes, used)
	if freed := remove(ids...); len(ids) < 5 || freed < bytes/2 {
		t.Errorf("removing %d records of %d bytes has freed %d", len(ids), bytes, freed)
	}
	if less, _ := ws.Usage(t.Context()); less > used-bytes/2 {
		t.Errorf("the disk takes %d bytes, and took %d", less, used)
	}
	if again, _ := run(t, l, trustedBuild); again.Cached != 0 || again.Digest == first.Digest {
		t.Errorf("what was removed is there: %+v", again)
	}
	u := mustLease(t, ws, untrusted("p"))
	_ = l.Close(t.Context())
	waitGone(t, ws, trusted("p"))
	ids, bytes, busy := all()
	if len(ids) != 1 || !busy || remove(ids...) != 0 {
		t.Errorf("a disk that a clone stands on: %v, in use: %t", ids, busy)
	}
	if warm, _ := run(t, u, trustedBuild); warm.Cached != warm.Steps {
		t.Errorf("the clone has lost its ground: %+v", warm)
	}
	_ = u.Close(t.Context())
	if freed := remove(ids...); freed < bytes/10*9 {
		t.Errorf("removing a disk of %d bytes has freed %d", bytes, freed)
	}
	for _, dir := range []string{m.cfg.Dir, filepath.Join(m.dir, "state", "disks", "state")} {
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}
