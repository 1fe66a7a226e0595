package gitlab

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/runner/gitlab/terminal"
	"github.com/runnerd/runnerd/sandbox"
)

// Config is what a Manager needs.
type Config struct {
	// Dir is where the jobs that GitLab waits for are written down.
	Dir string
	// Runners are the registrations (*Registrations).
	Runners interface {
		List() []Registration
		Changed() <-chan struct{}
	}
	// Client returns a new client for a registration; nil: one with Info.
	Client func(r Registration) (*Client, error)
	// Info is what a registration's server is told of it.
	Info func(r Registration) spec.Info
	// Prepare makes a job ready to run. It does nothing that takes time: that is for the steps. An error fails the job.
	Prepare func(ctx context.Context, a Assigned) (runner.Job, error)
	// Adopt puts the job into the journal of this machine (queue.Queue.Adopt).
	Adopt func(ctx context.Context, r runner.Request) (runner.Assignment, error)
	// Room waits until a job with these limits would fit (runner.Admission.WaitRoom). Defaults are those of a
	// registration that says 0.
	Room     func(ctx context.Context, l sandbox.Limits) error
	Defaults sandbox.Limits
	// MaxLive is the largest number of jobs, requests for one included (runner.Config.MaxLive); 0: no limit.
	MaxLive int
	// CheckInterval is the time from one request for a job to the next if the server does not hold them; 0: 3 s.
	CheckInterval time.Duration
	// Grace is how long a request that is under way may go on when Run's context has ended; 0: 2 s.
	Grace time.Duration
	// TraceLimit is the size in bytes at which no more of a job's log is sent; 0: DefaultTraceLimit.
	TraceLimit int64
	// Terminals serves the jobs' web terminals; nil: there are none.
	Terminals *terminal.Server

	// Reason, when not nil, says which reason an error of a job brings itself; empty: none.
	Reason func(err error) spec.FailureReason
	// Asked, when not nil, is told what came of a request for a job, and says how to mend it.
	Asked func(r Registration, job bool, err error) (problem string)

	Log *slog.Logger // nil: nothing is logged
	// Observe, when not nil, is told of every change of a job's state, for metrics.
	Observe func(Event)
}

// Assigned is a job that the server has given.
type Assigned struct {
	// ID is the job's on this machine, for Request.ID.
	ID           string
	Registration Registration
	Job          spec.Job
	Client       *Client
	// Session is the job's terminal, of which its server was told in the request; nil: it has none. It ends with the job.
	Session *terminal.Session
	// Stop is closed when the server wants the script to stop, and what comes after it to be done. It is not closed for
	// jobs that are to end at once: their context ends.
	Stop <-chan struct{}
	// ConcurrentID is which of the runner's jobs this is, ConcurrentProjectID which of its jobs of the project, from 0.
	ConcurrentID, ConcurrentProjectID int
	// CorrelationID is that of the request that brought the job.
	CorrelationID string
}

// Phase is where a job is, between GitLab and us.
type Phase string

// The phases.
const (
	PhaseAssigned  Phase = "assigned"  // the server gave it
	PhaseAccepted  Phase = "accepted"  // the server knows that it runs
	PhaseCanceling Phase = "canceling" // the server wants its script to stop
	PhaseLost      Phase = "lost"      // the server wants nothing of it any more
	PhaseReturned  Phase = "returned"  // it was not begun, and the server may give it to another
	PhaseDecided   Phase = "decided"   // it ended
	PhaseDone      Phase = "done"      // the server knows how
	PhaseUntold    Phase = "untold"    // the server could not be told for an hour
)

// Event is a change of a job's phase.
type Event struct {
	Registration, URL string
	Job, Pipeline     int64
	Project, Name     string
	Phase             Phase
	Verdict           *Verdict // from PhaseDecided on
	Detail            string   // for people
}

// Manager is the runner.Source of all registrations, and tells GitLab how their jobs go. Run asks for jobs, Next hands
// them out, and Close waits for what is still to be told.
type Manager struct {
	cfg     Config
	journal journal
	out     chan runner.Assignment
	slots   chan struct{} // a job or request each; nil: no limit

	telling sync.WaitGroup // the jobs of which the server is to be told
	tell    context.Context
	stop    context.CancelCauseFunc

	mu      sync.Mutex
	live    map[string]int // jobs by registration
	left    chan struct{}  // closed when a job has left live
	numbers map[numbered]map[int]bool
	clients map[clientKey]*Client
}

type clientKey struct{ url, caFile, executor string }

// How long Config's times are if it does not say.
const (
	defaultCheckInterval = 3 * time.Second
	defaultGrace         = 2 * time.Second
)

// ErrClosed is why calls end when a Manager is closed.
var ErrClosed = errors.New("runnerd was stopped")

