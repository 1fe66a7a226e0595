package container

import (
	"cmp"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// machineryPart is the cgroup, below an engine's, of what is not its containers: the init, dockerd and all that it
// starts itself, or buildkitd. The engine's containers, wherever a job puts them, lie beside it.
const machineryPart = "init"

// When a meter looks: soon at first, so that a short job has an average too, and then ever more seldom.
const (
	firstLook = 100 * time.Millisecond
	lastLook  = 15 * time.Second
)

// meter accounts what a sandbox uses, part by part, from cgroups and the clocks of the machinery's processes.
//
// What a part has used of the processor and of the disk is read when somebody asks: the kernel counts it. Of memory it
// keeps the peak and not the average, so a meter looks from time to time.
type meter struct {
	root, shim *gauges

	mu      sync.Mutex
	disk    *transfers // nil before there is one
	members []*memberMeter
	tallies map[sandbox.PartName]*partTally
	began   time.Time // of the averages
	looked  time.Time
	whole   partTally // of the whole subtree
	timer   *time.Timer
	closed  bool
}

// partTally is what is known of a part beside what its live members say.
type partTally struct {
	sandbox.Part         // of members that are gone
	now          int64   // bytes of memory at the last look
	area         float64 // byte seconds
}

// look notes how much memory there is now, after some time.
func (t *partTally) look(memory int64, after time.Duration) {
	t.area += float64(t.now+memory) / 2 * after.Seconds()
	t.now = memory
	t.MemoryPeak = max(t.MemoryPeak, memory)
}

func newMeter(c cgroup) *meter {
	return &meter{
		root: newGauges(c), shim: newGauges(c.shim()),
		tallies: map[sandbox.PartName]*partTally{}, began: time.Now(), looked: time.Now(),
	}
}

// restart forgets the averages: the sandbox is somebody's from now on.
func (m *meter) restart() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.look()
	m.began, m.whole.area = m.looked, 0
	for _, t := range m.tallies {
		t.area = 0
	}
	m.lookAfter(firstLook)
}

// add begins to account a container whose init runs.
func (m *meter) add(c cgroup, payload sandbox.PartName, engine bool, init int) {
	member := &memberMeter{all: newGauges(c), payload: payload, processes: map[sandbox.PartName]*process{}}
	if engine {
		member.machinery = newGauges(cgroup{h: c.h, path: filepath.Join(c.path, machineryPart)})
	}
	if p, err := watchProcess(init); err == nil {
		member.processes[sandbox.PartInit] = p
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.members = append(m.members, member)
	m.look()
	m.lookAfter(firstLook)
}

// note reads the clocks of a container whose processes are about to be killed.
func (m *meter) note(c cgroup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, member := range m.members {
		if member.all.c.path == c.path {
			member.find()
			member.read(m.disk)
		}
	}
}

// remove ends the account of a container whose processes are dead and whose cgroup is still there.
func (m *meter) remove(c cgroup) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.look()
	m.members = slices.DeleteFunc(m.members, func(member *memberMeter) bool {
		if member.all.c.path != c.path {
			return false
		}
		for _, p := range member.read(m.disk) {
			m.tally(p.Name).Add(p)
		}
		member.close()
		return true
	})
}

func (m *meter) tally(name sandbox.PartName) *partTally {
	t := m.tallies[name]
	if t == nil {
		t = &partTally{}
		m.tallies[name] = t
	}
	return t
}

// lookAfter plans the next look. m.mu is held.
func (m *meter) lookAfter(d time.Duration) {
	if m.closed {
		return
	}
	if m.timer != nil {
		m.timer.Stop()
	}
	m.timer = time.AfterFunc(d, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.look()
		m.lookAfter(min(2*d, lastLook))
	})
}

// look notes how much memory each part has now. m.mu is held.
func (m *meter) look() {
	now := time.Now()
	after := now.Sub(m.looked)
	m.looked = now
	live := map[sandbox.PartName]int64{}
	for _, member := range m.members {
		member.find()
		member.memory(live)
	}
	live[sandbox.PartShim] = m.shim.memoryNow()
	whole := m.root.memoryNow() + live[sandbox.PartShim]
	m.whole.look(whole, after)
	var known int64
	for _, n := range live {
		known += n
	}
	live[sandbox.PartOther] = max(0, whole-known)
	for name := range live {
		m.tally(name)
	}
	for name, t := range m.tallies {
		t.look(live[name], after)
	}
}

