package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// How a job is kept that the server has given and we have not accepted (GitLab's documentation, two-phase commit).
const (
	keepalive = 30 * time.Second
	// ackPatience is how long the server waits for an answer before it gives the job to another.
	ackPatience = 2 * time.Minute
)

// job is a job of a server, from when it was given to when it ends here. It is the runner.Reporter of its assignment.
type job struct {
	m      *Manager
	runner Registration
	client *Client
	record record
	spool  *spool
	trace  *trace
	local  runner.Assignment // in this machine's journal

	stop    chan struct{} // closed when the script is to stop
	cancel  chan struct{} // closed when the job is to end at once
	settled chan struct{} // closed when it waits for room, or was let in

	running <-chan struct{} // closed when no job may begin any more
	streams map[runner.Stream]*stream

	following sync.WaitGroup     // what speaks with the server of this job
	unfollow  context.CancelFunc // ends that

	mu        sync.Mutex
	canceling bool
	why       error // it ends at once; nil: not yet
	lost      bool  // the server wants nothing more
	returned  bool  // it was not begun, and the server may give it to another
	unbegun   bool  // the server wanted it to end before it began
}

// assigned takes a job that the server has given, and hands it out. running ends when no job may begin any more.
func (m *Manager) assigned(running context.Context, r Registration, client *Client, given *spec.Job) *job {
	j := &job{
		m: m, runner: r, client: client, record: newRecord(newID(given.ID), r, given),
		stop: make(chan struct{}), cancel: make(chan struct{}), settled: make(chan struct{}), running: running.Done(), streams: map[runner.Stream]*stream{},
	}
	m.event(j.record, PhaseAssigned, "")
	if err := j.open(given); err != nil {
		j.giveBack(err)
		return j
	}
	// What is begun now must come to an end, whatever becomes of running.
	ctx := context.WithoutCancel(running)
	ready, err := m.prepare(ctx, Assigned{ID: j.record.ID, Registration: r, Job: *given, Client: client, Stop: j.stop})
	ready.ID, ready.Name = j.record.ID, j.record.Name
	local, adoptErr := m.cfg.Adopt(ctx, ready.Request) // also what is refused, so that it is known here
	if adoptErr == nil {
		j.local = local
	}
	if err = errors.Join(err, adoptErr); err != nil {
		j.refuse(ctx, err, jobSecrets(given))
		return j
	}
	ready.Secrets = append(ready.Secrets, jobSecrets(given)...)
	j.follow(j.keep)
	go j.watchLocal()
	select {
	case m.out <- runner.Assignment{Job: ready, Reporter: j, Cancel: j.cancel}:
	case <-running.Done():
		j.end(context.Cause(running))
		_ = j.Finish(ctx, runner.Result{Outcome: runner.Cancelled, Reason: runner.ReasonShutdown, Message: context.Cause(running).Error()})
	}
	return j
}

// open makes the job's files.
func (j *job) open(given *spec.Job) (err error) {
	if j.spool, err = openSpool(j.m.journal.trace(j.record.ID), j.m.cfg.TraceLimit); err != nil {
		return err
	}
	j.trace = j.m.newTrace(j.record, j.client, j.spool)
	j.trace.canceling, j.trace.over = j.cancelGently, func(why error) { j.lose(why) }
	rules := newTokenRules(given.Features.TokenMaskPrefixes, truth(given, "FF_MASK_ALL_DEFAULT_TOKENS", true))
	for s, mark := range map[runner.Stream]string{runner.Notice: stampRunner, runner.Stdout: stampOutput, runner.Stderr: stampErrors} {
		j.streams[s] = newStream(j, s, rules, mark)
	}
	return j.m.journal.add(j.record)
}

func (m *Manager) newTrace(r record, c *Client, s *spool) *trace {
	return &trace{
		client: c, spool: s, job: r.Job, token: r.Token, debug: r.Debug, canceling: func() {}, over: func(error) {},
		contact: time.Now(), interval: defaultInterval,
	}
}

// prepare makes a job ready to run. A panic in it is one job's.
func (m *Manager) prepare(ctx context.Context, a Assigned) (ready runner.Job, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("runnerd panicked while reading the job: %v: please report this", p)
		}
	}()
	return m.cfg.Prepare(ctx, a)
}

// jobSecrets are what no log may show, whatever the job does with it.
func jobSecrets(given *spec.Job) []string {
	secrets := []string{given.Token}
	for _, v := range given.Variables {
		if v.Masked {
			secrets = append(secrets, v.Value)
		}
	}
	for _, c := range given.Credentials {
		secrets = append(secrets, c.Password)
	}
	for _, d := range given.Dependencies {
		secrets = append(secrets, d.Token)
	}
	return secrets
}

