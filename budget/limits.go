package budget

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Share is a part of a whole: so many percent of it, or so many bytes. The zero Share is nothing.
type Share struct {
	Percent float64
	Bytes   int64
}

// Of is the share of a whole in bytes, never more than the whole.
func (s Share) Of(whole int64) int64 {
	n := s.Bytes
	if s.Percent > 0 {
		n = int64(float64(whole) / 100 * s.Percent)
	}
	return max(0, min(n, whole))
}

// Limits say how much the stores may take and when they are pruned.
type Limits struct {
	Budget Share         // of the file system, that the stores may take together; 0: all that others and Floor leave
	High   Share         // of the budget; above it the stores are pruned before a job is started
	Low    Share         // of the budget; to which they are pruned then
	Floor  Share         // of the file system, that is kept free: below it no job is started
	MinAge time.Duration // since its last use, that the policy spares an entry for, unless Floor is at stake
	Wait   time.Duration // that a job waits for room
}

// What is always kept free, whatever Floor says: the journal, the logs and the disks of running jobs go on growing.
const (
	leastFree   = 64 << 20
	leastInodes = 1000
)

// ErrFull is wrapped by errors of a file system with too little room for another job.
var ErrFull = errors.New("too little room on the disk")

// FileSystem is what df(1) says of the file system that a directory lies on.
type FileSystem struct {
	Dir        string `json:"dir"`
	Size       int64  `json:"size"` // bytes, as are Used and Free
	Used       int64  `json:"used"` // by whomever
	Free       int64  `json:"free"` // for runnerd
	FreeInodes int64  `json:"free_inodes"`
	noInodes   bool   // btrfs has no such number
}

// Look asks for the file system that dir lies on.
func Look(dir string) (FileSystem, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return FileSystem{}, fmt.Errorf("look how much room there is on %s: %w", dir, err)
	}
	return FileSystem{
		Dir: dir, Size: int64(s.Blocks) * s.Bsize, Used: int64(s.Blocks-s.Bfree) * s.Bsize, Free: int64(s.Bavail) * s.Bsize,
		FreeInodes: int64(s.Ffree), noInodes: s.Files == 0,
	}, nil
}

// CheckRoom returns an error that wraps ErrFull when the file system of dir is so full that not even a waiting job
// can be written down. A dir that is not there is no error: who writes there will say so.
func CheckRoom(dir string) error {
	f, err := Look(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	return f.check(leastFree)
}

// check returns an error that wraps ErrFull when less than floor bytes, or too few inodes, are free.
func (f FileSystem) check(floor int64) error {
	switch {
	case f.Free < floor:
		return fmt.Errorf("%w: %s are free on the disk of %s, %s are kept free: make room there", ErrFull, Text(f.Free), f.Dir, Text(floor))
	case !f.noInodes && f.FreeInodes < leastInodes:
		return fmt.Errorf("%w: %d inodes are free on the disk of %s, %d are kept free: make room there", ErrFull, f.FreeInodes, f.Dir, leastInodes)
	}
	return nil
}

// Marks are the limits in bytes, as they are at a moment.
type Marks struct {
	Budget int64 `json:"budget"`
	High   int64 `json:"high"`
	Low    int64 `json:"low"`
	Floor  int64 `json:"floor"`
}

// marks are the limits on a file system of which the stores take used bytes. What others take of it is not theirs
// to have, so the budget shrinks as they grow.
func (l Limits) marks(f FileSystem, used int64) Marks {
	m := Marks{Floor: min(max(l.Floor.Of(f.Size), leastFree), f.Size)}
	m.Budget = max(0, used+f.Free-m.Floor)
	if b := l.Budget.Of(f.Size); b > 0 {
		m.Budget = min(m.Budget, b)
	}
	m.High = l.High.Of(m.Budget)
	m.Low = min(l.Low.Of(m.Budget), m.High)
	return m
}

// Text is a number of bytes for people: "1.2 GiB".
func Text(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	sign, v, u := "", float64(n), 0
	if n < 0 {
		sign, v = "-", -v
	}
	for v >= 1023.95 && u < len(units)-1 {
		v /= 1024
		u++
	}
	return sign + strings.TrimSuffix(strconv.FormatFloat(v, 'f', 1, 64), ".0") + " " + units[u]
}
