// Package sandboxtest is the suite that every driver passes. A bug found in one driver becomes a case here,
// and so a case for all.
package sandboxtest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// Start opens a sandbox of the driver under test, with an id that no other call gives.
type Start func(ctx context.Context, id string) (sandbox.Sandbox, error)

// Leftovers lists what is left on the machine of the sandboxes whose ids start with prefix: processes,
// mounts, cgroups, interfaces, disks, containers. It is asked after every Close and must be empty.
type Leftovers func(prefix string) []string

// Run runs the suite. The image behind start needs a POSIX shell and the usual small tools. With go test's
// -short it does the same with less data and fewer sandboxes, and gives them more time: for a machine that is
// emulated, where a start takes seconds.
func Run(t *testing.T, start Start, leftovers Leftovers) {
	t.Helper()
	s := newSuite(start, leftovers)
	t.Run("Exec", s.exec)
	t.Run("ExitCodes", s.exitCodes)
	t.Run("NotFound", s.notFound)
	t.Run("Signals", s.signals)
	t.Run("Stream", s.stream)
	t.Run("BigEnvironment", s.bigEnvironment)
	t.Run("CancelKillsTheWholeTree", s.cancel)
	t.Run("BackgroundProcessesEnd", s.background)
	t.Run("Terminal", s.terminal)
	t.Run("CloseEndsExec", s.closeEndsExec)
	t.Run("Parallel", s.parallel)
	s.life(t)
}

// RunLife is the part of the suite that runs no program of the image: for sandboxes that cannot.
func RunLife(t *testing.T, start Start, leftovers Leftovers) {
	t.Helper()
	newSuite(start, leftovers).life(t)
}

func (s suite) life(t *testing.T) {
	t.Run("CloseIsIdempotent", s.closeTwice)
	t.Run("StartCancelled", s.startCancelled)
}

func newSuite(start Start, leftovers Leftovers) suite {
	return suite{start: start, leftovers: leftovers, prefix: fmt.Sprintf("t%d", time.Now().UnixNano()%1e9)}
}

type suite struct {
	start     Start
	leftovers Leftovers
	prefix    string
}

// open starts a sandbox that is closed, and looked after, at the end of the test.
func (s suite) open(t *testing.T, name string) sandbox.Sandbox {
	t.Helper()
	id := s.prefix + "-" + name
	sb, err := s.start(t.Context(), id)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := sb.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
		s.nothingLeft(t, id)
	})
	return sb
}

// nothingLeft asserts that nothing is left. It waits a moment: containerd runs "runc delete" once more, on
// its own time, for a container whose start was cancelled.
func (s suite) nothingLeft(t *testing.T, id string) {
	t.Helper()
	left := s.leftovers(id)
	for deadline := time.Now().Add(5 * time.Second); len(left) > 0 && time.Now().Before(deadline); left = s.leftovers(id) {
		time.Sleep(20 * time.Millisecond)
	}
	if len(left) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	}
}

// sh runs a script and returns its output.
func sh(ctx context.Context, on sandbox.Host, script string) (stdout, stderr string, exit sandbox.Exit, err error) {
	var out, errs bytes.Buffer
	exit, err = on.Exec(ctx, sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), exit, err
}

func (s suite) exec(t *testing.T) {
	sb := s.open(t, "exec")
	stdout, stderr, exit, err := sh(t.Context(), sb, "echo out; echo err >&2; pwd")
	if err != nil || !exit.Success() || !strings.HasPrefix(stdout, "out\n") || stderr != "err\n" {
		t.Errorf("got %q, %q, %v, %v", stdout, stderr, exit, err)
	}
	var out bytes.Buffer
	exit, err = sb.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", `echo "$A:$(pwd):$(id -u)"; cat`}, Env: []string{"A=1", "PATH=/bin:/usr/bin"},
		Dir: "/tmp", User: "65534", Stdin: strings.NewReader("in"), Stdout: &out,
	})
	if err != nil || !exit.Success() || out.String() != "1:/tmp:65534\nin" {
		t.Errorf("got %q, %v, %v", out.String(), exit, err)
	}
}

func (s suite) exitCodes(t *testing.T) {
	sb := s.open(t, "codes")
	for _, code := range []int{0, 1, 3, 127, 255} {
		_, _, exit, err := sh(t.Context(), sb, "exit "+strconv.Itoa(code))
		if err != nil || exit.Code != code {
			t.Errorf("exit %d: got %v, %v", code, exit, err)
		}
	}
}

