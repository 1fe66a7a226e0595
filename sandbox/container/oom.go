package container

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// oomEvents counts, on v1, how often memory ran out in a subtree whose limit lies on its root. The victims are
// counted where they were, and an engine removes that cgroup with its container; the kernel tells the one
// that has the limit too, by an eventfd (Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control").
type oomEvents struct {
	mu     sync.Mutex
	events int // the eventfd
	total  int64
}

func (c cgroup) watchOOM() (_ *oomEvents, err error) {
	dir := c.dir("memory")
	control, err := os.Open(filepath.Join(dir, "memory.oom_control"))
	if err != nil {
		return nil, err
	}
	defer control.Close()
	events, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	text := fmt.Sprintf("%d %d", events, control.Fd())
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(text), 0o200); err != nil {
		return nil, errors.Join(fmt.Errorf("watch the memory of cgroup %s: %w", c.path, err), unix.Close(events))
	}
	return &oomEvents{events: events}, nil
}

// count returns how often it has been so far.
func (e *oomEvents) count() int64 {
	if e == nil {
		return 0
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var b [8]byte
	if n, err := unix.Read(e.events, b[:]); err == nil && n == len(b) { // and it is 0 again
		e.total += int64(binary.NativeEndian.Uint64(b[:]))
	}
	return e.total
}

// close ends the count, before the removal of the cgroup would be counted too.
func (e *oomEvents) close() {
	if e == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.events >= 0 {
		_ = unix.Close(e.events)
		e.events = -1
	}
}
