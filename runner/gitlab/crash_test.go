package gitlab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/gitlab/spec"
	"github.com/runnerd/runnerd/sandbox"
)

// mortal is a world whose process dies at a moment: what it does from then on nobody sees, and its files are as they
// were.
type mortal struct {
	*world
	at   int    // which moment
	copy string // where its files go

	mu      sync.Mutex
	moments []string
	dead    bool
	written strings.Builder // by the job
}

func newMortal(t *testing.T, f *fake, dir string, at int) *mortal {
	m := &mortal{world: newWorld(t, dir), at: at, copy: filepath.Join(t.TempDir(), "copy")}
	m.fake = f
	client, prepare, adopt := m.config.Client, m.config.Prepare, m.config.Adopt
	m.config.Client = func(r Registration) (*Client, error) {
		if _, err := client(r); err != nil {
			return nil, err
		}
		return NewClient(r.URL, ClientOptions{Transport: mortalTransport{m}})
	}
	m.config.Prepare = func(ctx context.Context, a Assigned) (runner.Job, error) {
		m.moment("prepare")
		return prepare(ctx, a)
	}
	m.config.Adopt = func(ctx context.Context, r runner.Request) (runner.Assignment, error) {
		m.moment("adopt")
		a, err := adopt(ctx, r)
		m.moment("adopted")
		a.Reporter = mortalReporter{a.Reporter, m}
		return a, err
	}
	m.run = func(ctx context.Context, a Assigned, out runner.Output) (sandbox.Exit, error) {
		if m.moment("step") {
			m.world.mu.Lock()
			m.ran[a.Job.ID]--
			m.world.mu.Unlock()
		}
		for i := range 8 {
			line := fmt.Sprintf("line %d", i) // the newline comes with the next
			if i > 0 {
				line = "\n" + line
			}
			_, err := out.Stream(runner.Stdout).Write([]byte(line))
			m.mu.Lock()
			if !m.dead && err == nil {
				m.written.WriteString(line)
			}
			m.mu.Unlock()
			m.moment("line")
			if err := sleep(ctx, time.Second); err != nil {
				return sandbox.Exit{}, err
			}
		}
		return sandbox.Exit{}, nil
	}
	return m
}

// moment is one at which the process may die. It returns whether it is dead.
func (m *mortal) moment(what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return true
	}
	m.moments = append(m.moments, what)
	if len(m.moments) == m.at {
		m.dead = true
		copied := fs.ErrNotExist // another goroutine removes a file while the directory is copied
		for errors.Is(copied, fs.ErrNotExist) {
			to := filepath.Join(m.copy, "gitlab")
			copied = errors.Join(os.RemoveAll(to), os.CopyFS(to, os.DirFS(m.config.Dir)))
		}
		if copied != nil {
			m.t.Error(copied)
		}
	}
	return m.dead
}

func (m *mortal) died() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.dead
}

type mortalTransport struct{ m *mortal }

func (t mortalTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.m.moment("before " + r.Method) {
		return nil, errBroken
	}
	res, err := t.m.fake.RoundTrip(r)
	if t.m.moment("after " + r.Method) {
		return nil, errBroken
	}
	return res, err
}

type mortalReporter struct {
	runner.Reporter
	m *mortal
}

func (r mortalReporter) State(ctx context.Context, s runner.State, detail string) {
	r.m.moment("state " + string(s))
	r.Reporter.State(ctx, s, detail)
}

func (r mortalReporter) Decided(ctx context.Context, res runner.Result) error {
	r.m.moment("decided")
	return r.Reporter.Decided(ctx, res)
}

func (r mortalReporter) Finish(ctx context.Context, res runner.Result) error {
	r.m.moment("finish")
	return r.Reporter.Finish(ctx, res)
}

// TestCrash lets the process die at every moment of a job's life, and a second one at every moment of the first's
// recovery; a third one finds what is left.
func TestCrash(t *testing.T) {
	for _, onePhase := range []bool{false, true} {
		for at, more := 1, true; more; at++ {
			more = crash(t, onePhase, at, 0)
			if at > 200 {
				t.Fatal("it never comes to its end")
			}
		}
		// The second process dies, too.
		for at := 5; at < 40; at += 6 {
			for second := 1; second <= 8; second++ {
				crash(t, onePhase, at, second)
			}
		}
	}
}

// crash returns whether the process came to its moment of death.
func crash(t *testing.T, onePhase bool, at, second int) (came bool) {
	t.Helper()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFake(t)
		f.onePhase = onePhase
		id := f.offer(nil)
		first := newMortal(t, f, dir, at)
		first.start()
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if first.died() || f.job(id).state == "success" {
				break
			}
		}
		came = first.died()
		doing := strings.Join(first.moments, ", ")
		first.kill()
		dir, written, runs := first.copy, first.written.String(), first.runs(id)
		if !came {
			if f.job(id).state != "success" {
				t.Errorf("moments %s: %+v", doing, f.job(id))
			}
			return
		}
		if second > 0 {
			m := newMortal(t, f, dir, second)
			m.config.Runners = noRunners{} // it recovers only
			m.start()
			time.Sleep(time.Minute)
			if m.died() {
				dir = m.copy
			}
			m.kill()
			doing += "; then " + strings.Join(m.moments, ", ")
		}
		last := newWorld(t, dir)
		last.fake = f
		last.start()
		time.Sleep(20 * time.Minute)
		last.end()
		last.nothingLeft()

		j := f.job(id)
		runs += last.runs(id)
		text := string(j.trace)
		switch {
		case runs > 1:
			t.Errorf("moments %s: the job ran %d times", doing, runs)
		case onePhase && len(first.moments) < 3: // the answer that gave it was lost: nobody knows of it
		case j.state == "failed":
			if j.final.FailureReason != spec.RunnerSystemFailure || !strings.Contains(text, "runnerd was interrupted while this job ran") {
				t.Errorf("moments %s: %+v %q", doing, j.final, text)
			}
			if !strings.HasPrefix(text, written) {
				t.Errorf("moments %s: the job wrote %q, the server has %q", doing, written, text)
			}
		case j.state != "success" || runs != 1:
			t.Errorf("moments %s: the job is %s and ran %d times", doing, j.state, runs)
		}
	})
	return came
}

// kill ends what is left of a dead process.
func (m *mortal) kill() {
	m.mu.Lock()
	m.dead = true
	m.mu.Unlock()
	m.drain(ErrClosed)
	<-m.ended
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := m.manager.Close(ctx); err != nil {
		m.t.Error(err)
	}
	m.manager = nil
}

type noRunners struct{}

func (noRunners) List() []Registration     { return nil }
func (noRunners) Changed() <-chan struct{} { return nil }