func (s suite) notFound(t *testing.T) {
	sb := s.open(t, "notfound")
	var stderr bytes.Buffer
	exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"no-such-command"}, Stderr: &stderr})
	if err != nil || exit.Code != 127 || !strings.Contains(stderr.String(), "no-such-command") {
		t.Errorf("got %v, %v, %q; want exit code 127 and the name", exit, err, stderr.String())
	}
}

func (s suite) signals(t *testing.T) {
	sb := s.open(t, "signals")
	_, _, exit, err := sh(t.Context(), sb, "kill -KILL $$")
	if err != nil || exit.Signal != syscall.SIGKILL || exit.Code != 137 {
		t.Errorf("killed: got %v, %v", exit, err)
	}
	signals := make(chan syscall.Signal, 1)
	out := &watched{marker: "ready", seen: func() { signals <- syscall.SIGUSR1 }}
	exit, err = sb.Exec(t.Context(), sandbox.Process{
		Args:   []string{"sh", "-c", `trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done`},
		Stdout: out, Signals: signals,
	})
	if err != nil || exit.Code != 7 || !strings.Contains(out.String(), "caught") {
		t.Errorf("forwarded: got %v, %v, %q", exit, err, out.String())
	}
}

// stream sends 1 GiB through a process and compares what comes back.
func (s suite) stream(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 16 << 20
	}
	sb := s.open(t, "stream")
	sent, got := sha256.New(), &counter{Hash: sha256.New()}
	began := time.Now()
	exit, err := sb.Exec(t.Context(), sandbox.Process{
		Args: []string{"cat"}, Stdin: io.TeeReader(io.LimitReader(&pattern{}, size), sent), Stdout: got,
	})
	if err != nil || !exit.Success() {
		t.Fatalf("got %v, %v", exit, err)
	}
	if got.n != size || !bytes.Equal(sent.Sum(nil), got.Sum(nil)) {
		t.Errorf("got %d of %d bytes, or other ones", got.n, size)
	}
	t.Logf("%.0f MiB/s", float64(size)/(1<<20)/time.Since(began).Seconds())
}

func (s suite) bigEnvironment(t *testing.T) {
	sb := s.open(t, "env")
	env := []string{"PATH=/usr/local/bin:/usr/bin:/bin"}
	for i := range 20 { // 2 MiB in all; Linux takes 128 KiB a string
		env = append(env, fmt.Sprintf("BIG%d=%s", i, strings.Repeat("x", 100<<10)))
	}
	var out bytes.Buffer
	exit, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", `echo "${#BIG0} ${#BIG19}"`}, Env: env, Stdout: &out})
	if err != nil {
		t.Fatal(err)
	}
	// The kernel's limit on all arguments is a quarter of the stack limit, so a refusal is an answer too.
	if exit.Success() && out.String() != "102400 102400\n" || !exit.Success() && exit.Code != 126 {
		t.Errorf("got %q, %v", out.String(), exit)
	}
}

var errStop = errors.New("no longer wanted")

func (s suite) cancel(t *testing.T) {
	sb := s.open(t, "cancel")
	ctx, cancel := context.WithCancelCause(t.Context())
	out := &watched{marker: "ready", seen: func() { cancel(errStop) }}
	script := `trap '' TERM INT HUP; (trap '' TERM; sleep 9471) & (sleep 9472 & sleep 9473) & echo ready; sleep 9474`
	began := time.Now()
	_, err := sb.Exec(ctx, sandbox.Process{Args: []string{"sh", "-c", script}, Stdout: out})
	if !errors.Is(err, errStop) {
		t.Errorf("got %v, want the cause of the cancellation", err)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if left := sleepers(t, sb); left != "" {
		t.Errorf("still alive: %s", left)
	}
}

// background says that what a process leaves in its session ends with it.
func (s suite) background(t *testing.T) {
	sb := s.open(t, "background")
	stdout, _, exit, err := sh(t.Context(), sb, "sleep 9475 & echo started")
	if err != nil || !exit.Success() || stdout != "started\n" {
		t.Errorf("got %q, %v, %v", stdout, exit, err)
	}
	if left := sleepers(t, sb); left != "" {
		t.Errorf("still alive: %s", left)
	}
}

// sleepers lists the live sleep 947x processes of a sandbox.
func sleepers(t *testing.T, sb sandbox.Sandbox) string {
	t.Helper()
	script := `for p in /proc/[0-9]*; do tr '\0' ' ' 2>/dev/null <$p/cmdline | grep '^sleep 947' ; done; true`
	stdout, _, _, err := sh(t.Context(), sb, script)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(stdout)
}

func (s suite) terminal(t *testing.T) {
	sb := s.open(t, "terminal")
	var out bytes.Buffer
	exit, err := sb.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", "stty size; test -t 0 && test -t 1 && echo tty"}, Stdout: &out,
		Terminal: &sandbox.Terminal{Size: sandbox.WindowSize{Rows: 31, Cols: 97}},
	})
	if err != nil || !exit.Success() || out.String() != "31 97\r\ntty\r\n" {
		t.Errorf("got %q, %v, %v", out.String(), exit, err)
	}
}

