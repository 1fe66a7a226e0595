package initd

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

func TestExec(t *testing.T) {
	c, _ := startInit(t)
	stdout, stderr, exit := sh(t, c, `echo "$HOME $0 $PATH $PWD"; echo err >&2; ls /proc/self/fd | tr '\n' ' '; exit 3`)
	if want := "/root sh " + strings.TrimPrefix(DefaultPath, "PATH=") + " /\n0 1 2 3 "; stdout != want {
		t.Errorf("stdout %q, want %q", stdout, want)
	}
	if stderr != "err\n" || exit != (sandbox.Exit{Code: 3}) {
		t.Errorf("got %q, %v", stderr, exit)
	}
	stdout, _, _ = sh(t, c, `grep -E '^Sig(Blk|Ign)' /proc/self/status | tr -d '\n\t'`)
	// Signal 32 is the C library's own, for threads: make leaves it ignored, and Go leaves it alone.
	if strings.Replace(stdout, "SigIgn:0000000080000000", "SigIgn:0000000000000000", 1) != "SigBlk:0000000000000000SigIgn:0000000000000000" {
		t.Errorf("signals of a process: %s", stdout)
	}
	var both bytes.Buffer
	_, err := c.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", "echo 1; echo 2 >&2; echo 3"}, Stdout: &both, Stderr: &both,
	})
	if err != nil || both.String() != "1\n2\n3\n" {
		t.Errorf("one writer for both: %q, %v", both.String(), err)
	}
}

func TestNotStarted(t *testing.T) {
	c, _ := startInit(t)
	sh(t, c, `mkdir -p /run/d; echo '#!/no/such' >/run/bad; chmod 755 /run/bad; touch /run/plain`)
	for _, test := range []struct {
		p    sandbox.Process
		code int
		text string
	}{
		{sandbox.Process{Args: []string{"foo"}}, 127, `exec: "foo": executable file not found in $PATH`},
		{sandbox.Process{Args: []string{""}}, 127, `executable file not found`},
		{sandbox.Process{Args: []string{"/no/foo"}}, 127, "no such file"},
		{sandbox.Process{Args: []string{"/run/bad"}}, 127, "no such file"},
		{sandbox.Process{Args: []string{"/run/plain"}}, 126, "permission denied"},
		{sandbox.Process{Args: []string{"plain"}, Env: []string{"PATH=/run"}}, 126, "permission denied"},
		{sandbox.Process{Args: []string{"/run/d"}}, 126, "directory"},
		{sandbox.Process{Args: []string{"true"}, User: "nosuchuser"}, 126, "nosuchuser"},
		{sandbox.Process{Args: []string{"true"}, User: "0:nosuchgroup"}, 126, "nosuchgroup"},
		{sandbox.Process{Args: []string{"true"}, Dir: "/run/plain"}, 126, "not a directory"},
		{sandbox.Process{Args: []string{"true"}, Env: []string{"A=" + strings.Repeat("x", 200<<10)}}, 126, "too long"},
	} {
		var stderr bytes.Buffer
		test.p.Stderr = &stderr
		exit, err := c.Exec(t.Context(), test.p)
		if err != nil || exit.Code != test.code || !strings.Contains(stderr.String(), test.text) {
			t.Errorf("%.40q %q %q: got %v, %v, %q; want %d", test.p.Args, test.p.User, test.p.Dir, exit, err, stderr.String(), test.code)
		}
	}
	if _, err := c.Exec(t.Context(), sandbox.Process{}); err == nil {
		t.Error("ran nothing")
	}
}

func TestUserAndDir(t *testing.T) {
	c, _ := startInit(t)
	var out bytes.Buffer
	for user, want := range map[string]string{
		"": "0:0:/root", "daemon": "1:1:/usr/sbin", "1": "1:1:/usr/sbin", "daemon:0": "1:0:/usr/sbin", "4321:8765": "4321:8765:/",
	} {
		out.Reset()
		exit, err := c.Exec(t.Context(), sandbox.Process{
			Args: []string{"sh", "-c", `echo "$(id -u):$(id -g):$HOME"; touch made`}, User: user, Dir: "/run/new/" + user, Stdout: &out, Stderr: &out,
		})
		if err != nil || !exit.Success() || out.String() != want+"\n" {
			t.Errorf("%q: got %q, %v, %v; want %s", user, out.String(), exit, err, want)
		}
	}
}

func TestSignals(t *testing.T) {
	c, _ := startInit(t)
	if _, _, exit := sh(t, c, "kill -KILL $$"); exit != (sandbox.Exit{Code: 137, Signal: syscall.SIGKILL}) {
		t.Errorf("killed: %v", exit)
	}
	signals := make(chan syscall.Signal, 2)
	out := &onWrite{do: func() { signals <- syscall.SIGUSR1 }}
	exit, err := c.Exec(t.Context(), sandbox.Process{
		Args:   []string{"sh", "-c", `trap 'exit 7' USR1; echo ready; while :; do sleep 0.05; done`},
		Stdout: out, Signals: signals,
	})
	if err != nil || exit.Code != 7 {
		t.Errorf("forwarded: %v, %v", exit, err)
	}
}

// onWrite calls do at the first Write.
type onWrite struct {
	once sync.Once
	do   func()
}

