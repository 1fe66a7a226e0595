// Package gitlabtest is a double of the part of GitLab that a runner speaks with: it hands out the jobs of pipelines,
// takes traces, states and artifacts, and serves the repository over git's smart HTTP. It is as strict as it can be:
// whatever a runner does against the protocol is noted as a Violation, though a real GitLab may let it pass.
//
// Sources: GitLab, lib/api/ci/runner.rb, lib/api/ci/helpers/runner.rb, app/services/ci/{register_job_service,
// append_build_trace_service,update_build_state_service}.rb, and the development documentation on two-phase commit;
// gitlab-runner, network/gitlab.go.
package gitlabtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// Options say how the server behaves. The zero value is a GitLab with the defaults of GitLab.com.
type Options struct {
	// Listen is the address to listen on. If it and URL are empty, that is a free port of 127.0.0.1; with URL alone
	// nothing listens: the server is an http.Handler, or is reached by its Dial.
	Listen string
	// URL is the forge's address for runners and jobs, such as http://gitlab.test; empty: that of the listener.
	URL string

	// Dir holds artifacts and repositories; empty: a temporary directory that Close removes.
	Dir     string
	Project Project
	// Variables are the project's, such as masked ones and files.
	Variables []spec.Variable
	// Registry is the host and port of a container registry that takes the job's token; empty: there is none.
	Registry string
	// IgnoreTags gives a job to any runner.
	IgnoreTags bool
	// Depth is the number of commits to fetch, 0: 20; negative: all.
	Depth int
	// Timeout is a job's where it says none; 0: an hour.
	Timeout time.Duration

	// LongPoll is how long a request for a job is held while there is none; 0: not at all. GitLab.com: 50 s.
	LongPoll time.Duration
	// AckTimeout is how long an assigned job may stay without a sign of life before it is accepted; 0: 2 minutes.
	AckTimeout time.Duration
	// StuckTimeout is how long a running job may stay without a sign of life; 0: an hour.
	StuckTimeout time.Duration
	// OnePhase assigns a job as running even to a runner that knows of two-phase commit, as GitLab before 18.5 does.
	OnePhase bool

	// UpdateInterval is what runners are told of the time between patches of a trace; 0: 3 s, as if somebody watched it.
	UpdateInterval time.Duration
	// FinalPolls is how often a final state is answered by 202 before it counts, as while GitLab stores the trace.
	FinalPolls int
	// TraceLimit and ArtifactLimit are in bytes; 0: 100 MiB, 1 GiB.
	TraceLimit, ArtifactLimit int64
	// MaskPrefixes are told to runners as features.token_mask_prefixes.
	MaskPrefixes []string
	// FailureReasons are told to runners as features.failure_reasons; nil: all that GitLab knows.
	FailureReasons []string

	// RegistrationToken registers runners the old way; empty: GitLab says that this is not allowed (410).
	RegistrationToken string
	// AccessToken, of a user, resets runners' tokens by their id.
	AccessToken string
	// TokenLifetime is how long a runner's token is valid; 0: for ever.
	TokenLifetime time.Duration

	// Uploads says where a runner is sent with artifacts; Downloads, where it gets them.
	Uploads, Downloads Redirect
	RateLimit          RateLimit
	Faults             Plan

	// Log, if set, is told of each change of state, breach and fault; with Verbose also of each request.
	Log     func(format string, args ...any)
	Verbose bool
}

// Redirect is where artifacts go to and come from.
type Redirect string

// The redirects.
const (
	Direct Redirect = "" // this server
	// Objects is an object store, by 307 to a signed address: it must not see a token of GitLab's. Downloads are
	// redirected only for direct_download=true. It is another host than GitLab's: a port of its own.
	Objects Redirect = "objects"
	// Node is another node of this GitLab: the same path, by 307, and it wants the token.
	Node Redirect = "node"
)

// RateLimit is how many requests each token may make within a window. The zero value is no limit.
type RateLimit struct {
	Requests int
	Window   time.Duration
}

// Project is the one whose pipelines run.
type Project struct {
	ID   int64  // 0: 1
	Path string // with its groups; empty: group/project
	// Dir is the directory of a pipeline that names none.
	Dir string
	// DefaultBranch is empty for the one that the repository has.
	DefaultBranch string
	// Unprotected makes the branch of a pipeline one that is not protected.
	Unprotected bool
}

