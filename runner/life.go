package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// Further Reasons of a Result.
const (
	ReasonShutdown = "shutdown" // the daemon was told to stop
	ReasonImage    = "image"    // the image does not exist
	ReasonPolicy   = "policy"   // refused by policy
	ReasonTooBig   = "too_big"  // larger than the machine
	ReasonPanic    = "panic"    // our code panicked
)

// The causes with which a job's context is cancelled.
var (
	ErrShutdown  = errors.New("runnerd was stopped")
	ErrCancelled = errors.New("the job was cancelled")
	ErrTimeout   = errors.New("the job ran into its timeout")
)

// Config is what a Runner needs.
type Config struct {
	// Open makes a job's sandbox. Its error may wrap sandbox.ErrDenied or sandbox.ErrUnknownImage. On
	// failure it leaves nothing behind.
	Open func(ctx context.Context, j Job) (sandbox.Sandbox, error)
	// Room, when not nil, waits until the disk has room for the job. It is called before Open, and calls waiting
	// with the reason for the wait whenever that changes. An error that is not that of ctx fails the job.
	Room func(ctx context.Context, waiting func(reason string)) error
	// Policy says which nestings may run. The zero value allows none.
	Policy sandbox.Policy
	// Admit, when not nil, is asked about each job that the policy allows. Its error may wrap sandbox.ErrDenied.
	Admit     func(ctx context.Context, r Request) error
	Admission *Admission

	// MaxLive is the largest number of jobs that are taken from the source at once, those that wait for
	// admission included; 0: twice the admission's jobs.
	MaxLive int
	// Drain is how long jobs may go on after Run's context has ended.
	Drain time.Duration
	// DefaultTimeout is that of a job that asks for none, MaxTimeout the longest that is granted; 0: no
	// limit. The time counts from admission.
	DefaultTimeout, MaxTimeout time.Duration
	// CleanupTimeout bounds the closing of a sandbox, and the telling of the result; 0: one minute.
	CleanupTimeout time.Duration

	Log *slog.Logger // nil: nothing is logged
	// Observe, when not nil, is told of every change of every job's state, for metrics and traces. result
	// is nil but for Finished. It is called in the job's goroutine.
	Observe func(j Job, s State, result *Result)
}

// Runner runs jobs.
type Runner struct{ Config }

// New returns a Runner, or says what is missing in c.
func New(c Config) (*Runner, error) {
	if c.Open == nil || c.Admission == nil {
		return nil, errors.New("runner: Config.Open and Config.Admission are needed")
	}
	if c.MaxLive <= 0 {
		c.MaxLive = max(1, 2*c.Admission.Capacity().Jobs)
	}
	if c.CleanupTimeout <= 0 {
		c.CleanupTimeout = time.Minute
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Observe == nil {
		c.Observe = func(Job, State, *Result) {}
	}
	return &Runner{c}, nil
}

// How long Run waits after an error of the source: the first time, and at most.
const (
	sourceRetryMin = time.Second
	sourceRetryMax = 30 * time.Second
)

// Run takes jobs from src and runs them, until ctx ends or src says io.EOF; then it waits for the jobs it
// has. When ctx has ended they have Config.Drain, and are then cancelled with ErrShutdown. Run returns
// when every job has been finished: nil after io.EOF, else context.Cause(ctx).
func (r *Runner) Run(ctx context.Context, src Source) error {
	jobsCtx, cancelJobs := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancelJobs(nil)
	var jobs sync.WaitGroup
	room := make(chan struct{}, r.MaxLive)

	err := r.take(ctx, src, room, func(a Assignment) {
		jobs.Go(func() {
			defer func() { <-room }()
			r.live(jobsCtx, a)
		})
	})

	idle := make(chan struct{})
	go func() { jobs.Wait(); close(idle) }()
	select {
	case <-idle:
		return err
	case <-ctx.Done():
	}
	drain := time.NewTimer(r.Drain)
	defer drain.Stop()
	select {
	case <-idle:
	case <-drain.C:
		cancelJobs(ErrShutdown)
		<-idle
	}
	return err
}

// take asks src for jobs while there is room and gives them to start.
func (r *Runner) take(ctx context.Context, src Source, room chan struct{}, start func(Assignment)) error {
	wait := sourceRetryMin
	for {
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		a, err := src.Next(ctx)
		switch {
		case err == nil:
			wait = sourceRetryMin
			start(a)
			continue
		case errors.Is(err, io.EOF):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		r.Log.Error("no job from the source, will ask again", "error", err, "after", wait)
		<-room
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
		wait = min(2*wait, sourceRetryMax)
	}
}

// live is the life of one job.
func (r *Runner) live(ctx context.Context, a Assignment) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-a.Cancel:
			cancel(ErrCancelled)
		case <-ended:
		}
	}()

	j := &jobRun{Runner: r, Assignment: a, out: newMaskedOutput(a, a.Secrets)}
	j.result.Times.Accepted = time.Now()
	if n := j.out.mask.Unmaskable(); n > 0 {
		j.out.notice("%d secrets are shorter than %d characters and are not hidden in this log", n, MinSecret)
	}
	j.finish(ctx, j.run(ctx))
}

