package sandbox

import (
	"slices"
	"time"
)

// Usage is what a sandbox has used, from its cgroups, its disk and the daemon's clock. Nothing in the sandbox is asked.
type Usage struct {
	CPU           time.Duration `json:"cpu_ns"`               // user and system time
	Memory        int64         `json:"memory_bytes"`         // now, page cache included
	MemoryPeak    int64         `json:"memory_peak_bytes"`    // highest so far, of what the limit is for
	MemoryAverage int64         `json:"memory_average_bytes"` // over the time that the job had it
	Read          int64         `json:"read_bytes"`           // from the sandbox's own disk
	Written       int64         `json:"written_bytes"`        // to it
	PIDs          int64         `json:"pids"`                 // now
	Disk          int64         `json:"disk_bytes"`           // blocks in use on the scratch disk
	OOMKills      int64         `json:"oom_kills"`

	// Parts are what CPU, MemoryAverage, Read and Written are the sums of.
	Parts []Part `json:"parts,omitempty"`
	// Pressure is nil where the kernel does not tell it of a cgroup.
	Pressure *Pressure `json:"pressure,omitempty"`
	// SetUp and TearDown are the steps of opening and of closing it. Those of one list may overlap. A sandbox of a pool
	// was set up before there was a job.
	SetUp    []Stage `json:"set_up,omitempty"`
	TearDown []Stage `json:"tear_down,omitempty"`

	// Services are the companions that it got, but for engines.
	Services []Service `json:"services,omitempty"`
	// Engine is nil if there is no place for one.
	Engine *EngineUse `json:"engine,omitempty"`
	// Copied are bytes that one layer had and another got once more.
	Copied []Copied `json:"copied,omitempty"`
}

// Part is what one part of a sandbox has used: the payload, or a layer of what carries it.
type Part struct {
	Name          PartName      `json:"name"`
	Payload       bool          `json:"payload"`
	CPU           time.Duration `json:"cpu_ns"`
	MemoryAverage int64         `json:"memory_average_bytes"`
	MemoryPeak    int64         `json:"memory_peak_bytes"` // of a single process, the highest that was seen
	Read          int64         `json:"read_bytes"`
	Written       int64         `json:"written_bytes"`
}

// PartName is a word for a part. There are no others, so that it can be a label of a metric.
type PartName string

// The payload's parts.
const (
	PartScript     PartName = "script"      // the job's own container
	PartServices   PartName = "services"    // its companions
	PartContainers PartName = "containers"  // those of an engine in the sandbox
	PartBuildSteps PartName = "build_steps" // of BuildKit
)

// The machinery's parts.
const (
	PartInit       PartName = "init"        // the first processes of its containers
	PartShim       PartName = "shim"        // the machine's shim of the sandbox, and its runc
	PartDockerd    PartName = "dockerd"     // of an engine in the sandbox
	PartContainerd PartName = "containerd"  // of an engine in the sandbox
	PartInnerShims PartName = "inner_shims" // what else an engine or BuildKit runs: shims, runc, iptables, git
	PartBuildKitd  PartName = "buildkitd"   // solving, snapshots, packing and unpacking of layers
	PartOther      PartName = "other"       // what the kernel does not say whose it is
)

var payloadParts = []PartName{PartScript, PartServices, PartContainers, PartBuildSteps}

// Payload reports whether a part is what the sandbox is there for.
func (n PartName) Payload() bool { return slices.Contains(payloadParts, n) }

// Stage is a step of opening or closing a sandbox.
type Stage struct {
	Name StageName     `json:"name"`
	Took time.Duration `json:"took_ns"`
}

// StageName is a word for a stage. There are no others.
type StageName string

// The stages.
const (
	StageImage     StageName = "image"     // authorise, pull and unpack it
	StageDisk      StageName = "disk"      // make and mount it; unmount and remove it
	StageCgroup    StageName = "cgroup"    // make it with its limits; remove it
	StageNetwork   StageName = "network"   // the veth pair, addresses and rules
	StageBase      StageName = "base"      // what it gets of another's state
	StageContainer StageName = "container" // containerd, shim and runc make the sandbox's own
	StageInit      StageName = "init"      // until the init answers
	StageEngine    StageName = "engine"    // the container of an engine
	StageDockerd   StageName = "dockerd"   // until it answers; until it has ended
	StageKill      StageName = "kill"      // until no process is left
	StageBuildKitd StageName = "buildkitd" // until it answers
	StageBuilder   StageName = "builder"   // offer the project's builder; end the builds
)

