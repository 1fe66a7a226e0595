package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// pauseTimeout bounds how long the processes of a subtree may take to come to rest: one that waits for a disk
// rests when it has been served.
const pauseTimeout = 5 * time.Second

// pause stops the subtree's processes until resume, and returns when all rest. There may be none, nor a subtree.
func (c cgroup) pause(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, pauseTimeout, errors.New("its processes do not come to rest"))
	defer cancel()
	for wait := 100 * time.Microsecond; ; wait = min(2*wait, 5*time.Millisecond) {
		rests, err := c.askRest()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if rests || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("freeze cgroup %s: %w", c.path, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// askRest asks for a rest, again if need be, and reports whether it is there. On v1 a process that was just forked
// is only seen by asking again.
func (c cgroup) askRest() (bool, error) {
	if c.h.unified {
		if err := os.WriteFile(filepath.Join(c.dir(""), "cgroup.freeze"), []byte("1"), 0o644); err != nil {
			return false, err
		}
		return field(c.dir(""), "cgroup.events", "frozen") == 1, nil
	}
	file := filepath.Join(c.dir("freezer"), "freezer.state")
	if err := os.WriteFile(file, []byte("FROZEN"), 0o644); err != nil {
		return false, err
	}
	state, err := os.ReadFile(file)
	return strings.TrimSpace(string(state)) == "FROZEN", err
}

// resume ends a pause.
func (c cgroup) resume() {
	if c.h.unified {
		_ = os.WriteFile(filepath.Join(c.dir(""), "cgroup.freeze"), []byte("0"), 0o644)
		return
	}
	c.freeze("THAWED")
}

// thaw ends every pause in the v1 subtree: a daemon that was killed while it killed may have left one of a cgroup below.
func (c cgroup) thaw() {
	_ = filepath.WalkDir(c.dir("freezer"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			_ = os.WriteFile(filepath.Join(path, "freezer.state"), []byte("THAWED"), 0o644)
		}
		return nil
	})
}

// freeze asks the v1 freezer for a state (cgroup-v1/freezer-subsystem). A subtree that does not come to rest,
// since it forks meanwhile, is frozen for the most part, and the next round gets the rest.
func (c cgroup) freeze(state string) {
	file := filepath.Join(c.dir("freezer"), "freezer.state")
	for range 20 {
		if os.WriteFile(file, []byte(state), 0o644) != nil {
			return
		}
		if text, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(text)) == state {
			return
		}
		time.Sleep(time.Millisecond)
	}
}
