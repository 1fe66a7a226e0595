package client

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"syscall"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
)

// Terminal is the client's end of an attached job. The zero value of each field is usable.
type Terminal struct {
	Stdin          io.Reader // nil: empty
	Stdout, Stderr io.Writer // nil: discarded
	Signals        <-chan syscall.Signal
	Resize         <-chan sandbox.WindowSize
	State          func(api.Job) // told of each change of state
	Notice         func(string)  // told what runnerd says of the job meanwhile: a line
}

// Attach is the terminal of a job until it is finished, and returns how it ended. When ctx ends, the job is
// cancelled. Attach does not wait for a Read of Stdin to return.
func (c *Client) Attach(ctx context.Context, id string, t Terminal) (api.Job, error) {
	conn, r, err := c.upgrade(ctx, jobPath(id, "attach"), api.Protocol)
	if err != nil {
		return api.Job{}, err
	}
	defer func() { _ = conn.Close() }()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	a := &attached{conn: conn, done: make(chan struct{}), credit: api.Window, granted: make(chan struct{}, 1)}
	defer close(a.done)
	go a.stdin(t.Stdin)
	go a.control(t)
	job, err := a.receive(api.NewFrameReader(r), t)
	if err != nil && ctx.Err() != nil {
		return job, context.Cause(ctx)
	}
	var local *outputError
	if err != nil && !errors.As(err, &local) {
		if p := (*Problem)(nil); !errors.As(err, &p) {
			err = c.unreachable(ctx, fmt.Errorf("the connection to job %s was cut off: %w", id, err))
		}
	}
	return job, err
}

// ServeAgent calls serve with each connection that a job's build opens to the ssh agent of that id, at once,
// until the job is finished, which is no error, or ctx ends. serve closes the connection.
func (c *Client) ServeAgent(ctx context.Context, id, agent string, serve func(io.ReadWriteCloser)) error {
	for {
		conn, r, err := c.upgrade(ctx, jobPath(id, "agents", url.PathEscape(agent)), api.AgentProtocol)
		if problem := (*Problem)(nil); errors.As(err, &problem) && problem.Status == http.StatusConflict {
			return nil
		} else if err != nil {
			return err
		}
		go serve(agentConn{conn, r})
	}
}

// agentConn is a connection of which some may have been read already.
type agentConn struct {
	net.Conn
	r io.Reader
}

func (c agentConn) Read(p []byte) (int, error) { return c.r.Read(p) }

// upgrade asks for a protocol and waits for the answer.
func (c *Client) upgrade(ctx context.Context, path, protocol string) (net.Conn, io.Reader, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, nil, c.unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	fail := func(err error) (net.Conn, io.Reader, error) {
		_ = conn.Close()
		return nil, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://runnerd"+path, nil)
	if err != nil {
		return fail(err)
	}
	req.Header.Set("Connection", "Upgrade")
	req.Header.Set("Upgrade", protocol)
	if err := req.Write(conn); err != nil {
		return fail(c.unreachable(ctx, err))
	}
	r := bufio.NewReaderSize(conn, 64<<10)
	res, err := http.ReadResponse(r, req)
	if err != nil {
		return fail(c.unreachable(ctx, err))
	}
	if res.StatusCode != http.StatusSwitchingProtocols {
		return fail(readProblem(res))
	}
	return conn, r, nil
}

type attached struct {
	conn net.Conn
	done chan struct{}

	mu      sync.Mutex // of writing, and of credit
	buf     []byte
	credit  int
	granted chan struct{}
}

func (a *attached) send(kind api.FrameType, data []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.buf = api.Frame{Type: kind, Data: data}.Append(a.buf[:0])
	_, err := a.conn.Write(a.buf)
	return err
}

// stdin sends the standard input as far as the window allows.
func (a *attached) stdin(r io.Reader) {
	if r == nil {
		_ = a.send(api.FrameStdinEOF, nil)
		return
	}
	buf := make([]byte, 32<<10)
	for {
		a.mu.Lock()
		room := min(a.credit, len(buf))
		a.mu.Unlock()
		if room == 0 {
			select {
			case <-a.granted:
				continue
			case <-a.done:
				return
			}
		}
		n, err := r.Read(buf[:room])
		a.mu.Lock()
		a.credit -= n
		a.mu.Unlock()
		if n > 0 && a.send(api.FrameStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = a.send(api.FrameStdinEOF, nil)
			return
		}
	}
}

func (a *attached) control(t Terminal) {
	for {
		select {
		case s := <-t.Signals:
			_ = a.send(api.FrameSignal, []byte{byte(s)})
		case size := <-t.Resize:
			_ = a.send(api.FrameResize, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, size.Rows), size.Cols))
		case <-a.done:
			return
		}
	}
}

// outputError is an error of the client's own output.
type outputError struct{ error }

func (e *outputError) Unwrap() error { return e.error }

// receive takes what the server sends until the result.
func (a *attached) receive(frames *api.FrameReader, t Terminal) (job api.Job, err error) {
	for {
		f, err := frames.Next()
		if err != nil {
			return job, err
		}
		switch f.Type {
		case api.FrameType(runner.Stdout):
			err = output(t.Stdout, f.Data)
		case api.FrameType(runner.Stderr):
			err = output(t.Stderr, f.Data)
		case api.FrameType(runner.Notice):
			if t.Notice != nil {
				t.Notice(strings.TrimSuffix(string(f.Data), "\n"))
			}
		case api.FrameWindow:
			a.mu.Lock()
			a.credit += int(binary.BigEndian.Uint32(append(f.Data, 0, 0, 0, 0)))
			a.mu.Unlock()
			select {
			case a.granted <- struct{}{}:
			default:
			}
		case api.FrameState, api.FrameResult:
			if err := json.Unmarshal(f.Data, &job); err != nil {
				return job, err
			}
			if f.Type == api.FrameResult {
				return job, nil
			}
			if t.State != nil {
				t.State(job)
			}
		case api.FrameError:
			p := &Problem{}
			_ = json.Unmarshal(f.Data, p)
			return job, p
		}
		if err != nil {
			return job, err
		}
	}
}

func output(w io.Writer, p []byte) error {
	if w == nil {
		return nil
	}
	if _, err := w.Write(p); err != nil {
		return &outputError{fmt.Errorf("write the output: %w", err)}
	}
	return nil
}
