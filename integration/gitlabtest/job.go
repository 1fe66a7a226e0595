package gitlabtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/ciyaml"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Status is what GitLab says of a job or a pipeline.
type Status string

// The statuses.
const (
	Created   Status = "created" // waits for other jobs
	Scheduled Status = "scheduled"
	Manual    Status = "manual"
	Waiting   Status = "waiting_for_resource"
	Pending   Status = "pending"
	Running   Status = "running"
	Canceling Status = "canceling"
	Success   Status = "success"
	Failed    Status = "failed"
	Canceled  Status = "canceled"
	Skipped   Status = "skipped"
)

// Ended says that nothing comes after this status.
func (s Status) Ended() bool {
	return s == Success || s == Failed || s == Canceled || s == Skipped
}

// Job is what is known of a job.
type Job struct {
	ID         int64  `json:"id"`
	PipelineID int64  `json:"pipeline_id,omitempty"`
	Name       string `json:"name"`
	Stage      string `json:"stage"`
	Status     Status `json:"status"`
	// FailureReason is the runner's, or stuck_or_timeout_failure, trace_size_exceeded.
	FailureReason spec.FailureReason `json:"failure_reason,omitempty"`
	ExitCode      int                `json:"exit_code,omitempty"`
	Tags          []string           `json:"tags,omitempty"`
	// SystemID is that of the runner that has or had it.
	SystemID string `json:"system_id,omitempty"`
	// Assignments is how often it was given to a runner; Accepted, how often one took it.
	Assignments int `json:"assignments"`
	Acceptances int `json:"acceptances"`
	// RetryOf is the job that this one repeats.
	RetryOf int64 `json:"retry_of,omitempty"`

	TraceSize     int    `json:"trace_size"`
	TraceChecksum string `json:"trace_checksum"` // as in spec.Output
	// Patches are those that were stored, in order.
	Patches []Patch `json:"patches,omitempty"`
	// Updates are the states that the runner told, in order.
	Updates []Update `json:"updates,omitempty"`
	Clock   Clock    `json:"clock"`
}

// Clock is when a job came how far. Times are zero where it has not got there.
type Clock struct {
	Offered     time.Time `json:"offered,omitzero"` // into the queue
	Assigned    time.Time `json:"assigned,omitzero"`
	Accepted    time.Time `json:"accepted,omitzero"`
	FirstOutput time.Time `json:"first_output,omitzero"` // the first byte of the trace was stored
	Finished    time.Time `json:"finished,omitzero"`     // the final state
}

// Patch is a part of a trace.
type Patch struct {
	At         time.Time `json:"at"`
	Start, End int       // End is behind the last byte
}

// Update is a state that the runner told.
type Update struct {
	At     time.Time  `json:"at"`
	State  spec.State `json:"state"`
	Answer int        `json:"answer"` // the status of the answer
}

// job is a job with what only the server knows. The server's lock guards it.
type job struct {
	Job
	spec     spec.Job // what it is offered with
	def      *ciyaml.Job
	pipeline *pipeline

	runner      *runner
	token       string
	oldTokens   []string        // of assignments that came to nothing
	depTokens   map[string]*job // what the runner may read, by token
	waitsForAck bool
	graceful    bool // the runner runs after_script when told canceling
	cancelNext  bool // as soon as it is accepted
	timer       *time.Timer
	started     *time.Timer // of a delayed job

	trace      []byte
	crc        uint32 // of the trace
	patching   bool
	expect     int  // where the next patch begins, as told; -1: no answer may have arrived
	corrected  bool // the last patch was answered by 416
	hasty      int  // patches in a row that came too soon
	lost       bool // the server has lost some of the trace by a fault
	finalPolls int
	repeatAt   time.Time // when a final state may be told again
	toldEnd    bool      // the runner knows that the job has ended
	debugTrace bool
	payload    spec.Job // as it was sent
	session    *spec.Session
	artifacts  []*artifact
	sentOn     map[string]bool // to another node, by the artifact's type
	dotenv     []spec.Variable
}

// Offer puts a job made by hand into the queue. Its ID, Token and the like are filled in where they are missing, and
// no variables are added but for the job's token and address. Tags says which runners may take it.
func (s *Server) Offer(j spec.Job, tags ...string) Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	def := &ciyaml.Job{Name: defaulted(j.JobInfo.Name, "job"), Stage: defaulted(j.JobInfo.Stage, "test"), Tags: tags}
	added := s.addJob(nil, def, j)
	s.offer(added)
	return added.view()
}

// addJob makes a job that is not yet offered.
func (s *Server) addJob(p *pipeline, def *ciyaml.Job, from spec.Job) *job {
	j := &job{spec: from, def: def, pipeline: p, Job: Job{
		ID: from.ID, Name: def.Name, Stage: def.Stage, Status: Created, Tags: def.Tags,
	}}
	if j.ID == 0 {
		j.ID = s.nextID()
	}
	if p != nil {
		j.PipelineID = p.ID
	}
	s.jobs = append(s.jobs, j)
	s.byID[j.ID] = j
	return j
}

// offer puts a job into the queue.
func (s *Server) offer(j *job) {
	j.Status, j.waitsForAck, j.runner, j.SystemID = Pending, false, nil, ""
	j.Clock = Clock{Offered: defaulted(j.Clock.Offered, time.Now())}
	s.queue++
	s.o.Log("job %d (%s): pending", j.ID, j.Name)
	s.notify()
}