// Pressure is for how long processes have waited for a resource while they could have run otherwise (PSI; Linux,
// Documentation/accounting/psi.rst): some of them, and all of them at once.
type Pressure struct {
	CPU    Waits `json:"cpu"`
	Memory Waits `json:"memory"`
	IO     Waits `json:"io"`
}

// Waits are the totals of one resource.
type Waits struct {
	Some time.Duration `json:"some_ns"`
	Full time.Duration `json:"full_ns"`
}

// Since is what was waited after it was as before; nil: from the beginning.
func (p *Pressure) Since(before *Pressure) *Pressure {
	if p == nil || before == nil {
		return p
	}
	less := func(a, b Waits) Waits { return Waits{max(0, a.Some-b.Some), max(0, a.Full-b.Full)} }
	return &Pressure{less(p.CPU, before.CPU), less(p.Memory, before.Memory), less(p.IO, before.IO)}
}

// Service is a companion that was started.
type Service struct {
	Name  string        `json:"name"`
	Image string        `json:"image"`
	Took  time.Duration `json:"took_ns"` // until its init answered
}

// EngineUse is what became of the engine that a sandbox has a place for.
type EngineUse struct {
	// Started says that it was started, by a connection or by the pool; Ready is how long that took.
	Started bool          `json:"started"`
	Ready   time.Duration `json:"ready_ns,omitempty"`
	// Built says that the project's builder was used in its stead.
	Built bool `json:"built,omitempty"`
	// Images are those that came into the sandbox by the machine's registry.
	Images []PulledImage `json:"images,omitempty"`
}

// Used reports whether an engine did something for its job, which has used u: it had an image or a container.
func (e *EngineUse) Used(u Usage) bool {
	return e != nil && (e.Built || len(e.Images) > 0 || u.Part(PartContainers).CPU > 0)
}

// PulledImage is an image that was pulled into a sandbox.
type PulledImage struct {
	Image string        `json:"image"` // as the registry was asked for it
	Times int           `json:"times"`
	Bytes int64         `json:"bytes"`   // that the registry sent
	Took  time.Duration `json:"took_ns"` // in which at least one request for it was answered
}

// Copied are bytes that went a way once more.
type Copied struct {
	Way   CopyWay `json:"way"`
	Bytes int64   `json:"bytes"`
}

// CopyWay is a word for a way. There are no others.
type CopyWay string

// The ways.
const (
	CopyPull    CopyWay = "pull"    // an image from the machine's registry into the sandbox
	CopyLoad    CopyWay = "load"    // an image from the builder into the sandbox's engine
	CopyContext CopyWay = "context" // a build's files into the builder
	CopyRestore CopyWay = "restore" // a cache into the sandbox
	CopySave    CopyWay = "save"    // a cache out of it
)

// Part is one of the parts; one that has used nothing if there is none of that name.
func (u Usage) Part(name PartName) Part {
	for _, p := range u.Parts {
		if p.Name == name {
			return p
		}
	}
	return Part{Name: name, Payload: name.Payload()}
}

// Sum is what the parts that are payload, or those that are not, have used together. Its peak is none: they did not
// have theirs at the same moment.
func (u Usage) Sum(payload bool) Part {
	sum := Part{Payload: payload}
	for _, p := range u.Parts {
		if p.Payload == payload {
			sum.CPU += p.CPU
			sum.MemoryAverage += p.MemoryAverage
			sum.Read += p.Read
			sum.Written += p.Written
		}
	}
	return sum
}

// Add adds what another one of the same name has used.
func (p *Part) Add(other Part) {
	p.CPU += other.CPU
	p.Read += other.Read
	p.Written += other.Written
	p.MemoryAverage += other.MemoryAverage
	p.MemoryPeak = max(p.MemoryPeak, other.MemoryPeak)
}

// AddPart adds to what a part has used of processor and disk.
func (u *Usage) AddPart(p Part) {
	for i := range u.Parts {
		if u.Parts[i].Name == p.Name {
			u.Parts[i].Add(p)
			return
		}
	}
	u.Parts = append(u.Parts, p)
}

// AddCopied adds bytes to those that went a way.
func (u *Usage) AddCopied(way CopyWay, bytes int64) {
	if bytes == 0 {
		return
	}
	u.Copied = slices.Clone(u.Copied) // it may be another's, too
	for i := range u.Copied {
		if u.Copied[i].Way == way {
			u.Copied[i].Bytes += bytes
			return
		}
	}
	u.Copied = append(u.Copied, Copied{way, bytes})
}