// NewManager returns a Manager, which begins to tell the servers of the jobs that an earlier process has left.
func NewManager(c Config) (*Manager, error) {
	if c.Dir == "" || c.Runners == nil || c.Prepare == nil || c.Adopt == nil || c.Room == nil {
		return nil, errors.New("gitlab: Config.Dir, Runners, Prepare, Adopt and Room are needed")
	}
	if c.Info == nil {
		c.Info = func(Registration) spec.Info { return spec.Info{} }
	}
	if c.Client == nil {
		c.Client = func(r Registration) (*Client, error) {
			return NewClient(r.URL, ClientOptions{Info: c.Info(r), CAFile: r.CAFile})
		}
	}
	if c.CheckInterval <= 0 {
		c.CheckInterval = defaultCheckInterval
	}
	if c.Grace <= 0 {
		c.Grace = defaultGrace
	}
	if c.TraceLimit <= 0 {
		c.TraceLimit = DefaultTraceLimit
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Reason == nil {
		c.Reason = func(error) spec.FailureReason { return "" }
	}
	if c.Asked == nil {
		c.Asked = func(Registration, bool, error) string { return "" }
	}
	if c.Observe == nil {
		c.Observe = func(Event) {}
	}
	m := &Manager{
		cfg: c, out: make(chan runner.Assignment), live: map[string]int{}, left: make(chan struct{}),
		numbers: map[numbered]map[int]bool{}, clients: map[clientKey]*Client{},
	}
	if c.MaxLive > 0 {
		m.slots = make(chan struct{}, c.MaxLive)
	}
	var err error
	if m.journal, err = openJournal(c.Dir); err != nil {
		return nil, err
	}
	m.tell, m.stop = context.WithCancelCause(context.Background())
	return m, m.recover()
}

// Next waits for a job that a server has given.
func (m *Manager) Next(ctx context.Context) (runner.Assignment, error) {
	select {
	case a := <-m.out:
		return a, nil
	case <-ctx.Done():
		return runner.Assignment{}, context.Cause(ctx)
	}
}

// Run asks for jobs, for every registration, until ctx ends. It heeds their changes.
func (m *Manager) Run(ctx context.Context) error {
	type polling struct {
		Registration
		cancel context.CancelFunc
	}
	var polls sync.WaitGroup
	defer polls.Wait()
	current := map[string]polling{}
	for {
		changed := m.cfg.Runners.Changed()
		wanted := map[string]Registration{}
		for _, r := range m.cfg.Runners.List() {
			wanted[r.Name] = r
		}
		for name, p := range current {
			if r, ok := wanted[name]; !ok || !reflect.DeepEqual(r, p.Registration) {
				p.cancel()
				delete(current, name)
			}
		}
		for name, r := range wanted {
			if _, ok := current[name]; ok {
				continue
			}
			asking, cancel := context.WithCancel(ctx)
			current[name] = polling{r, cancel}
			polls.Go(func() { defer cancel(); m.poll(ctx, asking, r) })
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Close waits until the servers know all that there is to tell, or until ctx ends: what is left then is told by the next
// process. The jobs must have been finished before.
func (m *Manager) Close(ctx context.Context) error {
	told := make(chan struct{})
	go func() { m.telling.Wait(); close(told) }()
	select {
	case <-told:
	case <-ctx.Done():
	}
	m.stop(ErrClosed)
	<-told
	return nil
}

// client returns that of a forge, which all of its registrations share.
func (m *Manager) client(r Registration) (*Client, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := clientKey{r.URL, r.CAFile, r.Executor}
	if c := m.clients[key]; c != nil {
		return c, nil
	}
	c, err := m.cfg.Client(r)
	if err == nil {
		m.clients[key] = c
	}
	return c, err
}

// enter waits until a registration may have one job more, and counts it.
func (m *Manager) enter(ctx context.Context, r Registration) error {
	for {
		m.mu.Lock()
		if r.Concurrent <= 0 || m.live[r.Name] < r.Concurrent {
			m.live[r.Name]++
			m.mu.Unlock()
			break
		}
		left := m.left
		m.mu.Unlock()
		select {
		case <-left:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if m.slots == nil {
		return nil
	}
	select {
	case m.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		m.uncount(r)
		return context.Cause(ctx)
	}
}

// leave is the end of what enter has counted.
func (m *Manager) leave(r Registration) {
	m.uncount(r)
	if m.slots != nil {
		<-m.slots
	}
}

func (m *Manager) uncount(r Registration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[r.Name]--; m.live[r.Name] == 0 {
		delete(m.live, r.Name)
	}
	close(m.left)
	m.left = make(chan struct{})
}

// event logs a change of a job's phase, and tells it to who observes.
func (m *Manager) event(r record, p Phase, detail string) {
	args := []any{"forge", r.URL, "runner", r.Registration, "project", r.Project, "pipeline", r.Pipeline, "job", r.Job, "name", r.Name, "id", r.ID, "phase", string(p)}
	if v := r.Verdict; v != nil {
		args = append(args, "state", string(v.State))
		if v.Reason != "" {
			args = append(args, "reason", string(v.Reason))
		}
	}
	if detail != "" {
		args = append(args, "detail", detail)
	}
	level := slog.LevelInfo
	if p == PhaseUntold {
		level = slog.LevelError
	}
	m.cfg.Log.Log(context.Background(), level, "GitLab job", args...)
	m.cfg.Observe(Event{
		Registration: r.Registration, URL: r.URL, Job: r.Job, Pipeline: r.Pipeline, Project: r.Project, Name: r.Name,
		Phase: p, Verdict: r.Verdict, Detail: detail,
	})
}

// newID names a job on this machine.
func newID(job int64) string { return fmt.Sprintf("gitlab-%d-%s", job, newRequestID()[:4]) }