// usage is what there is to tell now, but for what is no affair of cgroups.
func (m *meter) usage() (u sandbox.Usage) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.look()
	parts := map[sandbox.PartName]sandbox.Part{}
	for name, t := range m.tallies {
		parts[name] = t.Part
	}
	add := func(p sandbox.Part) {
		sum := parts[p.Name]
		sum.Add(p)
		parts[p.Name] = sum
	}
	for _, member := range m.members {
		for _, p := range member.read(m.disk) {
			add(p)
		}
	}
	within := m.root.cpu()
	add(sandbox.Part{Name: sandbox.PartShim, CPU: m.shim.cpu(), MemoryPeak: m.shim.memoryPeak()})
	u.CPU = within + parts[sandbox.PartShim].CPU
	u.Read, u.Written = m.disk.total()
	span := m.looked.Sub(m.began).Seconds()
	average := func(area float64, now int64) int64 {
		if span <= 0 {
			return now
		}
		return int64(area / span)
	}
	rest := sandbox.Part{Name: sandbox.PartOther, CPU: u.CPU, Read: u.Read, Written: u.Written}
	for _, p := range parts {
		rest.CPU -= p.CPU
		rest.Read -= p.Read
		rest.Written -= p.Written
	}
	// The kernel may have counted more in the parts than in the whole, which was read earlier, or by its disk.
	u.CPU, u.Read, u.Written = u.CPU-min(0, rest.CPU), u.Read-min(0, rest.Read), u.Written-min(0, rest.Written)
	rest.CPU, rest.Read, rest.Written = max(0, rest.CPU), max(0, rest.Read), max(0, rest.Written)
	add(rest)
	u.MemoryAverage = average(m.whole.area, m.whole.now)
	for _, name := range slices.Sorted(maps.Keys(parts)) {
		p := parts[name]
		p.Name, p.Payload = name, name.Payload()
		if t := m.tallies[name]; t != nil {
			p.MemoryAverage = average(t.area, t.now)
		}
		u.Parts = append(u.Parts, p)
	}
	slices.SortStableFunc(u.Parts, func(a, b sandbox.Part) int { // the payload first
		return cmp.Compare(rank(a), rank(b))
	})
	u.Memory, u.MemoryPeak = m.root.memoryNow(), m.root.memoryPeak()
	u.Pressure = m.root.c.pressure()
	return u
}

func rank(p sandbox.Part) int {
	if p.Payload {
		return 0
	}
	return 1
}

// close ends the looking.
func (m *meter) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	if m.timer != nil {
		m.timer.Stop()
	}
	for _, member := range m.members {
		member.close()
	}
	m.members = nil
	m.root.close()
	m.shim.close()
}

// memberMeter accounts one container.
type memberMeter struct {
	all       *gauges
	machinery *gauges // of an engine; nil: its init alone is machinery
	payload   sandbox.PartName
	processes map[sandbox.PartName]*process
}

// engineProcesses are those of an engine that live as long as it does, by their names (proc(5), comm).
var engineProcesses = map[string]sandbox.PartName{
	"dockerd": sandbox.PartDockerd, "containerd": sandbox.PartContainerd, "buildkitd": sandbox.PartBuildKitd,
}

// find looks for the engine's processes, unless they are known.
func (m *memberMeter) find() {
	if m.machinery == nil {
		return
	}
	if m.processes[sandbox.PartBuildKitd] != nil || m.processes[sandbox.PartContainerd] != nil && m.processes[sandbox.PartDockerd] != nil {
		return
	}
	procs, err := os.ReadFile(m.machinery.file("cgroup.procs", "cpuacct", "cgroup.procs"))
	if err != nil {
		return
	}
	for line := range strings.Lines(string(procs)) {
		pid, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "comm"))
		name := engineProcesses[strings.TrimSpace(string(comm))]
		if err != nil || name == "" || m.processes[name] != nil {
			continue
		}
		if p, err := watchProcess(pid); err == nil {
			m.processes[name] = p
		}
	}
}

// memory adds what the container's parts have now.
func (m *memberMeter) memory(live map[sandbox.PartName]int64) {
	all, own := m.all.memoryNow(), int64(0)
	for name, p := range m.processes {
		_, memory := p.look()
		own += memory
		live[name] += memory
	}
	machinery := own
	if m.machinery != nil {
		machinery = max(own, m.machinery.memoryNow())
		live[sandbox.PartInnerShims] += machinery - own
	}
	live[m.payload] += max(0, all-machinery)
}

// read returns what the container's parts have used so far.
func (m *memberMeter) read(disk *transfers) []sandbox.Part {
	var parts []sandbox.Part
	var own time.Duration
	for name, p := range m.processes {
		cpu, _ := p.look()
		own += cpu
		parts = append(parts, sandbox.Part{Name: name, CPU: cpu})
	}
	payload := sandbox.Part{Name: m.payload, CPU: m.all.cpu(), MemoryPeak: m.all.memoryPeak()}
	payload.Read, payload.Written = m.all.io(disk)
	if m.machinery == nil {
		payload.CPU = max(0, payload.CPU-own)
		return append(parts, payload)
	}
	machinery := m.machinery.cpu()
	rest := sandbox.Part{Name: sandbox.PartInnerShims, CPU: max(0, machinery-own)}
	// Whose of the machinery's processes it was that read or wrote, the kernel does not tell. All but nothing of it is
	// layers, and these are the business of one of them.
	layers := sandbox.Part{Name: sandbox.PartContainerd}
	if m.processes[sandbox.PartBuildKitd] != nil {
		layers.Name = sandbox.PartBuildKitd
	}
	layers.Read, layers.Written = m.machinery.io(disk)
	payload.CPU = max(0, payload.CPU-max(machinery, own))
	payload.Read, payload.Written = max(0, payload.Read-layers.Read), max(0, payload.Written-layers.Written)
	payload.MemoryPeak = 0 // the kernel has that of the engine's containers together with the engine
	return append(parts, rest, layers, payload)
}

func (m *memberMeter) close() {
	m.all.close()
	if m.machinery != nil {
		m.machinery.close()
	}
	for _, p := range m.processes {
		p.close()
	}
}
