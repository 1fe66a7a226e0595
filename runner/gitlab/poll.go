package gitlab

import (
	"context"
	"errors"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// How long a server that says "never" is left alone.
const (
	refusedMin = 30 * time.Second
	refusedMax = time.Hour
)

// maxRaces is how often in a row a request that lost its job to another runner is repeated at once.
const maxRaces = 20

// poll asks for jobs of one registration until ctx ends; running is the Manager's.
func (m *Manager) poll(running, ctx context.Context, r Registration) {
	p := &poller{Manager: m, r: r, running: running, refused: pause{least: refusedMin, most: refusedMax}, failed: pause{least: backoffMin, most: backoffMax}}
	for ctx.Err() == nil {
		_ = sleep(ctx, p.once(ctx))
	}
}

// poller is the asking for jobs of one registration.
type poller struct {
	*Manager
	r       Registration
	running context.Context

	lastUpdate      string
	refused, failed pause
	races           int
	hurried         bool // the last request was made without a pause
}

// once asks for one job and returns how long to wait before the next time.
func (p *poller) once(ctx context.Context) time.Duration {
	if err := p.cfg.Room(ctx, p.limits()); err != nil {
		if ctx.Err() == nil {
			p.unhealthy(p.r, err)
		}
		return refusedMax
	}
	if p.enter(ctx, p.r) != nil {
		return 0
	}
	client, err := p.client(p.r)
	if err != nil {
		p.leave(p.r)
		p.unhealthy(p.r, err)
		return p.refused.next(err)
	}
	// A request that is under way may have been given a job.
	asking, cancel := lingering(ctx, p.cfg.Grace)
	defer cancel()
	began := time.Now()
	var job *spec.Job
	before := p.lastUpdate
	job, p.lastUpdate, err = client.RequestJob(asking, spec.JobRequest{Token: p.r.Token, SystemID: p.r.SystemID, LastUpdate: p.lastUpdate})
	if job == nil {
		p.leave(p.r)
	}
	if err != nil {
		if ctx.Err() != nil {
			return 0
		}
		return p.after(err)
	}
	p.healthy(p.r)
	p.refused.reset()
	p.failed.reset()
	p.races = 0
	if job == nil {
		gap := max(0, jitter(p.cfg.CheckInterval)-time.Since(began))
		// A request that does not say what we know is answered at once. The next one is held, if the server does that.
		p.hurried = gap > 0 && p.lastUpdate != before && !p.hurried
		if p.hurried {
			return 0
		}
		return gap
	}
	j := p.assigned(p.running, p.r, client, job)
	// How much room it takes is known when it was let in, or not.
	select {
	case <-j.settled:
	case <-ctx.Done():
	}
	return 0
}

// after says how long to wait after an error.
func (p *poller) after(err error) time.Duration {
	var status *StatusError
	switch {
	case errors.Is(err, ErrConflict): // another runner was faster
		p.healthy(p.r)
		if p.races++; p.races <= maxRaces {
			return 0
		}
		return p.failed.next(err)
	case errors.As(err, &status) && status.Status < 500 && !temporary(status.Status):
		p.unhealthy(p.r, err)
		return p.refused.next(err)
	}
	d := p.failed.next(err)
	if p.failed.attempt > tries { // not worth a word before
		p.unhealthy(p.r, err)
	}
	return d
}

// limits are those of the registration's jobs, as far as they are known before there is one.
func (p *poller) limits() sandbox.Limits {
	l := p.r.Limits
	if l.CPU == 0 {
		l.CPU = p.cfg.Defaults.CPU
	}
	if l.Memory == 0 {
		l.Memory = p.cfg.Defaults.Memory
	}
	return l
}
