package probe

import (
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

func contendedProbes() []Probe {
	return []Probe{
		{Name: "cpu-share", Class: Contended, Unit: "CPU ms", Crowds: true, Once: shareMillis, setup: cpuShare},
		{Name: "wake-p99", Class: Contended, Unit: "op", Crowds: true, direct: wakeDelay},
	}
}

const (
	// shareMillis is the processor time of a run, in milliseconds: several periods of the quota, which are 100 ms.
	shareMillis = 400
	wakes       = 300
)

// cpuShare uses processor time; an operation is a millisecond of it, and takes as long as it takes to get it.
func cpuShare(Args) (func(int) error, func() error, error) {
	return func(n int) error {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		until := threadTime() + time.Duration(n)*time.Millisecond
		for threadTime() < until {
			s := uint64(1)
			for range 10_000 {
				s ^= s << 13
				s ^= s >> 7
			}
		}
		return nil
	}, nothing, nil
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// wakeDelay sleeps for a millisecond again and again, and returns the 99th percentile of how much later it ran than
// it was to: the wait in the run queue.
func wakeDelay() (float64, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	late := make([]float64, wakes)
	for i := range late {
		began := time.Now()
		sleep := unix.NsecToTimespec(int64(time.Millisecond))
		if err := retry(func() error { return unix.Nanosleep(&sleep, &sleep) }); err != nil {
			return 0, err
		}
		late[i] = float64(max(time.Since(began)-time.Millisecond, 1))
	}
	slices.Sort(late)
	return late[wakes*99/100], nil
}

// Hog keeps a processor busy until the process ends.
func Hog() {
	for s := uint64(1); ; s ^= s << 13 {
		s |= 1
	}
}
