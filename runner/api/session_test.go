package api

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner"
)

func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := NewAttachments()
		began := time.Now()
		if _, err := a.Session(t.Context(), "j"); !errors.Is(err, ErrNoClient) || time.Since(began) != ClientPatience {
			t.Error(err, time.Since(began))
		}
		cancelled := ""
		a.expect("k", func(id, reason string) { cancelled = id + ": " + reason })
		time.Sleep(ClientPatience + time.Second)
		if synctest.Wait(); cancelled != "k: no client came to attach within 30s" {
			t.Errorf("%q", cancelled)
		}
		a.expect("l", func(id, _ string) { t.Error("cancelled although its client came:", id) })
		if err := a.attach("l", newSession()); err != nil {
			t.Error(err)
		}
		if err := a.attach("l", newSession()); !errors.Is(err, errAttached) {
			t.Error(err)
		}
		time.Sleep(time.Hour)
		if s, err := a.Session(t.Context(), "l"); s == nil || err != nil {
			t.Error(err)
		}
		a.forget("l")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(runner.ErrCancelled)
		if _, err := a.Session(ctx, "m"); !errors.Is(err, runner.ErrCancelled) {
			t.Error(err)
		}
		if len(a.jobs) != 0 {
			t.Error("jobs that are over are remembered:", a.jobs)
		}
	})
}

func TestWriteEndsWithTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSession() // nobody reads what it sends
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Minute, func() { cancel(runner.ErrTimeout) })
		n, err := s.Stream(ctx, runner.Stdout).Write(make([]byte, 10<<20))
		if !errors.Is(err, runner.ErrTimeout) || n != 16*maxOut {
			t.Error(n, err)
		}
		s.leave()
		if _, err := s.Stream(context.Background(), runner.Stdout).Write(make([]byte, 100)); !errors.Is(err, ErrNoClient) {
			t.Error(err)
		}
		if _, err := s.Stdin().Read(make([]byte, 1)); !errors.Is(err, ErrNoClient) {
			t.Error(err)
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add(Frame{Type: FrameStdin, Data: []byte("x")}.Append(nil))
	f.Add([]byte{0x10, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 'a'})
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewFrameReader(bytes.NewReader(in))
		var out []byte
		for {
			frame, err := r.Next()
			if err != nil {
				if errors.Is(err, io.EOF) && !bytes.Equal(in, out) {
					t.Errorf("%x became %x", in, out)
				}
				return
			}
			out = frame.Append(out)
		}
	})
}

// FuzzSession feeds a server what a client may send.
func FuzzSession(f *testing.F) {
	f.Add(Frame{Type: FrameResize, Data: []byte{0, 1, 0, 2}}.Append(Frame{Type: FrameStdin, Data: []byte("x")}.Append(nil)))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newSession()
		if err := s.read(bytes.NewReader(in)); err == nil {
			t.Error("it never ends")
		}
		if s.stdin.buf.Len() > Window {
			t.Error("more is held than the window")
		}
	})
}