// assign gives a job to a runner.
func (s *Server) assign(j *job, r *runner, system string, f spec.Features) {
	if j.token != "" {
		j.oldTokens = append(j.oldTokens, j.token)
	}
	j.runner, j.SystemID, j.graceful = r, system, f.CancelGracefully
	j.token = "glcbt-64_" + random(12)
	j.depTokens = map[string]*job{}
	j.cutTrace()
	j.expect, j.corrected, j.hasty, j.lost, j.finalPolls, j.toldEnd, j.repeatAt = 0, false, 0, false, 0, false, time.Time{}
	j.Updates = nil
	j.Assignments++
	j.Clock.Assigned = time.Now()
	if f.TwoPhaseJobCommit && !s.o.OnePhase {
		j.waitsForAck = true
		s.o.Log("job %d (%s): assigned to %s", j.ID, j.Name, system)
	} else {
		s.accept(j)
	}
	s.alive(j)
	s.notify()
}

// accept begins the second phase.
func (s *Server) accept(j *job) {
	j.Status, j.waitsForAck = Running, false
	j.Acceptances++
	j.Clock.Accepted = time.Now()
	s.o.Log("job %d (%s): running on %s", j.ID, j.Name, j.SystemID)
	if j.cancelNext {
		s.cancel(j)
	}
	s.alive(j)
	s.advance(j.pipeline)
	s.notify()
}

// alive begins the time anew within which the runner must be heard of.
func (s *Server) alive(j *job) {
	s.stop(j.timer)
	if j.Status.Ended() {
		return
	}
	if j.waitsForAck {
		j.timer = s.after(s.o.AckTimeout, func() {
			s.o.Log("job %d (%s): not accepted in time", j.ID, j.Name)
			s.offer(j)
		})
		return
	}
	j.timer = s.after(s.o.StuckTimeout, func() {
		if j.Status == Canceling {
			s.end(j, Canceled, "", 0)
			return
		}
		s.end(j, Failed, "stuck_or_timeout_failure", 0)
	})
}

// end gives a job its last status, and its pipeline a push.
func (s *Server) end(j *job, status Status, reason spec.FailureReason, exitCode int) {
	s.stop(j.timer)
	s.stop(j.started)
	j.Status, j.FailureReason, j.ExitCode, j.waitsForAck = status, reason, exitCode, false
	j.Clock.Finished = time.Now()
	s.o.Log("job %d (%s): %s %s", j.ID, j.Name, status, reason)
	if j.pipeline != nil {
		s.jobEnded(j)
	}
	s.notify()
}

// Cancel cancels a job as a user does: a running one is told to, and gets the time for its after_script if its runner
// can.
func (s *Server) Cancel(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	if j.Status.Ended() || j.Status == Canceling {
		return fmt.Errorf("cancel job %d: it is %s: %w", id, j.Status, ErrState)
	}
	s.cancel(j)
	return nil
}

func (s *Server) cancel(j *job) {
	if j.Status != Running || !j.graceful {
		s.end(j, Canceled, "", 0)
		return
	}
	j.Status = Canceling
	s.o.Log("job %d (%s): canceling", j.ID, j.Name)
	s.notify()
}

// CancelOnAccept cancels a job in the moment in which its runner accepts it.
func (s *Server) CancelOnAccept(id int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	j.cancelNext = true
	return nil
}

// Restarted says that runners may not have heard the last answers, as after a kill: they may repeat themselves.
func (s *Server) Restarted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, j := range s.jobs {
		j.expect, j.corrected, j.hasty, j.toldEnd, j.repeatAt = -1, false, 0, false, time.Time{}
	}
	clear(s.limits)
}

// Job is one job.
func (s *Server) Job(id int64) (Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return Job{}, fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	return j.view(), nil
}

// Jobs are all jobs, in the order in which they were made.
func (s *Server) Jobs() []Job {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Job, len(s.jobs))
	for i, j := range s.jobs {
		out[i] = j.view()
	}
	return out
}

// Payload is a job as it was last sent to a runner.
func (s *Server) Payload(id int64) (spec.Job, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return spec.Job{}, fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	return j.payload, nil
}

// Trace is what the runner has sent of a job's.
func (s *Server) Trace(id int64) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.job(id)
	if j == nil {
		return nil, fmt.Errorf("job %d: %w", id, ErrUnknown)
	}
	return slices.Clone(j.trace), nil
}

// Wait returns a job once it has ended, or is as want says. The error is the context's, or ErrUnknown.
func (s *Server) Wait(ctx context.Context, id int64, want ...Status) (Job, error) {
	for {
		s.mu.Lock()
		j, changed := s.job(id), s.changed
		if j == nil {
			s.mu.Unlock()
			return Job{}, fmt.Errorf("job %d: %w", id, ErrUnknown)
		}
		view := j.view()
		s.mu.Unlock()
		if len(want) == 0 && view.Status.Ended() || slices.Contains(want, view.Status) {
			return view, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return view, fmt.Errorf("job %d is still %s: %w", id, view.Status, context.Cause(ctx))
		}
	}
}

// The errors that callers may look for.
var (
	ErrUnknown = errors.New("there is no such job or pipeline")
	ErrState   = errors.New("not in this state")
)

func (s *Server) job(id int64) *job { return s.byID[id] }

func (j *job) view() Job {
	v := j.Job
	v.Patches, v.Updates = slices.Clone(j.Patches), slices.Clone(j.Updates)
	v.TraceSize, v.TraceChecksum = len(j.trace), checksum(j.crc)
	return v
}

// checksum is as in spec.Output.
func checksum(crc uint32) string { return fmt.Sprintf("crc32:%08x", crc) }
