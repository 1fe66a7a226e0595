package api

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/queue"
)

// Limits of every request.
const (
	maxHeader     = 64 << 10
	maxBody       = 4 << 20 // JSON
	headerTimeout = 10 * time.Second
	bodyTimeout   = 30 * time.Second // of a JSON body
	answerTimeout = time.Minute      // of everything but streams
	idleTimeout   = 2 * time.Minute
)

// ErrDraining is the error of whoever submits a job while the daemon is being stopped.
var ErrDraining = errors.New("runnerd is stopping")

// Config is what a Server needs.
type Config struct {
	Backend     Backend
	Builder     Builder // nil: there are no builds
	Workspaces  *Workspaces
	Attachments *Attachments
	Agents      *Agents
	Outputs     *Outputs  // nil: builds write none
	Ledger      Ledger    // nil: nothing is known of the steps of builds
	Disk        Disk      // nil: nothing is said of the caches
	Artifacts   Artifacts // nil: jobs leave none
	Runners     Runners   // nil: there are no forges
	// Events are a job's changes of state; nil: they are not known.
	Events func(ctx context.Context, id string) ([]queue.Event, error)
	// Metrics is served at /metrics; nil: there are none.
	Metrics http.Handler
	// Prepare fills in what a request does not say, and refuses what may not be: its error wraps
	// sandbox.ErrDenied or ErrInvalid.
	Prepare func(r *runner.Request) error
	Version VersionInfo
	Log     *slog.Logger // nil: nothing is logged
}

// Server is the API as a http.Handler.
type Server struct {
	cfg      Config
	mux      *http.ServeMux
	api      huma.API
	draining atomic.Bool
	// cleanups are the goroutines that wait for builds to remove their workspaces.
	cleanups sync.WaitGroup
	// attached are the upgraded connections, of which http.Server knows nothing.
	attached sync.WaitGroup
	ctx      context.Context // of the cleanups
	stop     context.CancelFunc
}

// New returns a Server. Close it when it serves no more.
func New(c Config) (*Server, error) {
	if c.Backend == nil || c.Workspaces == nil || c.Attachments == nil {
		return nil, errors.New("api: Config.Backend, Workspaces and Attachments are needed")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Prepare == nil {
		c.Prepare = func(*runner.Request) error { return nil }
	}
	if c.Agents == nil {
		c.Agents = NewAgents()
	}
	c.Version.API = Version
	s := &Server{cfg: c, mux: http.NewServeMux()}
	s.ctx, s.stop = context.WithCancel(context.Background())
	hc := huma.DefaultConfig("runnerd", Version)
	hc.Info.Description = "Jobs in sandboxes of their own."
	hc.DocsPath, hc.SchemasPath = "", ""
	hc.CreateHooks = nil // no $schema in answers
	hc.OpenAPIPath = "/openapi"
	hc.RejectUnknownQueryParameters = true
	s.api = humago.New(s.mux, hc)
	s.routes()
	return s, nil
}

func (s *Server) routes() {
	s.jobRoutes()
	s.buildRoutes()
	s.raw(logOperation, s.log)
	s.outputRoutes()
	s.ledgerRoutes()
	s.cacheRoutes()
	s.runnerRoutes()
	s.eventRoutes()
	s.raw(attachOperation, s.attach)
	s.raw(agentOperation, s.agent)
	s.raw(workspaceOperation, s.upload)
	if s.cfg.Metrics != nil {
		s.mux.Handle("GET /metrics", s.cfg.Metrics)
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		writeProblem(w, huma.NewError(http.StatusNotFound, "there is no "+r.URL.Path+" here: see /openapi.json"))
	})
}

// raw is a route that huma describes but does not serve, because it is a stream.
func (s *Server) raw(op func() *huma.Operation, serve func(w http.ResponseWriter, r *http.Request) error) {
	o := op()
	s.api.OpenAPI().AddOperation(o)
	s.mux.HandleFunc(o.Method+" "+o.Path, func(w http.ResponseWriter, r *http.Request) {
		noDeadlines(w)
		if err := serve(w, r); err != nil {
			writeProblem(w, err)
		}
	})
}

// OpenAPI is the description of the API, as JSON.
func (s *Server) OpenAPI() ([]byte, error) { return s.api.OpenAPI().MarshalJSON() }

// ServeHTTP serves one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	defer func() {
		if p := recover(); p != nil {
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			s.cfg.Log.Error("panic in the API", "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			writeProblem(w, fmt.Errorf("runnerd panicked: %v: please report this", p))
		}
	}()
	c := http.NewResponseController(w)
	_ = c.SetWriteDeadline(time.Now().Add(answerTimeout))
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") || r.Method == http.MethodPost && !isStream(r) {
		// Read here, so that the deadline is that of the body alone.
		_ = c.SetReadDeadline(time.Now().Add(bodyTimeout))
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
		if err != nil {
			if tooBig := (*http.MaxBytesError)(nil); !errors.As(err, &tooBig) {
				err = fmt.Errorf("%w: read the request: %w", ErrInvalid, err)
			}
			writeProblem(w, err)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	_ = c.SetReadDeadline(time.Time{})
	s.mux.ServeHTTP(w, r)
}

func isStream(r *http.Request) bool {
	return strings.HasSuffix(r.URL.Path, "/attach") || strings.Contains(r.URL.Path, "/agents/") || r.URL.Path == "/v1/workspaces"
}

// noDeadlines makes the request a stream, which may take as long as it will.
func noDeadlines(w http.ResponseWriter) {
	c := http.NewResponseController(w)
	_ = c.SetReadDeadline(time.Time{})
	_ = c.SetWriteDeadline(time.Time{})
}

// Serve serves connections until ctx ends; streams are then cut off. It closes l.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	h := &http.Server{
		Handler:           s,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return base },
		ErrorLog:          slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelDebug),
	}
	failed := make(chan error, 1)
	go func() { failed <- h.Serve(l) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer stop()
	err := h.Shutdown(grace)
	results := make(chan struct{})
	go func() { s.attached.Wait(); close(results) }()
	select { // the last clients are being told how their jobs ended
	case <-results:
	case <-grace.Done():
	}
	cancel(errors.New("runnerd was stopped")) // upgraded connections too
	if err != nil {
		_ = h.Close()
	}
	<-failed
	return nil
}

// Drain makes the server refuse new jobs.
func (s *Server) Drain() { s.draining.Store(true) }

// Close ends what the server does in the background.
func (s *Server) Close() {
	s.stop()
	s.cleanups.Wait()
}

// newID returns an id for a job, group or workspace: 10 of [a-z2-7], 50 random bits.
func newID() string {
	var b [7]byte
	_, _ = rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))[:10]
}
