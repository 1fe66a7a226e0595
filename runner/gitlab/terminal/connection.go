package terminal

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/sandbox"
)

// subprotocol is the one that GitLab asks for: binary messages are input one way and output the other.
const subprotocol = "terminal.gitlab.com"

// pingEvery keeps what lies between from closing a connection on which nobody types.
const pingEvery = 30 * time.Second

// maxInput is how many bytes of input one message may have.
const maxInput = 64 << 10

// size is a terminal's, in cells: the protocol has no word for it.
var size = sandbox.WindowSize{Rows: 24, Cols: 80}

// serve answers one who may connect: one at a time.
func (s *Session) serve(w http.ResponseWriter, r *http.Request) {
	select {
	case <-s.ready:
	case <-time.After(connectWait):
	case <-r.Context().Done():
	case <-s.life.Done():
	}
	s.mu.Lock()
	shell, busy := s.shell, s.connected
	if shell != nil && !busy && s.life.Err() == nil {
		s.connected, s.idle = true, make(chan struct{})
	}
	s.mu.Unlock()
	switch {
	case shell == nil || s.life.Err() != nil:
		http.Error(w, "the job is not running", http.StatusServiceUnavailable)
		return
	case busy:
		http.Error(w, "somebody is connected", http.StatusLocked)
		return
	}
	leave := sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.connected = false
		close(s.idle)
	})
	defer leave()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{subprotocol}, InsecureSkipVerify: true}) // GitLab connects, no browser
	if err != nil {
		return // it has answered
	}
	defer func() { _ = conn.CloseNow() }()
	conn.SetReadLimit(maxInput)
	reason := s.connect(conn, shell)
	leave() // the job does not wait for a client that does not answer to the end
	_ = conn.Close(websocket.StatusNormalClosure, reason)
}

// connect joins a connection with a shell until one of them ends.
func (s *Session) connect(conn *websocket.Conn, shell Shell) (reason string) {
	ctx, cancel := context.WithCancel(s.life)
	defer cancel()
	input, keys := io.Pipe()
	go func() { // ends with the connection, which serve closes: the end of a read's context would break it off
		defer cancel()
		err := read(context.WithoutCancel(ctx), conn, keys)
		_ = keys.CloseWithError(err)
	}()
	go ping(ctx, cancel, conn)
	exit, err := shell(ctx, sandbox.Process{
		Args: script.ShellCommand(nil), Stdin: input, Stdout: output{ctx, conn}, Terminal: &sandbox.Terminal{Size: size},
	})
	_ = input.Close()
	if err != nil {
		return "the shell has ended"
	}
	return exit.String()
}

// read passes on what is typed.
func read(ctx context.Context, conn *websocket.Conn, keys io.Writer) error {
	for {
		kind, text, err := conn.Read(ctx)
		if err != nil {
			return io.EOF
		}
		if kind != websocket.MessageBinary {
			_ = conn.Close(websocket.StatusUnsupportedData, subprotocol+" has binary messages only")
			return io.EOF
		}
		if _, err := keys.Write(text); err != nil {
			return err
		}
	}
}

func ping(ctx context.Context, lost context.CancelFunc, conn *websocket.Conn) {
	for tick := time.Tick(pingEvery); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		if conn.Ping(ctx) != nil {
			lost()
			return
		}
	}
}

// output writes messages.
type output struct {
	ctx  context.Context
	conn *websocket.Conn
}

func (o output) Write(p []byte) (int, error) {
	if err := o.conn.Write(o.ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}
