package engine

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/sys"
)

// epoch is when each run begins that has no clock, as wazero has it: 2022-01-01 00:00:00 UTC.
const epoch = 1640995200 * int64(time.Second)

// standing is the clock of a run that has none: it moves by a microsecond whenever it is read, and by as much as is slept,
// which takes no time. So what waits for a moment gets there, and two runs see the same.
type standing struct{ passed atomic.Int64 }

func (s *standing) read() int64 { return s.passed.Add(int64(time.Microsecond)) }

// withClock gives a module a clock: the machine's, or one that stands.
func withClock(ctx context.Context, c wazero.ModuleConfig, real bool) wazero.ModuleConfig {
	if !real {
		s := &standing{}
		return c.WithNanotime(func() int64 { return s.read() }, sys.ClockResolution(time.Microsecond)).
			WithWalltime(func() (int64, int32) {
				now := epoch + s.read()
				return now / int64(time.Second), int32(now % int64(time.Second))
			}, sys.ClockResolution(time.Microsecond)).
			WithNanosleep(func(ns int64) { s.passed.Add(max(ns, 0)) })
	}
	return c.WithSysWalltime().WithSysNanotime().WithNanosleep(func(ns int64) {
		timer := time.NewTimer(time.Duration(ns))
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
	})
}
