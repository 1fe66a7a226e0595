package runner

import (
	"container/list"
	"context"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// ErrTooBig is wrapped by Admit's error when a job can never fit. It wraps sandbox.ErrDenied: such a job
// is rejected.
var ErrTooBig = fmt.Errorf("larger than this machine: %w", sandbox.ErrDenied)

// Capacity is what all the jobs of this machine may hold together. The zero value admits nothing.
type Capacity struct {
	CPU    sandbox.MilliCPU // capacity.cpu
	Memory int64            // capacity.memory, in bytes
	Jobs   int              // capacity.jobs
}

// Patience is how long a job waits before nobody may pass it any more.
const Patience = 30 * time.Second

// Admission lets jobs in as long as they fit together.
//
// The rule: first come, first served, but a job that fits may pass one that does not, as long as the one
// that is passed has waited for less than Patience. From then on nobody passes it; the running jobs end,
// and it is next. So a big job is delayed by Patience and the jobs then running, never for ever, and
// small jobs fill the gaps.
type Admission struct {
	capacity Capacity

	mu    sync.Mutex
	held  Capacity
	queue list.List // of *waiter, oldest first
}

type waiter struct {
	id     string
	need   Capacity
	since  time.Time
	in     bool          // admitted
	poke   chan struct{} // admitted, or the reason has changed
	kind   WaitKind
	reason string
}

// WaitKind is what a job waits for, in a word.
type WaitKind string

// The kinds of waiting.
const (
	WaitMemory WaitKind = "memory"
	WaitCPU    WaitKind = "cpu"
	WaitJobs   WaitKind = "jobs" // capacity.jobs
	WaitTurn   WaitKind = "turn" // it would fit, but nobody passes who has waited for longer
	WaitDisk   WaitKind = "disk" // it is admitted, and there is no room on the disk
)

// WaitKinds are all of them.
func WaitKinds() []WaitKind { return []WaitKind{WaitMemory, WaitCPU, WaitJobs, WaitTurn, WaitDisk} }

// NewAdmission returns an Admission for a machine of that capacity.
func NewAdmission(c Capacity) *Admission { return &Admission{capacity: c} }

// Held tells what the admitted jobs hold.
func (a *Admission) Held() Capacity {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.held
}

// Waiting tells how many jobs wait to be admitted, and for what.
func (a *Admission) Waiting() map[WaitKind]int {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := map[WaitKind]int{}
	for e := a.queue.Front(); e != nil; e = e.Next() {
		n[e.Value.(*waiter).kind]++
	}
	return n
}

// Capacity tells what jobs may hold together.
func (a *Admission) Capacity() Capacity { return a.capacity }

// Admit waits until a job with these limits fits. A limit of 0 takes nothing of its kind, so fill in the
// defaults first. waiting, which may be nil, is called in Admit's own goroutine with the reason for the
// wait and again whenever the reason changes. release gives back what the job holds; it is safe to call
// twice. If ctx ends first, Admit returns context.Cause(ctx) and holds nothing.
func (a *Admission) Admit(ctx context.Context, id string, limits sandbox.Limits, waiting func(reason string)) (release func(), err error) {
	need := Capacity{CPU: max(0, limits.CPU), Memory: max(0, limits.Memory), Jobs: 1}
	if err := a.tooBig(need); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}

	w := &waiter{id: id, need: need, since: time.Now(), poke: make(chan struct{}, 1)}
	a.mu.Lock()
	place := a.queue.PushBack(w)
	a.fill()
	a.mu.Unlock()

	for told := ""; ; {
		a.mu.Lock()
		in, reason := w.in, w.reason
		a.mu.Unlock()
		if in {
			return sync.OnceFunc(func() { a.giveBack(need) }), nil
		}
		if reason != told && waiting != nil {
			waiting(reason)
		}
		told = reason
		select {
		case <-w.poke:
		case <-ctx.Done():
			a.mu.Lock()
			in := w.in
			if !in {
				a.queue.Remove(place)
				a.fill() // those behind it may fit
			}
			a.mu.Unlock()
			if in {
				a.giveBack(need)
			}
			return nil, context.Cause(ctx)
		}
	}
}

