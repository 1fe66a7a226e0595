package gitlab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/runner/gitlab/terminal"
)

// job is a job of a server, from when it was given to when it ends here. It is the runner.Reporter of its assignment.
type job struct {
	m      *Manager
	runner Registration
	client *Client
	// session is its terminal, which ends with it.
	session *terminal.Session
	record  record // changed by one goroutine at a time: who keeps it, then who runs it
	spool   *spool
	trace   *trace
	local   runner.Assignment // in this machine's journal; its Reporter is nil if it could not be written there

	stop    chan struct{}   // closed when the script is to stop
	cancel  chan struct{}   // closed when the job is to end at once
	settled chan struct{}   // closed when it waits for room, or was let in
	running <-chan struct{} // closed when no job may begin any more
	streams map[runner.Stream]*stream
	ids     concurrent

	// What speaks with the server of this job: while it waits, and while it runs.
	keeping, following sync.WaitGroup
	endKeep, endFollow context.CancelFunc
	settle             func()

	mu        sync.Mutex
	canceling bool
	why       error // it ends at once; nil: not yet
	lost      bool  // the server wants nothing more
	returned  bool  // it was not begun, and the server may give it to another
	unbegun   bool  // the server wanted it to end before it began
}

// assigned takes a job that the server has given, and hands it out. running ends when no job may begin any more.
func (m *Manager) assigned(running context.Context, r Registration, client *Client, given Given, session *terminal.Session) *job {
	j := &job{
		m: m, runner: r, client: client, session: session, record: newRecord(newID(given.Job.ID), r, given.Job),
		stop: make(chan struct{}), cancel: make(chan struct{}), settled: make(chan struct{}), running: running.Done(),
		streams: map[runner.Stream]*stream{}, ids: m.concurrent(r, given.Job), endKeep: func() {}, endFollow: func() {},
	}
	j.settle = sync.OnceFunc(func() { close(j.settled) })
	m.event(j.record, PhaseAssigned, "")
	if err := j.open(given.Job); err != nil {
		m.cfg.Log.Error("a job of GitLab was not taken", "job", j.record.Job, "error", err)
		j.returned = true
		j.conclude()
		j.leave()
		return j
	}
	// What is begun now must come to an end, whatever becomes of running.
	ctx := context.WithoutCancel(running)
	ready, err := m.prepare(ctx, Assigned{
		ID: j.record.ID, Registration: r, Job: *given.Job, Client: client, Session: session, Stop: j.stop,
		ConcurrentID: j.ids.runner, ConcurrentProjectID: j.ids.project, CorrelationID: given.RequestID,
	})
	ready.ID, ready.Name = j.record.ID, j.record.Name
	local, adoptErr := m.cfg.Adopt(ctx, ready.Request) // also what is refused, so that it is known here
	if adoptErr == nil {
		j.local = local
	}
	if err = errors.Join(err, adoptErr); err != nil {
		j.refuse(ctx, err, jobSecrets(given.Job))
		return j
	}
	ready.Secrets = append(ready.Secrets, jobSecrets(given.Job)...)
	j.keepAlive()
	go j.watchLocal()
	select {
	case m.out <- runner.Assignment{Job: ready, Reporter: j, Cancel: j.cancel, End: j.lastLine}:
	case <-running.Done():
		cause := context.Cause(running)
		res := runner.Result{Outcome: runner.Cancelled, Reason: runner.ReasonShutdown, Message: cause.Error(), Err: cause}
		_ = errors.Join(j.Decided(ctx, res), j.Finish(ctx, res))
	}
	return j
}

// open makes the job's files.
func (j *job) open(given *spec.Job) (err error) {
	if j.spool, err = openSpool(j.m.journal.trace(j.record.ID), cmp.Or(j.runner.OutputLimit, j.m.cfg.TraceLimit)); err != nil {
		return err
	}
	j.trace = j.m.newTrace(j.record, j.client, j.spool)
	j.trace.canceling, j.trace.over = j.cancelGently, j.lose
	rules := newTokenRules(given.Features.TokenMaskPrefixes, truth(given, "FF_MASK_ALL_DEFAULT_TOKENS", true))
	for _, s := range []runner.Stream{runner.Notice, runner.Stdout, runner.Stderr} {
		j.streams[s] = newStream(j, s, rules)
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

// refuse is for a job that cannot be made ready.
func (j *job) refuse(ctx context.Context, err error, secrets []string) {
	mask := runner.NewMask(secrets)
	res := runner.Result{Outcome: runner.Errored, Message: mask.String(err.Error()), Err: err}
	_, _ = io.WriteString(j.streams[runner.Notice], mask.String(j.lastLine(res))+"\n")
	err = j.decide(res)
	if j.local.Reporter != nil {
		err = errors.Join(err, j.local.Finish(ctx, res))
	}
	if err != nil {
		j.m.cfg.Log.Error("a job's end was not written down", "id", j.record.ID, "error", err)
	}
	j.conclude()
	j.leave()
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

// conclude has the server told how the job ended.
func (j *job) conclude() {
	j.m.telling.Go(func() {
		j.following.Wait()
		j.m.conclude(j.record, j.client, j.spool, j.trace, j.fate())
	})
}

// leave makes room for another job.
func (j *job) leave() {
	j.settle()
	j.session.Close()
	j.m.leave(j.runner)
	j.m.release(j.ids)
}

// stampsSince is the major version of GitLab from which its log viewer is known to understand time stamps.
const stampsSince = 18

// stamps reports whether a job's log gets time stamps: as it says itself with FF_TIMESTAMPS, else if its server says
// that it is new enough.
func stamps(j *spec.Job) bool {
	return truth(j, "FF_TIMESTAMPS", number(j, "CI_SERVER_VERSION_MAJOR") >= stampsSince)
}

// stamped puts time stamps before the lines of a stream.
func stamped(w io.Writer, s runner.Stream) *script.Timestamps {
	switch s {
	case runner.Stdout:
		return script.NewTimestamps(w, 'O', 1)
	case runner.Stderr:
		return script.NewTimestamps(w, 'E', 1)
	}
	return script.NewTimestamps(w, 'O', 0)
}
