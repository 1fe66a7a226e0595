package terminal

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/runnerd/runnerd/sandbox"
)

func listen(t *testing.T) *Server {
	t.Helper()
	s, err := Listen(t.Context(), Config{Listen: "127.0.0.1:0", Timeout: time.Minute, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// connect is what GitLab's Workhorse does with what it was told of a session.
func connect(t *testing.T, s *Session, token string, protocols ...string) (*websocket.Conn, *http.Response, error) {
	t.Helper()
	told := s.Spec()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(told.Certificate)) {
		t.Fatal("the certificate is none")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	return websocket.Dial(t.Context(), strings.Replace(told.URL, "https://", "wss://", 1)+"/exec", &websocket.DialOptions{
		HTTPClient: client, HTTPHeader: http.Header{"Authorization": {token}}, Subprotocols: protocols,
	})
}

// echo is a shell that answers each line; it ends at the line exit.
func echo(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
	if p.Terminal == nil {
		return sandbox.Exit{}, fmt.Errorf("it has no terminal")
	}
	lines := bufio.NewScanner(p.Stdin)
	for lines.Scan() {
		if lines.Text() == "exit" {
			return sandbox.Exit{Code: 3}, nil
		}
		if _, err := fmt.Fprintf(p.Stdout, "you said %s\n", lines.Text()); err != nil {
			return sandbox.Exit{}, err
		}
	}
	return sandbox.Exit{}, io.EOF
}

func TestTerminal(t *testing.T) {
	s := listen(t).New()
	s.Attach(echo)
	conn, _, err := connect(t, s, s.token, subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	if conn.Subprotocol() != subprotocol {
		t.Errorf("the subprotocol is %q", conn.Subprotocol())
	}
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	kind, text, err := conn.Read(t.Context())
	if err != nil || kind != websocket.MessageBinary || string(text) != "you said hello\n" {
		t.Errorf("%v %q %v", kind, text, err)
	}
	if _, answer, err := connect(t, s, s.token, subprotocol); err == nil || answer.StatusCode != http.StatusLocked {
		t.Errorf("a second connection: %v", err)
	}

	lingered := make(chan struct{})
	waiting := make(chan struct{})
	go func() {
		defer close(lingered)
		s.Linger(t.Context(), func(time.Duration) { close(waiting) })
	}()
	<-waiting
	if err := conn.Write(t.Context(), websocket.MessageBinary, []byte("exit\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusNormalClosure {
		t.Errorf("after exit: %v", err)
	}
	<-lingered
	s.Linger(t.Context(), func(time.Duration) { t.Error("nobody is connected, and yet it waits") })
	s.Close()
	s.Close()
	if _, answer, err := connect(t, s, s.token, subprotocol); err == nil || answer.StatusCode != http.StatusNotFound {
		t.Errorf("after the end of the session: %v", err)
	}
}

func TestTerminalRefuses(t *testing.T) {
	server := listen(t)
	s, other := server.New(), server.New()
	s.Attach(echo)
	for token, want := range map[string]int{"": http.StatusUnauthorized, "wrong": http.StatusUnauthorized, other.token: http.StatusUnauthorized} {
		if _, answer, err := connect(t, s, token, subprotocol); err == nil || answer.StatusCode != want {
			t.Errorf("with the token %q: %v, want %d", token, err, want)
		}
	}
	conn, _, err := connect(t, s, s.token, subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Write(t.Context(), websocket.MessageText, []byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := conn.Read(t.Context()); websocket.CloseStatus(err) != websocket.StatusUnsupportedData {
		t.Errorf("a text message: %v", err)
	}
}

// TestTerminalEndsWithItsJob closes a session under whoever is connected, and one that nobody was ready for.
func TestTerminalEndsWithItsJob(t *testing.T) {
	server := listen(t)
	s, early := server.New(), server.New()
	s.Attach(func(ctx context.Context, _ sandbox.Process) (sandbox.Exit, error) {
		<-ctx.Done()
		return sandbox.Exit{}, context.Cause(ctx)
	})
	conn, _, err := connect(t, s, s.token, subprotocol)
	if err != nil {
		t.Fatal(err)
	}
	refused := make(chan int)
	go func() {
		_, answer, _ := connect(t, early, early.token, subprotocol)
		refused <- answer.StatusCode
	}()
	go s.Close()
	if _, _, err := conn.Read(t.Context()); err == nil {
		t.Error("the connection outlives its job")
	}
	time.Sleep(10 * time.Millisecond) // the other one may wait by now
	early.Close()
	if status := <-refused; status != http.StatusServiceUnavailable && status != http.StatusNotFound {
		t.Errorf("a job that never ran: %d", status)
	}
}

func TestNoServer(t *testing.T) {
	var server *Server
	s := server.New()
	s.Attach(echo)
	s.Linger(t.Context(), func(time.Duration) { t.Error("waits") })
	s.Close()
	if s.Spec() != nil || server.Close() != nil {
		t.Error("no server has a session")
	}
}
