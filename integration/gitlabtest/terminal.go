package gitlabtest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/coder/websocket"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// terminalProtocol is the WebSocket subprotocol of terminals (GitLab, app/models/ci/build_runner_session.rb).
const terminalProtocol = "terminal.gitlab.com"

// dialTimeout bounds how long a terminal is waited for that comes before its job's sandbox.
const dialTimeout = 2 * time.Minute

// session checks what a runner says of its terminals.
func (c *call) session(told *spec.Session, f spec.Features) {
	if f.Session != (told != nil) || f.Terminal != (told != nil) {
		c.note("features.session is %t, features.terminal %t, and the request's session %t", f.Session, f.Terminal, told != nil)
	}
	if told == nil {
		return
	}
	u, err := url.Parse(told.URL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		c.note("session.url is %q", told.URL)
	}
	if told.Authorization == "" || !x509.NewCertPool().AppendCertsFromPEM([]byte(told.Certificate)) {
		c.note("session has no authorization or no certificate")
	}
}

// Session says where the terminal of a job that runs is reached. GitLab knows it no longer when the job has ended.
func (s *Server) Session(id int64) (spec.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	j := s.byID[id]
	if j == nil || j.session == nil || j.Status != Running {
		return spec.Session{}, fmt.Errorf("job %d has no terminal", id)
	}
	return *j.session, nil
}

// DialTerminal opens a terminal as GitLab's Workhorse does for a user's browser (workhorse/internal/channel). What is
// written is typed, and what is read is shown. Its error has the status, if there was an answer.
func DialTerminal(ctx context.Context, at spec.Session) (net.Conn, error) {
	u, err := url.Parse(at.URL)
	if err != nil {
		return nil, err
	}
	u.Scheme = "wss"
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(at.Certificate)) {
		return nil, errors.New("the session's certificate is none")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	defer transport.CloseIdleConnections()
	dialing, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, answer, err := websocket.Dial(dialing, u.JoinPath("exec").String(), &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, HTTPHeader: http.Header{"Authorization": {at.Authorization}},
		Subprotocols: []string{terminalProtocol},
	})
	if err != nil {
		if answer != nil {
			err = fmt.Errorf("status %d: %w", answer.StatusCode, err)
		}
		return nil, fmt.Errorf("open the terminal: %w", err)
	}
	if got := conn.Subprotocol(); got != terminalProtocol {
		_ = conn.CloseNow()
		return nil, fmt.Errorf("open the terminal: the subprotocol is %q", got)
	}
	return websocket.NetConn(ctx, conn, websocket.MessageBinary), nil
}
