package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/sandbox"
)

// outOfOrder is how long Next waits for the job whose turn it is when River has handed over only later
// ones, as it may when the clock was set back.
const outOfOrder = 100 * time.Millisecond

// Next waits for the next job, in the order of submission. After Close it returns ErrClosed, which wraps
// io.EOF.
func (q *Queue) Next(ctx context.Context) (runner.Assignment, error) {
	for {
		j, err := q.head(ctx)
		if err != nil {
			return runner.Assignment{}, err
		}
		a, err := q.assign(context.WithoutCancel(ctx), j) // it is ours now, whatever becomes of ctx
		if err == nil {
			return a, nil
		}
		res := runner.Result{Outcome: runner.Errored, Message: err.Error()}
		if errors.Is(err, sandbox.ErrDenied) {
			res.Outcome, res.Reason = runner.Rejected, runner.ReasonPolicy
		}
		_ = j.Finish(context.WithoutCancel(ctx), res) // logged there
	}
}

// head waits for the job whose turn it is and takes it.
func (q *Queue) head(ctx context.Context) (*job, error) {
	var patience <-chan time.Time
	anyOne := false
	for {
		q.mu.Lock()
		if q.closed {
			q.mu.Unlock()
			return nil, ErrClosed
		}
		j, others := q.first(anyOne)
		if j != nil {
			j.assigned = true
			q.mu.Unlock()
			return j, nil
		}
		changed := q.changed
		q.mu.Unlock()

		if !others {
			patience = nil
		} else if patience == nil {
			patience = time.After(outOfOrder)
		}
		select {
		case <-changed:
		case <-patience:
			anyOne = true
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// first returns the job whose turn it is, if River has handed it over, and whether it has handed over
// others. q.mu is held.
func (q *Queue) first(anyOne bool) (j *job, others bool) {
	for len(q.waiting) > 0 && q.waiting[0].assigned {
		q.waiting[0] = nil
		q.waiting = q.waiting[1:]
	}
	for i, j := range q.waiting {
		if j.arrived && !j.assigned {
			if i == 0 || anyOne {
				return j, true
			}
			return nil, true
		}
	}
	return nil, false
}

// assign makes the job ready to run and opens its log.
func (q *Queue) assign(ctx context.Context, j *job) (runner.Assignment, error) {
	ready, err := q.resolve(context.WithValue(ctx, secretsKey{}, j.secrets), j.info.Request)
	if err != nil {
		return runner.Assignment{}, err
	}
	ready.Secrets = append(ready.Secrets, j.secrets...)
	log, err := q.cfg.Logs.Open(j.info.ID)
	if err != nil {
		return runner.Assignment{}, err
	}
	q.mu.Lock()
	j.log = log
	close(j.opened)
	q.mu.Unlock()
	return runner.Assignment{Job: ready, Reporter: j, Cancel: j.cancel}, nil
}

func (q *Queue) resolve(ctx context.Context, r runner.Request) (j runner.Job, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("runnerd panicked while reading the request: %v: please report this", p)
		}
	}()
	return q.cfg.Resolve(ctx, r)
}

type secretsKey struct{}

// SubmittedSecrets returns, in Config.Resolve, the secrets that the job was submitted with.
func SubmittedSecrets(ctx context.Context) []string {
	s, _ := ctx.Value(secretsKey{}).([]string)
	return s
}
