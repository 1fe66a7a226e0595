//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
)

// terminalOf is a terminal into a job, and all that it has shown.
type terminalOf struct {
	t    *testing.T
	conn net.Conn
	over chan struct{} // closed at its end

	mu    sync.Mutex
	shown strings.Builder
}

// openTerminal opens one as soon as GitLab has the job run, so perhaps before its sandbox is there.
func openTerminal(t *testing.T, server *gitlabtest.Server, id int64) *terminalOf {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := server.Wait(ctx, id, gitlabtest.Running); err != nil {
		t.Fatal(err)
	}
	session, err := server.Session(id)
	if err != nil {
		t.Fatal(err)
	}
	wrong := session
	wrong.Authorization = strings.Repeat("0", len(session.Authorization))
	if conn, err := gitlabtest.DialTerminal(ctx, wrong); err == nil || !strings.Contains(err.Error(), "status 401") {
		t.Errorf("with a wrong token: %v %v", conn, err)
	}
	conn, err := gitlabtest.DialTerminal(t.Context(), session)
	if err != nil {
		t.Fatalf("%v\n%s", err, gitlabTrace(t, server, id))
	}
	o := &terminalOf{t: t, conn: conn, over: make(chan struct{})}
	t.Cleanup(func() { _ = conn.Close(); <-o.over })
	go func() {
		defer close(o.over)
		_, _ = io.Copy(o, conn)
	}()
	return o
}

func (o *terminalOf) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.shown.Write(p)
}

func (o *terminalOf) text() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.shown.String()
}

// types types a line, and waits for what it is answered.
func (o *terminalOf) types(line, want string) {
	o.t.Helper()
	if _, err := io.WriteString(o.conn, line+"\n"); err != nil {
		o.t.Fatal(err)
	}
	eventually(o.t, func() error {
		if text := o.text(); !strings.Contains(text, want) {
			return fmt.Errorf("the terminal does not show %q:\n%s", want, text)
		}
		return nil
	})
}

// eventually waits for something to be so, for half a minute.
func eventually(t *testing.T, so func() error) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := so()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestGitLabTerminal opens a terminal into a job that runs, looks around in it, and stays when the script has failed.
func TestGitLabTerminal(t *testing.T) {
	d := startDaemon(t, "terminal: {listen: \"127.0.0.1:0\"}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second, UpdateInterval: time.Second})
	d.register(server)
	j := script(debian, "echo from-the-script >/tmp/note", "while [ ! -e /tmp/go ]; do sleep 0.1; done", "exit 7")
	id := server.Offer(j).ID
	o := openTerminal(t, server, id)
	// What is typed is echoed: the answers are none of what was typed.
	o.types("echo $((40+2))-$CI_JOB_ID-$PWD", fmt.Sprintf("42-%d-/builds/project-1", id))
	o.types("cat /tmp/note; tty; id -un", "from-the-script\r\n/dev/pts/")
	o.types("stty size", "24 80\r\n")
	o.types("stty rows 31 cols 97; stty size", "31 97\r\n")
	o.types("echo $0-shell; touch /tmp/go", "bash-shell\r\n")
	eventually(t, func() error {
		if trace := plain(gitlabTrace(t, server, id)); !strings.Contains(trace, "Terminal is connected: the job ends when it is closed, in 30m0s at the latest") {
			return fmt.Errorf("the trace tells of no terminal:\n%s", trace)
		}
		return nil
	})
	o.types("cat /tmp/no*; echo still-$((1+1))", "still-2\r\n")
	if now, err := server.Job(id); err != nil || now.Status != gitlabtest.Running {
		t.Errorf("while somebody is connected, the job is %s: %v", now.Status, err)
	}
	began := time.Now()
	if err := o.conn.Close(); err != nil {
		t.Error(err)
	}
	if end := ended(t, server, id); end.Status != gitlabtest.Failed || end.ExitCode != 7 {
		t.Errorf("%s, exit code %d\n%s", end.Status, end.ExitCode, gitlabTrace(t, server, id))
	}
	t.Logf("GitLab knew the end %s after the terminal was closed", time.Since(began))
}

// TestGitLabTerminalCancel cancels a job while somebody is connected.
func TestGitLabTerminalCancel(t *testing.T) {
	d := startDaemon(t, "terminal: {listen: \"127.0.0.1:0\"}\n")
	server := startGitLab(t, gitlabtest.Options{LongPoll: 2 * time.Second, UpdateInterval: time.Second})
	d.register(server)
	id := server.Offer(script(debian, "sleep 4271")).ID
	o := openTerminal(t, server, id)
	o.types("sleep 4272 & echo $((40+2))-here", "42-here")
	if err := server.Cancel(id); err != nil {
		t.Fatal(err)
	}
	if end := ended(t, server, id); end.Status != gitlabtest.Canceled {
		t.Errorf("%s %s\n%s", end.Status, end.FailureReason, gitlabTrace(t, server, id))
	}
	select {
	case <-o.over:
	case <-time.After(10 * time.Second):
		t.Error("the terminal outlives its job")
	}
}
