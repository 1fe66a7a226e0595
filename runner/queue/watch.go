package queue

import (
	"context"
	"errors"
	"fmt"

	"github.com/runnerd/runnerd/runner"
)

// Watch returns a channel that gives where the job is now, and then every change; a slow reader misses
// those in between, never the last. The channel is closed after the job has finished, when ctx ends, and
// when the queue is closed.
func (q *Queue) Watch(ctx context.Context, id string) (<-chan Info, error) {
	c := make(chan Info, 1)
	q.mu.Lock()
	j := q.jobs[id]
	if j == nil || q.closed {
		q.mu.Unlock()
		i, err := q.Get(ctx, id)
		if err != nil {
			return nil, err
		}
		c <- i
		close(c)
		return c, nil
	}
	defer q.mu.Unlock()
	c <- j.info
	j.watchers[c] = context.AfterFunc(ctx, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		if _, ok := j.watchers[c]; ok {
			delete(j.watchers, c)
			close(c)
		}
	})
	return c, nil
}

// Wait waits until the job has finished and returns how it ended.
func (q *Queue) Wait(ctx context.Context, id string) (Info, error) {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := q.Watch(watch, id)
	if err != nil {
		return Info{}, err
	}
	var last Info
	for i := range c {
		last = i
	}
	switch {
	case last.State == runner.Finished:
		return last, nil
	case ctx.Err() != nil:
		return last, fmt.Errorf("wait for job %s: %w", id, context.Cause(ctx))
	default:
		return last, fmt.Errorf("wait for job %s: %w", id, ErrClosed)
	}
}

// Logs reads a job's log as runner.LogStore.Read does. With follow it waits for the job's turn first. A job
// that ended before its turn has an empty log.
func (q *Queue) Logs(ctx context.Context, id string, follow bool, fn func(runner.Frame) error) error {
	q.mu.Lock()
	j := q.jobs[id]
	q.mu.Unlock()
	if j != nil && follow {
		select {
		case <-j.opened:
		case <-j.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	err := q.cfg.Logs.Read(ctx, id, follow, fn)
	if errors.Is(err, runner.ErrNoLog) {
		if _, known := q.Get(ctx, id); known != nil {
			return known
		}
		return nil
	}
	return err
}

// tell gives the job's info to those who watch. q.mu is held.
func (j *job) tell() {
	for c := range j.watchers {
		select {
		case <-c: // nobody has taken the last one
		default:
		}
		c <- j.info
	}
}

// closeWatchers ends all watches. q.mu is held.
func (j *job) closeWatchers() {
	for c, forget := range j.watchers {
		forget()
		delete(j.watchers, c)
		close(c)
	}
}