// giveBack is for a job that cannot even be written down.
func (j *job) giveBack(err error) {
	j.m.cfg.Log.Error("a job of GitLab was not taken", "job", j.record.Job, "error", err)
	j.returned = true
	j.done()
}

// refuse is for a job that cannot be made ready.
func (j *job) refuse(ctx context.Context, err error, secrets []string) {
	mask := runner.NewMask(secrets)
	res := runner.Result{Outcome: runner.Errored, Message: mask.String(err.Error()), Err: err}
	_, _ = io.WriteString(j.streams[runner.Notice], mask.String(j.End(res))+"\n")
	err = j.decide(res)
	if j.local.Reporter != nil {
		err = errors.Join(err, j.local.Finish(ctx, res))
	}
	if err != nil {
		j.m.cfg.Log.Error("a job's end was not written down", "id", j.record.ID, "error", err)
	}
	j.done()
}

// follow begins to speak with the server of this job, by talk, until unfollowed.
func (j *job) follow(talk func(ctx context.Context)) {
	ctx, cancel := context.WithCancel(j.m.tell)
	j.unfollow = cancel
	j.following.Go(func() { talk(ctx) })
}

// unfollowed ends that, and returns when it has ended.
func (j *job) unfollowed() {
	if j.unfollow != nil {
		j.unfollow()
	}
	j.following.Wait()
}

// keep tells the server that the job waits, until ctx ends. A server that has no second phase takes the job to run; it
// is then told so from time to time, with its log.
func (j *job) keep(ctx context.Context) {
	wait := pause{least: backoffMin, most: keepalive}
	for gap := keepalive; ; {
		if sleep(ctx, gap) != nil {
			return
		}
		r, err := j.say(ctx, spec.Pending)
		switch {
		case ctx.Err() != nil:
			return
		case r.Status == statusRuns:
			j.accepted()
			j.trace.follow(ctx)
			return
		case j.answer(r, err):
			return
		case err != nil:
			gap = wait.next(err)
		default:
			gap = keepalive
			wait.reset()
		}
	}
}

// say tells the server a state, without the log.
func (j *job) say(ctx context.Context, s spec.State) (Remote, error) {
	return j.client.UpdateJob(ctx, j.record.Job, spec.Update{Token: j.record.Token, State: s})
}

// statusRuns is the answer to "pending" for a job that runs already.
const statusRuns = 400

// answer judges the answer to an update of a job that we have not accepted; ended is whether that is the end of it.
func (j *job) answer(r Remote, err error) (ended bool) {
	if over := j.trace.note(r, err); over != nil {
		return true
	}
	if r.State == spec.Canceling {
		j.unbegun = true
		j.end(runner.ErrCancelled)
		return true
	}
	if err != nil && r.Status != 0 && !temporary(r.Status) {
		j.lose(fmt.Errorf("GitLab has given it to another: %w", err))
		return true
	}
	return false
}

// accept tells the server that the job begins. When it returns, the job is ours, or cancel is closed.
func (j *job) accept(ctx context.Context) {
	j.unfollowed()
	if j.ended() {
		return
	}
	if j.record.Accepted { // the server has no second phase
		j.follow(j.trace.follow)
		return
	}
	deadline := j.trace.contact.Add(ackPatience)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	wait := pause{least: backoffMin, most: backoffMax}
	for {
		r, err := j.say(ctx, spec.Running)
		if err == nil && !r.Over() {
			j.accepted()
		}
		if j.answer(r, err) {
			return
		}
		if err == nil {
			j.follow(j.trace.follow)
			return
		}
		if !j.rest(ctx, wait.next(err)) {
			j.mu.Lock()
			j.returned = true
			j.mu.Unlock()
			j.end(fmt.Errorf("GitLab could not be told that the job begins: %w", err))
			return
		}
	}
}

// rest waits before a job is accepted. It returns false if it is too late then.
func (j *job) rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
	case <-j.cancel:
	case <-j.running:
	}
	return false
}

// accepted takes down that the job runs for the server.
func (j *job) accepted() {
	j.record.Accepted = true
	if err := j.m.journal.update(j.record); err != nil {
		j.m.cfg.Log.Error("a job's progress was not written down", "id", j.record.ID, "error", err)
	}
	j.m.event(j.record, PhaseAccepted, "")
}