// Server is the double. Its methods may be called at any time from anywhere.
type Server struct {
	URL string

	o        Options
	storeURL string // of the object store
	mux      *http.ServeMux
	patterns map[string]Endpoint // by the mux's pattern
	faults   *faults
	http     *http.Server
	listener net.Listener
	memory   *pipeListener
	serving  sync.WaitGroup
	dir      string
	ownDir   bool

	mu         sync.Mutex
	changed    chan struct{} // closed and replaced at each change of a job
	queue      int           // counts the changes of the queue
	salt       string
	ids        int64
	runners    []*runner
	jobs       []*job
	byID       map[int64]*job
	pipelines  []*pipeline
	objects    map[string]*object
	repos      map[string]*repository
	limits     map[string]*window
	timers     map[*time.Timer]struct{}
	violations []Violation
	requests   map[Endpoint]int
	closed     bool
}

// New starts a server. It must be closed.
func New(o Options) (*Server, error) {
	o.Project.ID = defaulted(o.Project.ID, 1)
	o.Project.Path = defaulted(o.Project.Path, "group/project")
	o.Depth = defaulted(o.Depth, 20)
	o.Timeout = defaulted(o.Timeout, time.Hour)
	o.AckTimeout = defaulted(o.AckTimeout, 2*time.Minute)
	o.StuckTimeout = defaulted(o.StuckTimeout, time.Hour)
	o.UpdateInterval = defaulted(o.UpdateInterval, 3*time.Second)
	o.TraceLimit = defaulted(o.TraceLimit, 100<<20)
	o.ArtifactLimit = defaulted(o.ArtifactLimit, 1<<30)
	if o.FailureReasons == nil {
		o.FailureReasons = knownReasons()
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	s := &Server{
		URL: strings.TrimSuffix(o.URL, "/"), o: o, dir: o.Dir, salt: random(8), changed: make(chan struct{}),
		byID: map[int64]*job{}, objects: map[string]*object{}, repos: map[string]*repository{}, limits: map[string]*window{},
		timers: map[*time.Timer]struct{}{}, requests: map[Endpoint]int{},
	}
	var err error
	if s.faults, err = newFaults(o.Faults); err != nil {
		return nil, err
	}
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp("", "gitlabtest-"); err != nil {
			return nil, err
		}
		s.ownDir = true
	}
	if err := os.MkdirAll(filepath.Join(s.dir, "artifacts"), 0o700); err != nil {
		return nil, err
	}
	s.route()
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: time.Minute}
	s.memory = newPipeListener()
	if o.URL == "" || o.Listen != "" {
		if s.listener, err = net.Listen("tcp", defaulted(o.Listen, "127.0.0.1:0")); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for runners: %w", err), s.Close())
		}
		s.URL = defaulted(s.URL, "http://"+s.listener.Addr().String())
		s.serving.Go(func() { _ = s.http.Serve(s.listener) })
	}
	if err := s.openStore(); err != nil {
		return nil, errors.Join(fmt.Errorf("listen for the object store: %w", err), s.Close())
	}
	s.serving.Go(func() { _ = s.http.Serve(s.memory) })
	return s, nil
}

// openStore gives the object store a host of its own.
func (s *Server) openStore() error {
	if s.listener == nil {
		scheme, host, _ := strings.Cut(s.URL, "://")
		s.storeURL = scheme + "://objects." + host
		return nil
	}
	if s.o.Uploads != Objects && s.o.Downloads != Objects {
		return nil
	}
	host, _, err := net.SplitHostPort(s.listener.Addr().String())
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return err
	}
	s.storeURL = "http://" + l.Addr().String()
	s.serving.Go(func() { _ = s.http.Serve(l) })
	return nil
}

// Close ends the requests under way, and removes what the server made. It is safe to call twice.
func (s *Server) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	for t := range s.timers {
		t.Stop()
	}
	s.notify()
	s.mu.Unlock()
	err := s.http.Close()
	_ = s.memory.Close()
	s.serving.Wait()
	if s.ownDir {
		err = errors.Join(err, os.RemoveAll(s.dir))
	}
	return err
}

// Dial connects to the server in memory, whatever the address. It works under testing/synctest.
func (s *Server) Dial(ctx context.Context, _, _ string) (net.Conn, error) { return s.memory.dial(ctx) }

// Client is an HTTP client that reaches the server in memory.
func (s *Server) Client() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: s.Dial}}
}

// notify tells all who wait that something changed. The lock is held.
func (s *Server) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// after runs f with the lock held once d has passed, unless the server is closed or the timer is stopped before.
func (s *Server) after(d time.Duration, f func()) *time.Timer {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, live := s.timers[t]
		delete(s.timers, t)
		if live && !s.closed {
			f()
		}
	})
	s.timers[t] = struct{}{}
	return t
}

// stop ends a timer for good. The lock is held; nil is no timer.
func (s *Server) stop(t *time.Timer) {
	if t != nil {
		t.Stop()
		delete(s.timers, t)
	}
}

func (s *Server) nextID() int64 {
	s.ids++
	return s.ids
}

func defaulted[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}
