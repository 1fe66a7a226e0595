package buildkit

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// shares divide what a worker uses among the jobs that have it. BuildKit does work once that several builds want, and
// says of none of it whose it is; so what is used while builds run is divided equally among those that run, and what is
// used while none runs, among the leases. What is used while there is no lease is nobody's. The shares of all add up to
// what the worker has used while it had any.
type shares struct {
	read func() (sandbox.Usage, error) // what the worker has used so far

	mu     sync.Mutex
	last   sandbox.Usage
	leases []*share
}

// share is one lease's.
type share struct {
	builds int // that run
	used   sandbox.Usage
	before *sandbox.Pressure // of the worker, when it was leased
}

// begin adds a lease.
func (s *shares) begin() *share {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settle()
	mine := &share{before: s.last.Pressure}
	s.leases = append(s.leases, mine)
	return mine
}

// end ends a lease: what it has used is settled. Calling it again does nothing.
func (s *shares) end(mine *share) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.leases, mine) {
		s.settle()
		s.leases = slices.DeleteFunc(s.leases, func(other *share) bool { return other == mine })
	}
}

// inherit adds what a lease has used of another worker, which has ended.
func (s *shares) inherit(mine *share, used sandbox.Usage) {
	s.mu.Lock()
	defer s.mu.Unlock()
	mine.used.CPU += used.CPU
	mine.used.Read += used.Read
	mine.used.Written += used.Written
	for _, p := range used.Parts {
		mine.used.AddPart(p)
	}
}

// working notes that a build of a lease runs until done is called.
func (s *shares) working(mine *share) (done func()) {
	count := func(n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.settle()
		mine.builds += n
	}
	count(1)
	return sync.OnceFunc(func() { count(-1) })
}

// of is a lease's share so far, and what the worker says of itself now.
func (s *shares) of(mine *share) (used, whole sandbox.Usage, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Contains(s.leases, mine) {
		s.settle()
	}
	used = mine.used
	used.Parts = slices.Clone(used.Parts)
	whole, err = s.read()
	return used, whole, err
}

// settle divides what was used since it was last called. s.mu is held.
func (s *shares) settle() {
	now, err := s.read()
	if err != nil { // what is not known now is divided later
		return
	}
	before := s.last
	s.last = now
	to := slices.DeleteFunc(slices.Clone(s.leases), func(l *share) bool { return l.builds == 0 })
	if len(to) == 0 {
		to = s.leases
	}
	for _, l := range s.leases {
		l.used.Pressure = now.Pressure.Since(l.before)
	}
	for i, l := range to {
		part := func(now, before int64) int64 { // the remainder is the first one's
			d := max(0, now-before)
			mine := d / int64(len(to))
			if i == 0 {
				mine += d % int64(len(to))
			}
			return mine
		}
		l.used.CPU += time.Duration(part(int64(now.CPU), int64(before.CPU)))
		l.used.Read += part(now.Read, before.Read)
		l.used.Written += part(now.Written, before.Written)
		for _, p := range now.Parts {
			was := before.Part(p.Name)
			l.used.AddPart(sandbox.Part{
				Name: p.Name, Payload: p.Payload, CPU: time.Duration(part(int64(p.CPU), int64(was.CPU))),
				Read: part(p.Read, was.Read), Written: part(p.Written, was.Written),
			})
		}
	}
}

// Usage is the lease's share of what its worker has used of processor and disk since it was leased. Memory and pressure
// are the worker's: those who share it have them together. OOM kills are left out: whose they were, a lease does not know.
func (l *Lease) Usage(context.Context) (sandbox.Usage, error) {
	u, whole, err := l.w.shares.of(l.share)
	if err != nil {
		return u, err
	}
	u.Memory, u.MemoryPeak, u.MemoryAverage = whole.Memory, whole.MemoryPeak, whole.MemoryAverage
	u.PIDs, u.Disk = whole.PIDs, whole.Disk
	for i := range u.Parts {
		has := whole.Part(u.Parts[i].Name)
		u.Parts[i].MemoryAverage, u.Parts[i].MemoryPeak = has.MemoryAverage, has.MemoryPeak
	}
	if l.fresh {
		u.SetUp = append(slices.Clone(whole.SetUp), sandbox.Stage{Name: sandbox.StageBuildKitd, Took: l.w.took})
	}
	u.AddCopied(sandbox.CopyContext, l.uploaded.Load())
	return u, nil
}

// Working notes that a build runs until done is called. See shares.
func (l *Lease) Working() (done func()) { return l.w.shares.working(l.share) }

// Uploaded notes bytes of a build's files that were sent to the worker.
func (l *Lease) Uploaded(bytes int64) { l.uploaded.Add(bytes) }
