package main

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/runner/api"
)

// What must be free on the disk of the state directory for a job to be taken: the journal, the logs and the disks of
// the jobs that run go on growing.
const (
	minRoom   = 64 << 20
	minInodes = 1000
)

// checkRoom refuses a job when the disk of the state directory is full, before it fails half-way.
func checkRoom(stateDir string) error {
	var s unix.Statfs_t
	if err := unix.Statfs(stateDir, &s); errors.Is(err, unix.ENOENT) {
		return nil // whoever writes there will say so
	} else if err != nil {
		return fmt.Errorf("look how much room there is on %s: %w", stateDir, err)
	}
	if free := int64(s.Bavail) * s.Bsize; free < minRoom {
		return fmt.Errorf("%w: %d MiB are free on the disk of %s, less than the %d MiB that a job needs: make room there", api.ErrNoRoom, free>>20, stateDir, minRoom>>20)
	}
	if s.Files > 0 && s.Ffree < minInodes { // btrfs has no such number
		return fmt.Errorf("%w: %d inodes are free on the disk of %s, fewer than %d: make room there", api.ErrNoRoom, s.Ffree, stateDir, minInodes)
	}
	return nil
}
