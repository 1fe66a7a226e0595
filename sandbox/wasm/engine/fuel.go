package engine

import (
	"context"
	"errors"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// errFuel and errTime are why a run was ended.
var (
	errFuel = errors.New("it has used up its fuel")
	errTime = errors.New("it has used up its time")
)

// minCheck is the least time between two looks at a run's fuel: by so much it may exceed it.
const minCheck = time.Millisecond

// burn calls run on a thread of its own, with a context that ends when that thread has used fuel of processor time.
// wazero does not count instructions, so the kernel's clock is what there is. A thread uses no more processor time than
// passes, so the time that is left is how long nobody needs to look.
func burn(ctx context.Context, fuel time.Duration, run func(context.Context)) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	clock := int32(^unix.Gettid()<<3 | 6) // CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED (linux/posix-timers_types.h)
	used := func() time.Duration {
		var t unix.Timespec
		if unix.ClockGettime(clock, &t) != nil {
			return fuel // what cannot be measured is not given
		}
		return time.Duration(t.Nano())
	}
	end := used() + fuel
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer close(done)
	go func() {
		timer := time.NewTimer(max(fuel, minCheck))
		defer timer.Stop()
		for {
			select {
			case <-done:
				return
			case <-timer.C:
			}
			left := end - used()
			if left <= 0 {
				cancel(errFuel)
				return
			}
			timer.Reset(max(left, minCheck))
		}
	}()
	run(ctx)
}
