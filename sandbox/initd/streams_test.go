package initd

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

// zeroes counts down; its bytes are whatever the buffer has.
type zeroes struct{ left int64 }

func (z *zeroes) Read(p []byte) (int, error) {
	if z.left == 0 {
		return 0, io.EOF
	}
	n := min(int64(len(p)), z.left)
	z.left -= n
	return int(n), nil
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func TestStream1GiB(t *testing.T) {
	const size = 1 << 30
	c, _ := startInit(t)
	var got counter
	began := time.Now()
	exit, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"cat"}, Stdin: &zeroes{size}, Stdout: &got})
	if err != nil || !exit.Success() || got.n != size {
		t.Errorf("%d bytes, %v, %v", got.n, exit, err)
	}
	t.Logf("%.0f MiB/s in and out", size/(1<<20)/time.Since(began).Seconds())
}

func TestFilesArePassed(t *testing.T) {
	c, _ := startInit(t)
	file, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		_, _ = io.WriteString(w, "through a pipe\n")
		w.Close()
	}()
	exit, err := c.Exec(t.Context(), sandbox.Process{
		Args: []string{"sh", "-c", "cat; echo err >&2; readlink /proc/self/fd/1 >&2"}, Stdin: r, Stdout: file, Stderr: file,
	})
	text, _ := os.ReadFile(file.Name())
	if err != nil || !exit.Success() || !strings.HasPrefix(string(text), "through a pipe\nerr\n/") {
		t.Errorf("%q, %v, %v", text, exit, err)
	}
}

func TestInputIsNotAwaited(t *testing.T) {
	c, _ := startInit(t)
	r, w := io.Pipe() // never written to
	defer w.Close()
	began := time.Now()
	exit, err := c.Exec(t.Context(), sandbox.Process{Args: []string{"true"}, Stdin: r})
	if err != nil || !exit.Success() || time.Since(began) > time.Second {
		t.Errorf("%v, %v after %s", exit, err, time.Since(began))
	}
}

func TestEscapedOutput(t *testing.T) {
	c, _ := startInit(t)
	began := time.Now()
	stdout, _, _ := sh(t, c, `setsid sleep 9491 & sleep 0.1; echo started`)
	if took := time.Since(began); stdout != "started\n" || took < drainTimeout || took > drainTimeout+time.Second {
		t.Errorf("%q after %s", stdout, took)
	}
}
