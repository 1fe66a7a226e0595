package initd

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/runnerd/runnerd/sandbox"
	"github.com/runnerd/runnerd/sandbox/initd/wire"
)

func TestReconnect(t *testing.T) {
	first, cmd := startInit(t)
	ended := make(chan error, 1)
	started := make(chan bool)
	go func() {
		_, err := first.Exec(context.Background(), sandbox.Process{
			Args: []string{"sh", "-c", "echo; sleep 0.2"}, Stdout: &onWrite{do: func() { close(started) }},
		})
		ended <- err
	}()
	<-started
	if err := errors.Join(first.Close(), first.Close()); err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, ErrClosed) {
		t.Errorf("the first's exec: %v", err)
	}
	if err := first.Ping(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("the first's ping: %v", err)
	}
	second := connect(t, cmd)
	for range 10 { // the end of the first's process comes among these
		if stdout, _, _ := sh(t, second, "sleep 0.05; echo two"); stdout != "two\n" {
			t.Errorf("got %q", stdout)
		}
	}
}

func TestGone(t *testing.T) {
	for name, end := range map[string]func(*exec.Cmd) error{
		"killed":     func(cmd *exec.Cmd) error { return cmd.Process.Kill() },
		"terminated": func(cmd *exec.Cmd) error { return cmd.Process.Signal(syscall.SIGTERM) },
	} {
		t.Run(name, func(t *testing.T) {
			c, cmd := startInit(t)
			var began time.Time
			_, err := c.Exec(t.Context(), sandbox.Process{
				Args:   []string{"sh", "-c", "echo; sleep 9500"},
				Stdout: &onWrite{do: func() { began = time.Now(); _ = end(cmd) }},
			})
			if took := time.Since(began); !errors.Is(err, ErrGone) || took > time.Second {
				t.Errorf("%v after %s", err, took)
			}
			_ = cmd.Wait()
			if name == "terminated" && cmd.ProcessState.ExitCode() != 0 {
				t.Errorf("init ended with %v", cmd.ProcessState)
			}
			for _, err := range []error{c.Ping(t.Context()), second(c.Dial(t.Context(), "unix", "/x")), second(Connect(t.Context(), cmd.Process.Pid))} {
				if !errors.Is(err, ErrGone) {
					t.Errorf("later: %v", err)
				}
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

// The init survives what it is sent, and what the sandbox's processes do to it.
func TestMalformedPackets(t *testing.T) {
	c, cmd := startInit(t)
	sh(t, c, "true")
	before := fds(t, cmd.Process.Pid)
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	source := rand.New(rand.NewPCG(1, 2))
	for i := range 2000 {
		packet := make([]byte, 1+source.IntN(64))
		for j := range packet {
			packet[j] = byte(source.Uint32())
		}
		if i%2 == 0 {
			packet = wire.Request{
				Session: c.session, ID: 1 << 60, Op: wire.Op(2 + source.IntN(8)), Process: uint64(i), Number: uint64(source.Uint32N(64)),
				Network: []string{"unix", "tcp4", "x"}[i%3], Address: string(packet),
			}.Encode()
		}
		if err := c.send(packet, []int{int(null.Fd()), int(null.Fd())}[:i%3%2*2]); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.send(make([]byte, wire.MaxPacket), nil); err != nil {
		t.Fatal(err)
	}
	sh(t, c, "for s in HUP INT QUIT USR1 USR2 SEGV ABRT PIPE ALRM CHLD TSTP; do kill -$s 1; done")
	if stdout, _, _ := sh(t, c, "sleep 0.2; rm -f /etc/none; echo alive"); stdout != "alive\n" {
		t.Errorf("got %q", stdout)
	}
	if after := fds(t, cmd.Process.Pid); after != before {
		t.Errorf("the init had %d files open, now %d", before, after)
	}
}

// A sandbox's root may speak in the init's place. Nothing of what it sends stays open here.
func TestHostileReplies(t *testing.T) {
	c, cmd := startInit(t)
	sh(t, c, "true")
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	var theirs [2]int
	for i, fd := range []int{wire.InitFD, wire.HostFD} {
		if theirs[i], err = unix.PidfdGetfd(pidfd, fd, 0); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(theirs[i])
	}
	_ = unix.SetNonblock(theirs[1], false) // it is the file that the client uses
	_ = unix.SetsockoptInt(theirs[1], unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
	_ = unix.SetsockoptInt(theirs[1], unix.SOL_SOCKET, 76, 1) // SO_PASSPIDFD
	before := fds(t, os.Getpid())
	for i := range 500 {
		packet := wire.Reply{Session: c.session, ID: uint64(i % 50), Kind: wire.Kind(i % 4)}.Encode()
		if i%5 == 0 {
			packet = packet[:i%len(packet)+1]
		}
		files := make([]int, i%200)
		for j := range files {
			files[j] = theirs[0]
		}
		if err := wire.Send(theirs[0], packet, files, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := wire.Send(theirs[0], bytes.Repeat([]byte{1}, wire.MaxPacket), nil, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if after := fds(t, os.Getpid()); after > before {
		t.Errorf("%d files open, then %d", before, after)
	}
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("Close hangs")
	}
}

func BenchmarkPing(b *testing.B) {
	c, _ := startInit(b)
	for b.Loop() {
		if err := c.Ping(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