func (w *onWrite) Write(p []byte) (int, error) {
	w.once.Do(w.do)
	return len(p), nil
}

func TestBigEnvironment(t *testing.T) {
	c, cmd := startInit(t)
	env := []string{DefaultPath}
	for i := range 20 {
		env = append(env, fmt.Sprintf("BIG%d=%s", i, strings.Repeat("x", 100<<10)))
	}
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", `echo "${#BIG0} ${#BIG19}"`}, Env: env, Stdout: &out, Stderr: &out,
	})
	if err != nil || !exit.Success() || out.String() != "102400 102400\n" {
		t.Errorf("%v, %v, %q", exit, err, out.String())
	}
	time.Sleep(time.Second)
	t.Logf("a second later the init has %d KiB", rss(t, cmd, "VmRSS"))
	if _, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"true", strings.Repeat("x", wire.MaxSpec)}}); err == nil {
		t.Error("took more than the limit")
	}
}

func TestParallel50(t *testing.T) {
	c, cmd := startInit(t)
	sh(t, c, "true")
	before, ours := fds(t, cmd.Process.Pid), fds(t, os.Getpid())
	began := time.Now()
	var all sync.WaitGroup
	for i := range 50 {
		all.Go(func() {
			want := strconv.Itoa(i)
			var out bytes.Buffer
			exit, err := c.Exec(t.Context(), sandbox.Process{
				Args: []string{"sh", "-c", "read x; echo $x; exit $x"}, Stdin: strings.NewReader(want + "\n"), Stdout: &out,
			})
			if err != nil || exit.Code != i || out.String() != want+"\n" {
				t.Errorf("%d: %v, %v, %q", i, exit, err, out.String())
			}
		})
	}
	all.Wait()
	t.Logf("50 in %s", time.Since(began))
	time.Sleep(time.Second)
	t.Logf("a second later the init has %d KiB (%d KiB its own), %d threads", rss(t, cmd, "VmRSS"), rss(t, cmd, "RssAnon"), rss(t, cmd, "Threads"))
	if after := fds(t, cmd.Process.Pid); after != before {
		t.Errorf("the init had %d files open, now %d", before, after)
	}
	if after := fds(t, os.Getpid()); after > ours {
		t.Errorf("we had %d files open, now %d", ours, after)
	}
	if zombies, _, _ := sh(t, c, `cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '`); zombies != "0\n" {
		t.Errorf("%s zombies", zombies)
	}
}

func TestTerminal(t *testing.T) {
	c, _ := startInit(t)
	ours := fds(t, os.Getpid())
	resize := make(chan sandbox.WindowSize, 1)
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", `trap 'stty size; exit 4' WINCH; stty size; tty; echo ready; while :; do sleep 0.05; done`},
		Stdout: io.MultiWriter(&out, &onWrite{do: func() {
			time.AfterFunc(100*time.Millisecond, func() { resize <- sandbox.WindowSize{Rows: 50, Cols: 132} })
		}}),
		Terminal: &sandbox.Terminal{Size: sandbox.WindowSize{Rows: 24, Cols: 80}, Resize: resize},
	})
	if err != nil || exit.Code != 4 {
		t.Errorf("%v, %v", exit, err)
	}
	if after := fds(t, os.Getpid()); after > ours {
		t.Errorf("we had %d files open, now %d", ours, after)
	}
	if got := out.String(); !strings.HasPrefix(got, "24 80\r\n/dev/pts/0\r\n") || !strings.HasSuffix(got, "50 132\r\n") {
		t.Errorf("got %q", got)
	}
	out.Reset()
	exit, err = c.Exec(t.Context(), sandbox.Process{ // Ctrl-C
		Args: []string{"cat"}, Stdin: strings.NewReader("a\n\x03"), Stdout: &out,
		Terminal: &sandbox.Terminal{Size: sandbox.WindowSize{Rows: 24, Cols: 80}},
	})
	if err != nil || exit.Signal != syscall.SIGINT {
		t.Errorf("%v, %v, %q", exit, err, out.String())
	}
}

func TestListenFDs(t *testing.T) {
	c, _ := startInit(t)
	file, err := c.Listen(t.Context(), "unix", "/run/s.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var out bytes.Buffer
	exit, err := c.Exec(t.Context(), sandbox.Process{
		Args:   []string{"sh", "-c", `echo "$LISTEN_FDS $((LISTEN_PID-$$)) $0 $1"; readlink /proc/$$/fd/3`, "name", "arg"},
		Env:    []string{DefaultPath, "LISTEN_PID=1", "LISTEN_FDS=9"},
		Stdout: &out, Stderr: &out, Files: []*os.File{file}, User: "daemon",
	})
	if err != nil || !exit.Success() || !strings.HasPrefix(out.String(), "1 0 name arg\nsocket:") {
		t.Errorf("%v, %v, %q", exit, err, out.String())
	}
}

func BenchmarkExecTrue(b *testing.B) {
	c, cmd := startInit(b)
	b.ReportAllocs()
	for b.Loop() {
		if exit, err := c.Exec(b.Context(), sandbox.Process{Args: []string{"true"}}); err != nil || !exit.Success() {
			b.Fatal(exit, err)
		}
	}
	b.ReportMetric(float64(rss(b, cmd, "VmRSS")), "init-KiB")
}
