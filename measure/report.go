package measure

import (
	"time"

	"github.com/runnerd/runnerd/measure/probe"
)

// The series, by what they are about.
const (
	CauseDepth      = "depth"
	CauseNamespaces = "namespaces"
	CauseQuota      = "quota"
	CauseContended  = "contended"
	CauseStorage    = "storage"
	CauseNetwork    = "network"
	CauseDaemons    = "daemons"
	CauseSeccomp    = "seccomp"
)

// Causes are the names of all series, in the order in which they are measured and told.
func Causes() []string {
	return []string{CauseDepth, CauseNamespaces, CauseQuota, CauseContended, CauseStorage, CauseNetwork, CauseDaemons, CauseSeccomp}
}

// Report is all that one measurement found.
type Report struct {
	Machine Machine       `json:"machine"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"took_ns"`
	Plan    PlanFacts     `json:"plan"`
	Places  []PlaceFacts  `json:"places"`
	Series  []Outcome     `json:"series"`
	Kinds   []KindResult  `json:"kinds"`
	Limits  []Limit       `json:"limits"`
	Claims  []Verdict     `json:"claims"`
	Goals   []Verdict     `json:"goals"`
	Notes   []string      `json:"notes,omitempty"` // what was left out, and why
}

// PlanFacts are how it was measured.
type PlanFacts struct {
	Depth     int           `json:"depth"`
	Blocks    int           `json:"blocks"`
	Seed      uint64        `json:"seed"`
	Loop      time.Duration `json:"loop_ns"`
	Reps      int           `json:"reps"`
	Pressure  float64       `json:"max_pressure"` // as a share of time
	Instances []int         `json:"instances"`
}

// Machine is what was measured.
type Machine struct {
	Host         string            `json:"host"`
	Kernel       string            `json:"kernel"`
	Processors   int               `json:"processors"`
	MemoryBytes  int64             `json:"memory_bytes"`
	Cgroups      string            `json:"cgroups"` // "v1" or "v2"
	FileSystem   string            `json:"file_system"`
	RCUExpedited string            `json:"rcu_expedited"`
	Load         string            `json:"load"`     // /proc/loadavg at the start
	Pressure     string            `json:"pressure"` // of the processors, at the start
	Versions     map[string]string `json:"versions"`
}

// PlaceFacts are what a place of the series "depth" is.
type PlaceFacts struct {
	Name  string `json:"name"`
	Depth int    `json:"depth"`
	// PIDs are the probe's ids from the machine's pid namespace to its own.
	PIDs []string `json:"pids"`
	probe.Facts
}

// KindResult is what a kind of sandbox costs to start and to keep.
type KindResult struct {
	Name    string        `json:"name"`
	Starts  []float64     `json:"starts_ms"` // until it is ready, in the order of the starts
	Points  []MemoryPoint `json:"points"`
	Skipped []int         `json:"skipped,omitempty"` // counts that the machine has too little memory for
	// MiB is memory by instances: the slope is what each takes, the intercept what all take together.
	MiB Line `json:"mib"`
	// First is what the first one took, Next what each further one did, in MiB.
	First float64 `json:"first_mib"`
	Next  float64 `json:"next_mib"`
	// Missing says why there are no figures; empty: there are.
	Missing string `json:"missing,omitempty"`
}

// MemoryPoint is the memory of so many instances together, the machinery on the machine included.
type MemoryPoint struct {
	Instances int   `json:"instances"`
	Bytes     int64 `json:"bytes"`
	Kernel    int64 `json:"kernel_bytes"` // of Bytes
}

const mib = 1 << 20

// Fit finds what one more instance takes.
func (k *KindResult) Fit() {
	var x, y []float64
	for _, p := range k.Points {
		if p.Instances > 0 {
			x, y = append(x, float64(p.Instances)), append(y, float64(p.Bytes)/mib)
		}
	}
	if len(x) == 0 {
		return
	}
	k.MiB = Fit(x, y)
	k.First, k.Next = y[0]/x[0], y[0]/x[0]
	if last := len(x) - 1; last > 0 {
		k.Next = (y[last] - y[0]) / (x[last] - x[0])
	}
}

// Limit is one of the kernel's, and what runnerd says before anything comes to it.
type Limit struct {
	Name   string `json:"name"`
	Found  int    `json:"found"`  // how many there can be, by trying
	Kernel string `json:"kernel"` // what it says to one more
	// Says is runnerd's error, which comes before anything is started.
	Says string `json:"runnerd_says"`
}