func (a *Admission) tooBig(need Capacity) error {
	switch c := a.capacity; {
	case need.Memory > c.Memory:
		return fmt.Errorf("the job asks for %s of memory, all jobs together may hold %s: lower the job's memory or raise capacity.memory: %w",
			bytesText(need.Memory), bytesText(c.Memory), ErrTooBig)
	case need.CPU > c.CPU:
		return fmt.Errorf("the job asks for %s, all jobs together may hold %s: lower the job's cpu or raise capacity.cpu: %w",
			cpuText(need.CPU), cpuText(c.CPU), ErrTooBig)
	case need.Jobs > c.Jobs:
		return fmt.Errorf("no job may run, the limit is %d: raise capacity.jobs: %w", c.Jobs, ErrTooBig)
	}
	return nil
}

func (a *Admission) giveBack(need Capacity) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held.CPU -= need.CPU
	a.held.Memory -= need.Memory
	a.held.Jobs -= need.Jobs
	a.fill()
}

// fill lets in whom the rule allows, and tells the others why not. a.mu is held.
func (a *Admission) fill() {
	now := time.Now()
	var impatient *waiter // waits for long enough that nobody passes
	var next *list.Element
	for e := a.queue.Front(); e != nil; e = next {
		next = e.Next()
		w := e.Value.(*waiter)
		lack := a.lack(w.need)
		switch {
		case impatient != nil && lack == "":
			w.say(WaitTurn, fmt.Sprintf("waiting for its turn: job %s has waited longer and needs more", impatient.id))
		case lack == "":
			a.held.CPU += w.need.CPU
			a.held.Memory += w.need.Memory
			a.held.Jobs += w.need.Jobs
			a.queue.Remove(e)
			w.in = true
			w.wake()
		default:
			w.say(a.lacking(w.need), lack)
			if impatient == nil && now.Sub(w.since) >= Patience {
				impatient = w
			}
		}
	}
}

// lacking is what there is too little of for need; empty: nothing. a.mu is held.
func (a *Admission) lacking(need Capacity) WaitKind {
	c, h := a.capacity, a.held
	switch {
	case h.Memory+need.Memory > c.Memory:
		return WaitMemory
	case h.CPU+need.CPU > c.CPU:
		return WaitCPU
	case h.Jobs+need.Jobs > c.Jobs:
		return WaitJobs
	}
	return ""
}

// lack says what is missing for need, or nothing. a.mu is held.
func (a *Admission) lack(need Capacity) string {
	c, h := a.capacity, a.held
	holders := strconv.Itoa(h.Jobs) + " jobs hold"
	if h.Jobs == 1 {
		holders = "1 job holds"
	}
	switch a.lacking(need) {
	case WaitMemory:
		return fmt.Sprintf("waiting for %s of memory: %s %s", bytesText(need.Memory), holders, ofText(h.Memory, c.Memory))
	case WaitCPU:
		return fmt.Sprintf("waiting for %s: %s %s of %s", cpuText(need.CPU), holders, coresText(h.CPU), cpuText(c.CPU))
	case WaitJobs:
		return fmt.Sprintf("waiting for a place: %d of %d jobs run (capacity.jobs)", h.Jobs, c.Jobs)
	}
	return ""
}

func (w *waiter) say(kind WaitKind, reason string) {
	w.kind = kind
	if reason != w.reason {
		w.reason = reason
		w.wake()
	}
}

func (w *waiter) wake() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

var byteUnits = []string{"B", "KiB", "MiB", "GiB", "TiB"}

func unitOf(n int64) (unit int) {
	for n >= 1024 && unit < len(byteUnits)-1 {
		n /= 1024
		unit++
	}
	return unit
}

func inUnit(n int64, unit int) string {
	v := float64(n) / float64(int64(1)<<(10*unit))
	text := strconv.FormatFloat(v, 'f', 2, 64)
	for text[len(text)-1] == '0' {
		text = text[:len(text)-1]
	}
	if text[len(text)-1] == '.' {
		text = text[:len(text)-1]
	}
	return text
}

// bytesText is n for people: "1.5 GiB".
func bytesText(n int64) string {
	u := unitOf(n)
	return inUnit(n, u) + " " + byteUnits[u]
}

// ofText is "22.5 of 23 GiB".
func ofText(part, whole int64) string {
	u := unitOf(whole)
	return inUnit(part, u) + " of " + inUnit(whole, u) + " " + byteUnits[u]
}

// cpuText is c for people: "1.5 CPUs".
func cpuText(c sandbox.MilliCPU) string {
	if c == 1000 {
		return "1 CPU"
	}
	return coresText(c) + " CPUs"
}

func coresText(c sandbox.MilliCPU) string {
	return strconv.FormatFloat(float64(c)/1000, 'f', -1, 64)
}
