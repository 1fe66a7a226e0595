package gitlab

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/integration/gitlabtest"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/runner/gitlab/terminal"
	"github.com/runnerd/runnerd/sandbox"
)

// TestSessions has the server open the terminals of two jobs that run at once: each is that of the job which the answer
// to its request brought, and goes with it. Requests that brought none leave none.
func TestSessions(t *testing.T) {
	for name, on := range map[string]bool{"on": true, "off": false} {
		t.Run(name, func(t *testing.T) { sessions(t, on) })
	}
}

func sessions(t *testing.T, on bool) {
	s, err := gitlabtest.New(gitlabtest.Options{Dir: t.TempDir(), LongPoll: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, v := range s.Violations() {
			t.Errorf("violation: %s", v)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	w := newWorld(t, t.TempDir())
	if on {
		if w.config.Terminals, err = terminal.Listen(t.Context(), terminal.Config{Listen: "127.0.0.1:0", Log: slog.New(slog.DiscardHandler)}); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = w.config.Terminals.Close() }()
	}
	w.config.CheckInterval = 10 * time.Millisecond
	rs := w.config.Runners.(*Registrations)
	if err := rs.Remove("r"); err != nil {
		t.Fatal(err)
	}
	if err := rs.Add(Registration{Name: "r", URL: s.URL, Token: s.AddRunner(), Limits: sandbox.Limits{CPU: 1000}}); err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	w.config.Client = func(r Registration) (*Client, error) {
		return NewClient(r.URL, ClientOptions{Transport: transport, Info: spec.Info{
			Name: "runnerd", Version: "0", Platform: "linux", Architecture: "amd64", Executor: r.Executor, Features: Features(on),
		}})
	}
	end := make(chan struct{})
	w.run = func(ctx context.Context, a Assigned, _ runner.Output) (sandbox.Exit, error) {
		a.Session.Attach(func(_ context.Context, p sandbox.Process) (sandbox.Exit, error) {
			_, err := fmt.Fprintf(p.Stdout, "job %d\n", a.Job.ID)
			return sandbox.Exit{}, err
		})
		select {
		case <-end:
		case <-ctx.Done():
		}
		return sandbox.Exit{}, context.Cause(ctx)
	}
	w.start()
	defer w.end()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	known := map[int64]spec.Session{}
	for range 2 {
		id := s.Offer(spec.Job{Steps: []spec.Step{{Name: spec.StepScript, Script: []string{"true"}}}}).ID
		if _, err := s.Wait(ctx, id, gitlabtest.Running); err != nil {
			t.Fatal(err)
		}
		if known[id], err = s.Session(id); (err == nil) != on {
			t.Fatalf("the job has a session: %v", err)
		}
	}
	for id, session := range known {
		if !on {
			continue
		}
		conn, err := gitlabtest.DialTerminal(ctx, session)
		if err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(conn).ReadString('\n'); line != fmt.Sprintf("job %d\n", id) {
			t.Errorf("the terminal of job %d is that of %q, %v", id, line, err)
		}
		_ = conn.Close()
		session.Authorization += "0"
		refused(t, ctx, session, "status 401")
	}
	close(end)
	for id, session := range known {
		if j, err := s.Wait(ctx, id); err != nil || j.Status != gitlabtest.Success {
			t.Fatalf("job %d: %+v %v", id, j, err)
		}
		if on {
			refused(t, ctx, session, "status 404")
		}
	}
}

// refused expects a terminal not to be opened.
func refused(t *testing.T, ctx context.Context, at spec.Session, why string) {
	t.Helper()
	conn, err := gitlabtest.DialTerminal(ctx, at)
	if err == nil {
		_ = conn.Close()
	}
	if err == nil || !strings.Contains(err.Error(), why) {
		t.Errorf("the terminal answers %v, want %s", err, why)
	}
}