// jobRun is a job on its way.
type jobRun struct {
	*Runner
	Assignment
	out      *maskedOutput
	result   Result
	decided  bool
	closeErr error // of the sandbox
}

// run is everything between the first look at a job and its result: policy, admission, sandbox, steps,
// and the way back. It fills in j.result; what went wrong it returns, for outcome to judge.
func (j *jobRun) run(ctx context.Context) error {
	times := &j.result.Times
	if err := j.Policy.Allow(j.Nesting); err != nil {
		return err
	}
	if j.Admit != nil {
		if err := j.Admit(ctx, j.Request); err != nil {
			return because(ctx, err)
		}
	}

	release, err := j.Admission.Admit(ctx, j.ID, j.Limits, func(reason string) { j.state(ctx, Waiting, reason) })
	if err != nil {
		return err
	}
	defer release()
	times.Admitted = time.Now()
	ctx, stop := j.withTimeout(ctx)
	defer stop()

	if j.Room != nil {
		if err := j.Room(ctx, func(reason string) { j.state(ctx, Waiting, reason) }); err != nil {
			return because(ctx, err)
		}
	}
	j.state(ctx, Opening, "")
	select {
	case <-j.Cancel: // the Reporter may have learned that nobody wants the job: no work may begin
		return ErrCancelled
	default:
	}
	sb, err := j.open(ctx)
	if err != nil {
		return err
	}
	defer j.close(ctx, sb)
	times.Opened = time.Now()

	j.state(ctx, Running, "")
	err = because(ctx, j.steps(ctx, sb))
	times.Ended = time.Now()
	j.usage(ctx, sb)
	j.decide(ctx, err) // who waits for it need not wait for the sandbox to close
	return err
}

// withTimeout gives ctx the job's timeout, with ErrTimeout as the cause.
func (j *jobRun) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := time.Duration(j.Timeout)
	if timeout <= 0 {
		timeout = j.DefaultTimeout
	}
	if j.MaxTimeout > 0 && (timeout <= 0 || timeout > j.MaxTimeout) {
		if timeout > 0 {
			j.out.notice("the timeout of %s is longer than the limit: it is %s", timeout, j.MaxTimeout)
		}
		timeout = j.MaxTimeout
	}
	if timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w of %s", ErrTimeout, timeout))
}

func (j *jobRun) open(ctx context.Context) (sb sandbox.Sandbox, err error) {
	defer recovered("opening the sandbox", &err)
	sb, err = j.Open(ctx, j.Job)
	if err == nil && sb == nil {
		err = errors.New("opening the sandbox gave none")
	}
	return sb, because(ctx, err)
}
