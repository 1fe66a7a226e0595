// Package runner is the life of a job: where it comes from (Source), what it does (Step), when it may
// start (Admission), what it said (LogStore, Mask), and how it ended (Outcome).
package runner

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/scope"
)

// Request asks for a job. It is what the API takes, what the queue stores, and what a forge's job is
// turned into; it holds no secret.
type Request struct {
	ID      string          `json:"id"` // a sandbox id (sandbox.CheckID); the daemon gives it
	Name    string          `json:"name,omitempty"`
	Scope   scope.Scope     `json:"scope"`           // whose caches the job shares; the daemon computes it
	Group   string          `json:"group,omitempty"` // jobs submitted together, such as the targets of one build
	Nesting sandbox.Nesting `json:"sandbox"`
	Image   string          `json:"image,omitempty"`
	Env     []string        `json:"env,omitempty"`
	Limits  sandbox.Limits  `json:"limits"`
	// Module is what WebAssembly modules may see and use, in a sandbox with that layer.
	Module sandbox.Module `json:"module,omitzero"`
	// Pull says how Image is got; empty: as configured. Registry is the host for which the last two of the submitted
	// secrets are credentials; see Credentials.
	Pull     sandbox.PullPolicy `json:"pull,omitempty"`
	Registry string             `json:"registry,omitempty"`
	Timeout  Duration           `json:"timeout,omitempty"` // 0: the configured default
	// Attach makes the job wait for its client and end with it, like a command in a terminal.
	Attach bool `json:"attach,omitempty"`
	// Kind says who understands Payload: "script" or "build".
	Kind    string          `json:"kind"`
	Payload json.RawMessage `json:"payload"`
}

// Job is a Request made ready to run.
type Job struct {
	Request
	Steps []Step
	// Pull says how the image is got, for whom, and with which credentials, which are kept in memory only.
	Pull sandbox.Pull
	// Else is tried, in order, where the image cannot be had.
	Else []Image
	// Volumes and EngineArgs are those of the sandbox's Spec, beside what every job has. A sandbox with any is none of
	// the pool.
	Volumes    map[string]string
	EngineArgs []string
	// Toolbox is what a sandbox that is made for the job has; one of the pool may have none.
	Toolbox *sandbox.Toolbox
	// EngineAt are further addresses of the sandbox's engine, as a DOCKER_HOST names it.
	EngineAt []string
	// Secrets are masked in everything the job writes. They are kept in memory only.
	Secrets []string
}

// Image is an image and how it is got.
type Image struct {
	Ref  string
	Pull sandbox.Pull
}

// Step is one thing done in a sandbox.
type Step interface {
	Name() string
	// Run does it. A failing script is an Exit, not an error: exit code other than 0 means that the user's
	// part failed, an error means that ours did. Steps run in order until one does not succeed.
	Run(ctx context.Context, on sandbox.Host, out Output) (sandbox.Exit, error)
}

// Stream tells apart what is written to a job's log.
type Stream uint8

// The streams of a job's log.
const (
	Stdout   Stream = 1 // the script's standard output
	Stderr   Stream = 2 // the script's standard error
	Notice   Stream = 3 // what runnerd itself says: why the job waits, how it ended
	Progress Stream = 4 // a build's progress: one JSON client.SolveStatus of BuildKit a write
)

// Output is where a job writes. The writers may be used by several goroutines at once, and apply
// back-pressure: a Write returns when the log has taken the bytes.
type Output interface {
	Stream(s Stream) io.Writer
}

// Masker is an Output that hides the job's secrets, and can hide them in what reaches it wrapped: in a log that
// comes in pieces, each inside of a JSON text of its own.
type Masker interface {
	Masked(w io.Writer) *MaskWriter
}

// Source is where jobs come from: a queue, a forge.
type Source interface {
	// Next waits for a job. It is called only when there is room for one.
	Next(ctx context.Context) (Assignment, error)
}

// Assignment is a job, and the one to tell about it.
type Assignment struct {
	Job
	Reporter
	// Cancel is closed when whoever asked for the job no longer wants it.
	Cancel <-chan struct{}
	// End, when not nil, says how the job ended, in the words of where it came from, for the last line of its log;
	// nothing: there is none.
	End func(r Result) string
}

// Reporter is told about one job's life. Its methods are called in order, from one goroutine, but for the
// Output's.
type Reporter interface {
	Output
	// State is told of every change; detail says why, for people ("waiting for 1.5 GiB of memory").
	State(ctx context.Context, s State, detail string)
	// Decided is called once, when the last output was written and it is known how the job ended. Its sandbox may be
	// there still: removing it takes a while and changes nothing but what Finish says besides.
	Decided(ctx context.Context, r Result) error
	// Finish is called exactly once for each assignment, after Decided, when the sandbox is closed.
	Finish(ctx context.Context, r Result) error
}

// State is where a job is in its life.
type State string

// The states of a job, in order. A finished job has an Outcome.
const (
	Queued   State = "queued"   // nobody has looked at it yet
	Waiting  State = "waiting"  // it does not fit yet
	Opening  State = "opening"  // its sandbox is being made
	Running  State = "running"  // its steps run
	Closing  State = "closing"  // its sandbox is being removed
	Finished State = "finished" // it has an Outcome
)

// Outcome is how a job ended.
type Outcome string

// The outcomes. Failed is the user's script, Errored is us.
const (
	Succeeded Outcome = "succeeded"
	Failed    Outcome = "failed"
	Errored   Outcome = "errored"
	Rejected  Outcome = "rejected" // refused by policy, or it can never fit
	Cancelled Outcome = "cancelled"
	TimedOut  Outcome = "timed_out"
)

// ReasonOOM is the Reason of a job whose process was killed for want of memory.
const ReasonOOM = "oom"

// Result is how a job ended and what it used.
type Result struct {
	Outcome  Outcome `json:"outcome"`
	Reason   string  `json:"reason,omitempty"`  // a word for programs: "oom", "shutdown"
	Message  string  `json:"message,omitempty"` // a sentence for people, with how to mend it
	ExitCode int     `json:"exit_code"`         // the failed step's, or the last one's
	// Step is the name of the step that did not succeed.
	Step  string        `json:"step,omitempty"`
	Usage sandbox.Usage `json:"usage"`
	Times Times         `json:"times"`
	// Detail is what a step wants to tell beyond its exit code, such as a build's image digest.
	Detail json.RawMessage `json:"detail,omitempty"`
	// Err is what the outcome was judged by, for a Reporter that wants to know more than Reason has. Its text is not
	// masked, so it is for errors.As only, and is kept in memory only.
	Err error `json:"-"`
}

// Times are the moments of a job's life; zero if it never came to that.
type Times struct {
	Accepted time.Time `json:"accepted"` // the request was journalled
	Admitted time.Time `json:"admitted"` // it fitted
	Opened   time.Time `json:"opened"`   // the sandbox was ready, the first step starts
	Ended    time.Time `json:"ended"`    // the last step ended
	Closed   time.Time `json:"closed"`   // nothing of the sandbox was left
}

// Detailer is a Step that has more to tell than its exit code.
type Detailer interface {
	Detail() json.RawMessage
}

// Duration is a time.Duration that is text ("1h30m") in JSON and YAML.
type Duration time.Duration

// MarshalText writes the duration as time.Duration.String does.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText reads what time.ParseDuration reads.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	*d = Duration(v)
	return err
}
