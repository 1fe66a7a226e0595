package probe

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Class is what a probe is about.
type Class string

// The classes.
const (
	CPU     Class = "cpu"
	Kernel  Class = "kernel" // system calls, page faults, processes
	Files   Class = "files"
	Disk    Class = "disk"
	Network Class = "network"
	Work    Class = "work" // what jobs do
	// Contended is about processors that others want too. Only places with neighbours that do have such probes.
	Contended Class = "contended"
)

// Probe is one thing that is measured.
type Probe struct {
	Name  string
	Class Class
	// Unit is what one operation is: "op", or "MiB" for throughput.
	Unit string
	// Crowds tells that it keeps more processors busy than one, or has processes wait for each other on one: the
	// pressure that is seen while it runs is its own.
	Crowds bool
	// Once, if not 0, is how many operations there are, done once: a repetition would not be like the first.
	Once int
	// setup makes what the probe needs, and returns a function that does n operations and one that cleans up. Its time
	// is not counted.
	setup func(Args) (op func(n int) error, done func() error, err error)
	// direct, instead of setup, returns what it measured, in nanoseconds.
	direct func() (float64, error)
}

// All are the probes, in the order of reports.
func All() []Probe {
	return slices.Concat(processorProbes(), kernelProbes(), fileProbes(), networkProbes(), workProbes(), contendedProbes())
}

// Find returns the probe of a name.
func Find(name string) (Probe, bool) {
	all := All()
	i := slices.IndexFunc(all, func(p Probe) bool { return p.Name == name })
	if i < 0 {
		return Probe{}, false
	}
	return all[i], true
}

// Names are the names of all probes of some classes; of none, of all classes.
func Names(classes ...Class) (names []string) {
	for _, p := range All() {
		if len(classes) == 0 || slices.Contains(classes, p.Class) {
			names = append(names, p.Name)
		}
	}
	return names
}

// ErrNotHere is what a probe says that has nothing to measure at its place.
var ErrNotHere = errors.New("there is nothing to measure here")

// maxOps bounds a repetition.
const maxOps = 1 << 30

// run measures: it finds how many operations take as long as a repetition is to take, and repeats that.
func (p Probe) run(r Request) (_ Answer, err error) {
	if p.direct != nil {
		ns, err := p.direct()
		return Answer{Nanoseconds: ns, Ops: 1}, err
	}
	op, done, err := p.setup(r.Args)
	if err != nil {
		return Answer{}, err
	}
	defer func() { err = errors.Join(err, done()) }()
	runtime.GC()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	if p.Once > 0 {
		took, cpu, err := timed(op, p.Once)
		return Answer{Nanoseconds: float64(took) / float64(p.Once), CPU: float64(cpu) / float64(p.Once), Ops: p.Once}, err
	}
	n := 1
	for {
		took, _, err := timed(op, n)
		if err != nil {
			return Answer{}, err
		}
		if took >= r.Loop || n >= maxOps {
			break
		}
		// A little more than what should do, and no more than ten times what was tried.
		next := int(float64(n) * 1.1 * float64(r.Loop) / float64(max(took, time.Microsecond)))
		n = min(max(next, n+1), 10*n, maxOps)
	}
	var each []float64
	var cpus time.Duration
	for range max(r.Reps, 1) {
		took, cpu, err := timed(op, n)
		if err != nil {
			return Answer{}, err
		}
		each, cpus = append(each, float64(took)/float64(n)), cpus+cpu
	}
	slices.Sort(each)
	median := (each[(len(each)-1)/2] + each[len(each)/2]) / 2
	return Answer{Nanoseconds: median, CPU: float64(cpus) / float64(n*len(each)), Ops: n}, nil
}

// timed does n operations, and returns the time and the processor time that they took.
func timed(op func(int) error, n int) (took, cpu time.Duration, err error) {
	before, began := processorTime(), time.Now()
	err = op(n)
	took = time.Since(began)
	return took, processorTime() - before, err
}

// processorTime is that of this process and of its children that were waited for.
func processorTime() (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// pin binds the thread to the last processor that it may use, the one that interrupts go to least, and returns what
// undoes it. All places of one machine get the same one.
func pin() (undo func(), err error) {
	runtime.LockOSThread()
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("read the processors: %w", err)
	}
	old := may
	last := 0
	for cpu := range 1024 {
		if may.IsSet(cpu) {
			last = cpu
		}
	}
	var one unix.CPUSet
	one.Set(last)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("bind to processor %d: %w", last, err)
	}
	return func() {
		_ = unix.SchedSetaffinity(0, &old)
		runtime.UnlockOSThread()
	}, nil
}

// pinned is a setup whose operations run on one processor.
func pinned(setup func(Args) (func(int) error, func() error, error)) func(Args) (func(int) error, func() error, error) {
	return func(a Args) (func(int) error, func() error, error) {
		undo, err := pin()
		if err != nil {
			return nil, nil, err
		}
		op, done, err := setup(a)
		if err != nil {
			undo()
			return nil, nil, err
		}
		return op, func() error { defer undo(); return done() }, nil
	}
}

func nothing() error { return nil }

// place makes an empty directory in a place's own.
func place(a Args, name string) (dir string, remove func() error, err error) {
	if a.Dir == "" {
		return "", nil, ErrNotHere
	}
	dir, err = os.MkdirTemp(a.Dir, name+"-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}