func (s suite) closeTwice(t *testing.T) {
	sb := s.open(t, "twice")
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := sb.Close(t.Context()); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	all.Wait()
	if err := sb.Close(cancelled); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("close again: %v", err)
	}
	if _, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"true"}}); err == nil {
		t.Error("exec in a closed sandbox worked")
	}
}

func (s suite) closeEndsExec(t *testing.T) {
	sb := s.open(t, "ends")
	ended := make(chan error, 1)
	out := &watched{marker: "ready", seen: func() { go sb.Close(context.Background()) }}
	go func() {
		_, err := sb.Exec(t.Context(), sandbox.Process{Args: []string{"sh", "-c", "echo ready; sleep 9476"}, Stdout: out})
		ended <- err
	}()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("a process that the sandbox's end killed counted as ended by itself")
		}
	case <-time.After(30 * time.Second):
		t.Error("exec hangs after its sandbox was closed")
	}
}

func (s suite) startCancelled(t *testing.T) {
	unit := time.Millisecond
	if testing.Short() {
		unit *= 20 // the same moments of a start that takes as much longer
	}
	for i, after := range []time.Duration{0, 2, 10, 30, 60, 100} {
		id := fmt.Sprintf("%s-start%d", s.prefix, i)
		ctx, cancel := context.WithTimeout(t.Context(), after*unit)
		sb, err := s.start(ctx, id)
		cancel()
		if err == nil { // it was quicker
			err = sb.Close(context.Background())
			if err != nil {
				t.Errorf("close: %v", err)
			}
		}
		s.nothingLeft(t, id)
	}
}

// parallel runs 20 sandboxes at once and asserts that no two share a host id.
func (s suite) parallel(t *testing.T) {
	n := 20
	if testing.Short() {
		n = 4
	}
	type span struct{ first, count uint64 }
	spans := make([]span, n)
	opened := make([]sandbox.Sandbox, n)
	var starts, runs sync.WaitGroup
	for i := range n {
		starts.Go(func() {
			sb, err := s.start(t.Context(), fmt.Sprintf("%s-par%02d", s.prefix, i))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			opened[i] = sb
		})
	}
	starts.Wait()
	for i, sb := range opened {
		if sb == nil {
			continue
		}
		runs.Go(func() {
			stdout, _, exit, err := sh(t.Context(), sb, "cat /proc/self/uid_map; sleep 0.2")
			if fields := strings.Fields(stdout); err == nil && exit.Success() && len(fields) == 3 {
				spans[i].first, _ = strconv.ParseUint(fields[1], 10, 64)
				spans[i].count, _ = strconv.ParseUint(fields[2], 10, 64)
			} else {
				t.Errorf("got %q, %v, %v", stdout, exit, err)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	runs.Wait()
	s.nothingLeft(t, s.prefix+"-par")
	for i, a := range spans {
		for j, b := range spans[:i] {
			if a.count == 0 || a.first < b.first+b.count && b.first < a.first+a.count {
				t.Errorf("sandboxes %d and %d share host ids: %v, %v", i, j, a, b)
			}
		}
	}
}

// watched is a buffer that calls seen once, when marker has been written to it.
type watched struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	marker string
	seen   func()
}

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.buf.Write(p)
	if w.seen != nil && strings.Contains(w.buf.String(), w.marker) {
		w.seen()
		w.seen = nil
	}
	return n, err
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// pattern is an endless, cheap input that does not repeat within a pipe's buffer.
type pattern struct{ n byte }

func (p *pattern) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(i) ^ p.n
	}
	p.n++
	return len(b), nil
}

// counter hashes and counts.
type counter struct {
	hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.Hash.Write(p)
}
