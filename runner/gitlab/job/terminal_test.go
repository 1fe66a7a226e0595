package job

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/terminal"
	"github.com/runnerd/runnerd/sandbox"
)

// shell is the piece by which the shell of a terminal is known: it has one, and no script of a job has.
const shell = "a shell in a terminal"

// terminals gives the bench's job a terminal, which is opened while its script runs, and its lines echoed. The script
// ends when that is done, with a code.
func (b *bench) terminals(timeout time.Duration, code int) (opened <-chan net.Conn) {
	b.t.Helper()
	server, err := terminal.Listen(b.t.Context(), terminal.Config{Listen: "127.0.0.1:0", Timeout: timeout, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = server.Close() })
	b.in.Session = server.New()
	conns := make(chan net.Conn, 1)
	b.on.does[script1] = func(context.Context, sandbox.Process) (sandbox.Exit, error) {
		conn, err := gitlabtest.DialTerminal(b.t.Context(), *b.in.Session.Spec())
		if err != nil {
			return sandbox.Exit{}, err
		}
		b.t.Cleanup(func() { _ = conn.Close() })
		if got := say(conn, "hello"); got != "hello to you\n" {
			b.t.Errorf("the terminal says %q", got)
		}
		conns <- conn
		return sandbox.Exit{Code: code}, nil
	}
	b.on.does[shell] = func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
		defer context.AfterFunc(ctx, func() { _ = p.Stdin.(io.Closer).Close() })() // as a process is killed
		lines := bufio.NewScanner(p.Stdin)
		for lines.Scan() {
			if _, err := fmt.Fprintf(p.Stdout, "%s to you\n", lines.Text()); err != nil {
				return sandbox.Exit{}, err
			}
		}
		return sandbox.Exit{}, context.Cause(ctx)
	}
	return conns
}

func say(conn net.Conn, line string) string {
	_, _ = io.WriteString(conn, line+"\n")
	got, _ := bufio.NewReader(conn).ReadString('\n')
	return got
}

// TestTerminalOutlivesScript has somebody look for why a script failed: the job ends when they leave, and with what it
// had become.
func TestTerminalOutlivesScript(t *testing.T) {
	b := newBench(t)
	b.set("GREETING", "hello $CI_PROJECT_DIR")
	opened := b.terminals(time.Minute, 3)
	left := make(chan struct{})
	go func() {
		conn := <-opened
		for !strings.Contains(b.out.String(), "Terminal is connected: the job ends when it is closed, in 1m0s at the latest") {
			time.Sleep(time.Millisecond)
		}
		if got := say(conn, "still here"); got != "still here to you\n" {
			t.Errorf("after the script the terminal says %q", got)
		}
		close(left)
		_ = conn.Close()
	}()
	exit, err := b.run(t.Context())
	if err != nil || exit.Code != 3 {
		t.Errorf("got %v, %v", exit, err)
	}
	select {
	case <-left:
	default:
		t.Error("the job did not wait for the terminal")
	}
	b.wants([]string{sources, script1, shell, after})
	if got := b.env(shell, "GREETING"); got != "hello /builds/group/app" {
		t.Errorf("the shell's variables are not the job's: %q", got)
	}
}

// TestTerminalEnds has a terminal open that nobody closes: its time ends it, and the end of the job.
func TestTerminalEnds(t *testing.T) {
	for name, c := range map[string]struct {
		timeout time.Duration
		end     func(stop chan struct{}, cancel context.CancelCauseFunc)
		lingers bool
	}{
		"after its time":               {timeout: 10 * time.Millisecond, lingers: true},
		"cancelled by GitLab":          {timeout: time.Hour, end: func(stop chan struct{}, _ context.CancelCauseFunc) { close(stop) }},
		"cancelled or out of time":     {timeout: time.Hour, end: func(_ chan struct{}, cancel context.CancelCauseFunc) { cancel(runner.ErrTimeout) }},
		"cancelled while it lingers":   {timeout: time.Hour, lingers: true, end: func(stop chan struct{}, _ context.CancelCauseFunc) { close(stop) }},
		"out of time while it lingers": {timeout: time.Hour, lingers: true, end: func(_ chan struct{}, cancel context.CancelCauseFunc) { cancel(runner.ErrTimeout) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			stop := make(chan struct{})
			b.in.Stop = stop
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			opened := b.terminals(c.timeout, 0)
			open := b.on.does[script1]
			b.on.does[script1] = func(ctx context.Context, p sandbox.Process) (sandbox.Exit, error) {
				exit, err := open(ctx, p)
				if !c.lingers {
					c.end(stop, cancel)
					<-ctx.Done()
					err = context.Cause(ctx)
				}
				return exit, err
			}
			if c.lingers && c.end != nil {
				go func() {
					for !strings.Contains(b.out.String(), "Terminal is connected") {
						time.Sleep(time.Millisecond)
					}
					c.end(stop, cancel)
				}()
			}
			exit, err := b.run(ctx)
			if c.lingers && (err != nil || !exit.Success()) || !c.lingers && !errors.Is(err, runner.ErrCancelled) && !errors.Is(err, runner.ErrTimeout) {
				t.Errorf("got %v, %v", exit, err)
			}
			if says := strings.Contains(b.out.String(), "Terminal is connected"); says != c.lingers {
				t.Errorf("the log tells of a terminal: %t", says)
			}
			conn := <-opened
			if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(conn); errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the terminal outlives its job: %v", err)
			}
		})
	}
}
