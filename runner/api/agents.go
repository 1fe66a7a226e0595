package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/runnerd/runnerd/runner"
)

// AgentProtocol is the name that a connection to a client's ssh agent is upgraded to.
const AgentProtocol = "runnerd-ssh-agent/1"

// Agents brings builds to the ssh agents of their clients. A client keeps one request open for each agent; the
// answer comes when a build wants to speak to the agent, and the connection is then the agent's. So a key never
// leaves the client, and there is no way to its agent but from the job that was given it, while it runs.
type Agents struct {
	mu   sync.Mutex
	jobs map[string]map[string]chan chan net.Conn // by job and by the agent's id
}

// NewAgents returns an empty Agents.
func NewAgents() *Agents { return &Agents{jobs: map[string]map[string]chan chan net.Conn{}} }

// expect makes a job's agents known.
func (a *Agents) expect(job string, ids []string) {
	if len(ids) == 0 {
		return
	}
	calls := map[string]chan chan net.Conn{}
	for _, id := range ids {
		calls[id] = make(chan chan net.Conn)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.jobs[job] = calls
}

func (a *Agents) forget(job string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.jobs, job)
}

func (a *Agents) of(job, id string) chan chan net.Conn {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.jobs[job][id]
}

// Dial connects to an agent of a job's client. It is for the job's step: the connection ends with ctx. The
// error wraps ErrNoClient when the client has gone, or is ctx's cause.
func (a *Agents) Dial(ctx context.Context, job, id string) (net.Conn, error) {
	calls := a.of(job, id)
	if calls == nil {
		return nil, fmt.Errorf("ssh agent %q of job %s: %w", id, job, ErrNoClient)
	}
	patience := time.NewTimer(ClientPatience)
	defer patience.Stop()
	call := make(chan net.Conn, 1)
	select {
	case calls <- call:
	case <-patience.C:
		return nil, fmt.Errorf("ssh agent %q of job %s: %w: none came within %s", id, job, ErrNoClient, ClientPatience)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	conn := <-call // at once
	if conn == nil {
		return nil, fmt.Errorf("ssh agent %q of job %s: %w", id, job, ErrNoClient)
	}
	context.AfterFunc(ctx, func() { _ = conn.Close() })
	return conn, nil
}

func agentOperation() *huma.Operation {
	return &huma.Operation{
		Method: http.MethodPost, Path: "/v1/jobs/{id}/agents/{agent}", OperationID: "serve-agent", Summary: "Be an ssh agent of a build",
		Description: "The answer comes when the build wants to speak to the agent: the connection is then upgraded to " + AgentProtocol +
			" and carries the ssh agent protocol, the client being the agent. For the next connection the client asks again.",
		Parameters: []*huma.Param{
			{Name: "id", In: "path", Required: true, Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "agent", In: "path", Required: true, Description: "One of the build's ssh.", Schema: &huma.Schema{Type: huma.TypeString}},
			{Name: "Upgrade", In: "header", Required: true, Schema: &huma.Schema{Type: huma.TypeString, Enum: []any{AgentProtocol}}},
		},
		Responses: map[string]*huma.Response{"101": {Description: "The agent's protocol follows."}, "404": problemResponse(), "409": problemResponse(), "426": problemResponse(), "default": problemResponse()},
	}
}

func (s *Server) agent(w http.ResponseWriter, r *http.Request) error {
	id, agent := r.PathValue("id"), r.PathValue("agent")
	if err := upgradable(w, r, AgentProtocol); err != nil {
		return err
	}
	infos, err := s.cfg.Backend.Watch(r.Context(), id)
	if err != nil {
		return err
	}
	calls := s.cfg.Agents.of(id, agent)
	for {
		select {
		case i, more := <-infos:
			switch {
			case !more:
				return ErrDraining
			case i.State == runner.Finished:
				return huma.Error409Conflict(fmt.Sprintf("job %s is finished", id))
			case calls == nil:
				return huma.Error404NotFound(fmt.Sprintf("job %s was given no ssh agent %q", id, clip(agent, 100)))
			}
		case call := <-calls:
			conn, err := upgrade(w, AgentProtocol)
			if err != nil {
				call <- nil
				return err
			}
			call <- conn
			return nil
		}
	}
}

// upgradable says whether a request asks for a protocol.
func upgradable(w http.ResponseWriter, r *http.Request, protocol string) error {
	if strings.EqualFold(r.Header.Get("Upgrade"), protocol) && strings.EqualFold(r.Header.Get("Connection"), "upgrade") {
		return nil
	}
	w.Header().Set("Upgrade", protocol)
	return huma.NewError(http.StatusUpgradeRequired, "this needs the headers Connection: Upgrade and Upgrade: "+protocol)
}

// upgrade takes the connection over, and says so to the client.
func upgrade(w http.ResponseWriter, protocol string) (net.Conn, error) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\n\r\n"); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return bufferedConn{conn, buffered}, nil
}

// bufferedConn is a connection of which some may have been read already.
type bufferedConn struct {
	net.Conn
	r io.Reader
}

func (c bufferedConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// checkAgents says whether ids may name agents.
func checkAgents(ids []string) error {
	for i, id := range ids {
		if id == "" || slices.Contains(ids[:i], id) {
			return fmt.Errorf("%w: ssh: agent %q is empty or comes twice", ErrInvalid, id)
		}
	}
	return nil
}
