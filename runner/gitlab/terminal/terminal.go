// Package terminal serves GitLab's interactive web terminals: a shell in the sandbox of a job that runs. GitLab is told
// of it when it is asked for the job, and connects when somebody opens the terminal in the browser.
//
// Sources: GitLab, app/models/ci/build_runner_session.rb and doc/development/workhorse/channel.md; gitlab-runner,
// session/server.go and session/session.go.
package terminal

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// Config is what a Server needs.
type Config struct {
	Listen string // host:port
	// Advertise is the host:port by which GitLab reaches it; empty: Listen.
	Advertise string
	// Timeout is how long a job that has ended waits for a terminal that is still open; 0: 30 minutes.
	Timeout time.Duration
	Log     *slog.Logger
}

// connectWait is how long a terminal that comes before the job's sandbox is there waits for it.
const connectWait = time.Minute

// Server serves the terminals of all jobs. A nil *Server serves none.
type Server struct {
	cfg         Config
	advertise   string
	certificate []byte // PEM
	http        *http.Server
	serving     sync.WaitGroup

	mu       sync.Mutex
	sessions map[string]*Session // by path
}

// Listen starts a server. Its certificate is made anew; GitLab is told which it is with each job.
func Listen(ctx context.Context, c Config) (*Server, error) {
	s := &Server{cfg: c, advertise: c.Advertise, sessions: map[string]*Session{}}
	if s.advertise == "" {
		s.advertise = c.Listen
	}
	if s.cfg.Timeout <= 0 {
		s.cfg.Timeout = 30 * time.Minute
	}
	host, _, err := net.SplitHostPort(s.advertise)
	if err == nil && host == "" {
		err = errors.New("it has no host by which GitLab could reach it: set terminal.advertise")
	}
	if err != nil {
		return nil, fmt.Errorf("the terminals' address %q: %w", s.advertise, err)
	}
	cert, text, err := selfSigned(host)
	if err != nil {
		return nil, fmt.Errorf("make the terminals' certificate: %w", err)
	}
	s.certificate = text
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen for terminals: %w: set terminal.listen", err)
	}
	if port := l.Addr().(*net.TCPAddr).Port; strings.HasSuffix(s.advertise, ":0") {
		s.advertise = net.JoinHostPort(host, fmt.Sprint(port))
	}
	// WebSockets are HTTP/1.1's.
	secure := tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}})
	s.http = &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ErrorLog: slog.NewLogLogger(c.Log.Handler(), slog.LevelDebug)}
	s.serving.Go(func() { _ = s.http.Serve(secure) })
	return s, nil
}

// Close ends all terminals.
func (s *Server) Close() error {
	if s == nil {
		return nil
	}
	err := s.http.Close()
	s.mu.Lock()
	open := make([]*Session, 0, len(s.sessions))
	for _, session := range s.sessions {
		open = append(open, session)
	}
	s.mu.Unlock()
	for _, session := range open {
		session.Close()
	}
	s.serving.Wait()
	return err
}

// New is the session of a job that GitLab is going to be asked for; nil if there is no server. It must be closed.
func (s *Server) New() *Session {
	if s == nil {
		return nil
	}
	life, end := context.WithCancel(context.Background())
	session := &Session{
		server: s, path: "/session/" + secret(), token: secret(),
		life: life, end: end, ready: make(chan struct{}), idle: make(chan struct{}),
	}
	close(session.idle)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sessions[session.path] = session
	return session
}

// ServeHTTP connects whoever has a session's address and token.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	path, ok := strings.CutSuffix(r.URL.Path, "/exec")
	s.mu.Lock()
	session := s.sessions[path]
	s.mu.Unlock()
	switch {
	case !ok || session == nil:
		http.NotFound(w, r)
	case subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte(session.token)) != 1:
		http.Error(w, http.StatusText(http.StatusUnauthorized), http.StatusUnauthorized)
	default:
		session.serve(w, r)
	}
}

// Session is the terminal of one job. A nil *Session is none.
type Session struct {
	server      *Server
	path, token string
	life        context.Context
	end         context.CancelFunc
	ready       chan struct{} // closed when shell is set

	mu        sync.Mutex
	shell     Shell
	connected bool
	idle      chan struct{} // closed while nobody is connected
}

// Shell runs a process in a job's container.
type Shell func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error)

// Spec is what GitLab is told; nil for no session.
func (s *Session) Spec() *spec.Session {
	if s == nil {
		return nil
	}
	return &spec.Session{URL: "https://" + s.server.advertise + s.path, Certificate: string(s.server.certificate), Authorization: s.token}
}

// Attach says how processes are run in the job's container, which is there now.
func (s *Session) Attach(shell Shell) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shell == nil {
		close(s.ready)
	}
	s.shell = shell
}

// Linger waits until nobody is connected any more, for Config.Timeout at most. It calls waiting, if it has to.
func (s *Session) Linger(ctx context.Context, waiting func(timeout time.Duration)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	idle, connected := s.idle, s.connected
	s.mu.Unlock()
	if !connected {
		return
	}
	waiting(s.server.cfg.Timeout)
	ctx, cancel := context.WithTimeout(ctx, s.server.cfg.Timeout)
	defer cancel()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// Close ends the session and whoever is connected. It is safe to call twice.
func (s *Session) Close() {
	if s == nil {
		return
	}
	s.end()
	s.server.mu.Lock()
	delete(s.server.sessions, s.path)
	s.server.mu.Unlock()
	s.mu.Lock()
	idle := s.idle
	s.mu.Unlock()
	<-idle
}

// secret is 128 bits that nobody can guess.
func secret() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}