// watchLocal ends the job when this machine's operator does.
func (j *job) watchLocal() {
	select {
	case <-j.local.Cancel:
		j.end(runner.ErrCancelled)
	case <-j.cancel:
	}
}

// cancelGently is what the server wants with "canceling".
func (j *job) cancelGently() {
	j.mu.Lock()
	before := j.canceling
	j.canceling = true
	j.mu.Unlock()
	if before {
		return
	}
	close(j.stop)
	j.m.event(j.record, PhaseCanceling, "")
}

// lose ends a job that the server wants nothing more of.
func (j *job) lose(why error) {
	j.mu.Lock()
	before := j.lost
	j.lost = true
	j.mu.Unlock()
	if !before {
		j.m.event(j.record, PhaseLost, why.Error())
	}
	j.end(why)
}

// end makes the job end at once.
func (j *job) end(why error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.why == nil {
		j.why = why
		close(j.cancel)
	}
}

func (j *job) ended() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.why != nil
}

// settle tells who asks for jobs that this one waits, or was let in.
func (j *job) settle() {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.hasSettled() {
		close(j.settled)
	}
}

func (j *job) hasSettled() bool {
	select {
	case <-j.settled:
		return true
	default:
		return false
	}
}

// State tells this machine's journal where the job is, and the server that it begins.
func (j *job) State(ctx context.Context, s runner.State, detail string) {
	j.settle()
	j.local.State(ctx, s, detail)
	if s == runner.Opening {
		j.accept(ctx)
	}
}

// Stream is where the job writes. Progress of builds stays on this machine.
func (j *job) Stream(s runner.Stream) io.Writer {
	if own := j.streams[s]; own != nil {
		return own
	}
	return j.local.Stream(s)
}

// End says how the job ended, as gitlab-runner does.
func (j *job) End(r runner.Result) string {
	const green, red, reset = "\x1b[32;1m", "\x1b[31;1m", "\x1b[0;m"
	v := j.verdict(r)
	switch {
	case v.State == spec.Success:
		return green + "Job succeeded" + reset
	case v.Reason == spec.JobCanceled:
		return red + "ERROR: Job failed: canceled" + reset
	case v.Reason == spec.ScriptFailure && r.Reason == "":
		return red + fmt.Sprintf("ERROR: Job failed: exit code %d", r.ExitCode) + reset
	case v.Reason == spec.RunnerSystemFailure:
		return red + "ERROR: Job failed (system failure): " + r.Message + reset
	}
	return red + "ERROR: Job failed: " + r.Message + reset
}

// verdict is what the server is to be told, with the reason as we have it.
func (j *job) verdict(r runner.Result) Verdict {
	j.mu.Lock()
	defer j.mu.Unlock()
	return verdictOf(r, j.canceling)
}

// Finish takes down how the job ended. The server is told in the background.
func (j *job) Finish(ctx context.Context, r runner.Result) error {
	j.settle()
	j.unfollowed()
	j.end(runner.ErrCancelled) // for who watches
	j.mu.Lock()
	if j.lost && r.Outcome == runner.Cancelled {
		r.Message = j.why.Error()
	}
	if !j.record.Accepted && r.Outcome == runner.Cancelled && r.Reason == runner.ReasonShutdown {
		j.returned = true // another may have it
	}
	j.mu.Unlock()
	err := j.decide(r)
	err = errors.Join(err, j.local.Finish(ctx, r))
	j.done()
	return err
}

// decide writes down how the job ended.
func (j *job) decide(r runner.Result) error {
	var errs []error
	for _, s := range j.streams {
		errs = append(errs, s.flush())
	}
	if j.fate() != fateDecided {
		return errors.Join(errs...)
	}
	v := j.verdict(r)
	if v.State == spec.Failed && !j.unbegun { // gitlab-runner tells job_canceled of a job that did not begin, whatever the server knows
		v.Reason = supported(v.Reason, j.record.Reasons)
	}
	j.record.Verdict, j.record.Decided, j.record.Sent = &v, time.Now(), j.trace.sent
	j.m.event(j.record, PhaseDecided, r.Message)
	return errors.Join(append(errs, j.m.journal.update(j.record))...)
}

// fate says what is to be told of the job.
func (j *job) fate() fate {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.lost:
		return fateLost
	case j.returned:
		return fateReturned
	}
	return fateDecided
}

// done lets go of the job: what is left is to tell the server.
func (j *job) done() {
	j.settle()
	j.m.leave(j.runner)
	j.m.telling.Go(func() { j.m.conclude(j.record, j.client, j.spool, j.trace, j.fate()) })
}
