// Package advise says what to change about jobs so that they nest less or wait less, from what finished ones have used.
// It does no I/O.
package advise

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// Job is what is known of a finished job.
type Job struct {
	Project string // with its forge; who may trust it makes no difference
	Name    string
	Nesting sandbox.Nesting
	Image   string
	Limits  sandbox.Limits
	Result  runner.Result
	Ended   time.Time
}

// Kind is a word for what is to be changed.
type Kind string

// The kinds.
const (
	DropEngine  Kind = "drop_engine"  // jobs ask for an engine and never use it
	Flatten     Kind = "flatten"      // all that an engine does is run what a service of the job could be
	KeepImage   Kind = "keep_image"   // an image is pulled into engines again and again
	KeepReady   Kind = "keep_ready"   // a kind of sandbox is started cold again and again
	LowerMemory Kind = "lower_memory" // jobs wait for memory that they do not use
)

// Advice is one thing to change.
type Advice struct {
	Kind    Kind   `json:"kind"`
	Project string `json:"project"`
	// Subject is what it is about: a job's name, an image, a nesting with its image.
	Subject string `json:"subject,omitempty"`
	Jobs    int    `json:"jobs"` // that it is drawn from
	// SavedSeconds are those that these jobs would have taken less, or the machine for them.
	SavedSeconds float64 `json:"saved_seconds"`
	Text         string  `json:"text"`
}

// Report is what there is to say of a time.
type Report struct {
	Since    time.Time `json:"since"`
	Earliest time.Time `json:"earliest,omitzero"` // the first of the jobs
	Jobs     int       `json:"jobs"`              // that finished
	Measured int       `json:"measured"`          // of which it is known what they used
	// Verdict is a sentence that stands in for advice where there is none.
	Verdict string   `json:"verdict,omitempty"`
	Advice  []Advice `json:"advice"`
}

// Below these there is nothing to learn from.
const (
	minJobs  = 20 // of all together
	minGroup = 5  // of those that an advice is about
	minSaved = time.Second
)

// About returns what jobs that ended since then have to teach, what saves most first.
func About(all []Job, since time.Time) Report {
	r := Report{Since: since, Advice: []Advice{}}
	var jobs []Job
	for _, j := range all {
		if j.Ended.Before(since) {
			continue
		}
		r.Jobs++
		if r.Earliest.IsZero() || j.Ended.Before(r.Earliest) {
			r.Earliest = j.Ended
		}
		if len(j.Result.Usage.Parts) > 0 {
			jobs = append(jobs, j)
		}
	}
	r.Measured = len(jobs)
	if r.Measured < minJobs {
		r.Verdict = fmt.Sprintf("Too little to go by: of %d jobs it is known what they used, and %d are needed.", r.Measured, minJobs)
		return r
	}
	for _, rule := range []func([]Job) []Advice{engines, pulls, cold, waits} {
		r.Advice = append(r.Advice, rule(jobs)...)
	}
	r.Advice = slices.DeleteFunc(r.Advice, func(a Advice) bool { return a.SavedSeconds < minSaved.Seconds() })
	slices.SortStableFunc(r.Advice, func(a, b Advice) int { return cmp.Compare(b.SavedSeconds, a.SavedSeconds) })
	if len(r.Advice) == 0 {
		r.Verdict = fmt.Sprintf("Nothing to say: in %d jobs there is nothing that would have saved a second.", r.Measured)
	}
	return r
}

// grouped are jobs by a key, in the order of the keys.
func grouped[K comparable](jobs []Job, key func(Job) (K, bool), order func(a, b K) int) (keys []K, groups map[K][]Job) {
	groups = map[K][]Job{}
	for _, j := range jobs {
		if k, ok := key(j); ok {
			groups[k] = append(groups[k], j)
		}
	}
	for k := range groups {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, order)
	return keys, groups
}

func sum(jobs []Job, of func(Job) time.Duration) (d time.Duration) {
	for _, j := range jobs {
		d += of(j)
	}
	return d
}
