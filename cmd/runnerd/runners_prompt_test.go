package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal returns both ends of a pseudo-terminal (ptmx(4)).
func openTerminal(t *testing.T) (user, program *os.File) {
	t.Helper()
	user, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = user.Close() })
	fd := int(user.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = program.Close() })
	return user, program
}

// until waits until something holds.
func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: in vain", what)
		}
	}
}

func TestRegisterAsksOnATerminal(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	user, program := openTerminal(t)
	var out, errs buffer
	a := &app{stdin: program, stdout: &out, stderr: &errs}
	code := make(chan int, 1)
	go func() {
		code <- a.execute(t.Context(), []string{"--config", emptyConfig(t), "--socket", s.Socket, "register", "gitlab", "--name", "one"})
	}()
	var seen buffer
	go func() {
		for b := make([]byte, 1024); ; {
			n, err := user.Read(b)
			_, _ = seen.Write(b[:n])
			if err != nil {
				return
			}
		}
	}()
	until(t, "asked for the URL", func() bool { return strings.Contains(errs.String(), "URL of the GitLab") })
	_, _ = fmt.Fprintln(user, f.URL)
	until(t, "asked for the token, unseen", func() bool {
		state, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
		return err == nil && state.Lflag&unix.ECHO == 0 && strings.Contains(errs.String(), "not shown")
	})
	_, _ = fmt.Fprintln(user, ownToken)
	select {
	case got := <-code:
		expect(t, "register", got, 0, out.String()+errs.String(), "one\n")
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for more")
	}
	if r, err := rs.Enrolment.Runners.Get("one"); err != nil || r.Token != ownToken {
		t.Errorf("%+v %v", r, err)
	}
	until(t, "see the URL", func() bool { return strings.Contains(seen.String(), f.URL) })
	if strings.Contains(seen.String(), ownToken) {
		t.Error("the token is shown")
	}
	code1 := a.execute(t.Context(), []string{"--config", emptyConfig(t), "--socket", s.Socket, "register", "gitlab", "--non-interactive"})
	expect(t, "non-interactive", code1, 2, out.String()+errs.String(), "the URL of the GitLab is missing")
}
