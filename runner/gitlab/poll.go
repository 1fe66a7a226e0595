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
	told            int  // the status that the operator was told of, -1 if there was none; 0: all is well
	since           time.Time
}

// once asks for one job and returns how long to wait before the next time.
func (p *poller) once(ctx context.Context) time.Duration {
	if p.enter(ctx, p.r) != nil {
		return 0
	}
	client, err := p.client(p.r)
	if err == nil {
		err = p.cfg.Room(ctx, p.limits())
	}
	if err != nil {
		p.leave(p.r)
		if ctx.Err() != nil {
			return 0
		}
		p.ill(err, "")
		return p.refused.next(err)
	}
	// A request that is under way may have been given a job.
	asking, cancel := lingering(ctx, p.cfg.Grace)
	defer cancel()
	began := time.Now()
	session := p.cfg.Terminals.New() // of the job that the answer may bring
	given, err := client.RequestJob(asking, spec.JobRequest{
		Token: p.r.Token, SystemID: p.r.SystemID, LastUpdate: p.lastUpdate, Session: session.Spec(),
	})
	news := given.LastUpdate != p.lastUpdate
	p.lastUpdate = given.LastUpdate
	if given.Job == nil {
		session.Close()
		p.leave(p.r)
	}
	if err != nil {
		if ctx.Err() != nil {
			return 0
		}
		return p.after(err)
	}
	p.well(given.Job != nil)
	if given.Job == nil {
		gap := max(0, jitter(p.cfg.CheckInterval)-time.Since(began))
		// A request that does not say what we know is answered at once, such as the first after a job, whose answer did
		// not tell. The next one is held, if the server does that.
		p.hurried = gap > 0 && news && !p.hurried
		if p.hurried {
			return 0
		}
		return gap
	}
	p.hurried = false
	j := p.assigned(p.running, p.r, client, given, session)
	// How much room it takes is known when it was let in, or not.
	select {
	case <-j.settled:
	case <-ctx.Done():
	}
	return 0
}

// after says how long to wait after an error.
func (p *poller) after(err error) time.Duration {
	problem := p.cfg.Asked(p.r, false, err)
	var status *StatusError
	switch {
	case errors.Is(err, ErrConflict): // another runner was faster
		if p.races++; p.races <= maxRaces {
			return 0
		}
	case errors.As(err, &status) && status.Status < 500 && !temporary(status.Status):
		p.ill(err, problem)
		return p.refused.next(err)
	case p.failed.attempt >= tries: // else it may pass
		p.ill(err, problem)
	}
	return p.failed.next(err)
}

// well takes down that the server has answered as it should.
func (p *poller) well(job bool) {
	_ = p.cfg.Asked(p.r, job, nil)
	p.refused.reset()
	p.failed.reset()
	p.races = 0
	if p.told != 0 {
		p.cfg.Log.Info("the runner gets jobs again", "runner", p.r, "after", time.Since(p.since).Round(time.Second))
		p.told = 0
	}
}

// ill takes down what is wrong, and tells the operator once.
func (p *poller) ill(err error, problem string) {
	status := -1
	if answer := (*StatusError)(nil); errors.As(err, &answer) {
		status = answer.Status
	}
	if p.told == 0 {
		p.since = time.Now()
	}
	if p.told != status {
		p.cfg.Log.Error("the runner gets no jobs", "runner", p.r, "error", err, "problem", problem)
		p.told = status
	}
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
