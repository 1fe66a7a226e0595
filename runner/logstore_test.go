package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func newStore(t testing.TB, size int64) *LogStore {
	t.Helper()
	s, err := NewLogStore(filepath.Join(t.TempDir(), "logs"), size)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openLog(t testing.TB, s *LogStore, id string) *Log {
	t.Helper()
	l, err := s.Open(id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// readLog returns what a reader sees, with each frame's stream.
func readLog(t testing.TB, s *LogStore, id string) (text string, frames []Frame) {
	t.Helper()
	var b strings.Builder
	err := s.Read(t.Context(), id, false, func(f Frame) error {
		f.Data = bytes.Clone(f.Data)
		frames = append(frames, f)
		b.Write(f.Data)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), frames
}

func TestLogKeepsStreamsAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, 0)
		l := openLog(t, s, "job-1")
		start := time.Now()
		_, _ = io.WriteString(l.Stream(Stdout), "out\n")
		time.Sleep(time.Second) // virtual
		_, _ = io.WriteString(l.Stream(Stderr), "err\n")
		for _, live := range []bool{true, false} {
			_, frames := readLog(t, s, "job-1")
			if len(frames) != 2 || frames[0].Stream != Stdout || frames[1].Stream != Stderr ||
				string(frames[1].Data) != "err\n" || !frames[0].Time.Equal(start) || !frames[1].Time.Equal(start.Add(time.Second)) {
				t.Errorf("live %v: %+v", live, frames)
			}
			_ = l.Close()
		}
	})
}

func TestLogOverItsLimitKeepsHeadAndTail(t *testing.T) {
	const size = 256 << 10
	for _, total := range []int{size / 4, size / 2, size, 3 * size, 40 * size} {
		s := newStore(t, size)
		l := openLog(t, s, "big")
		var want bytes.Buffer
		for i := 0; want.Len() < total; i++ {
			line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%300))
			want.WriteString(line)
			if _, err := io.WriteString(l.Stream(Stdout), line); err != nil {
				t.Fatal(err)
			}
		}
		live, _ := readLog(t, s, "big")
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		again, err := NewLogStore(s.dir, size) // after a restart
		if err != nil {
			t.Fatal(err)
		}
		stored, frames := readLog(t, again, "big")
		if live != stored {
			t.Errorf("%d bytes: live and stored differ", total)
		}
		var leftOut int64
		var head, tail strings.Builder
		for _, f := range frames {
			switch {
			case f.LeftOut > 0:
				leftOut += f.LeftOut
				if !strings.Contains(string(f.Data), fmt.Sprint(f.LeftOut, " bytes left out")) {
					t.Errorf("the notice is %q", f.Data)
				}
			case leftOut == 0:
				head.Write(f.Data)
			default:
				tail.Write(f.Data)
			}
		}
		if !strings.HasPrefix(want.String(), head.String()) || !strings.HasSuffix(want.String(), tail.String()) {
			t.Errorf("%d bytes: what is kept is not the beginning and the end", total)
		}
		if got := int64(head.Len()+tail.Len()) + leftOut; got != int64(want.Len()) {
			t.Errorf("%d bytes written, %d kept and left out", want.Len(), got)
		}
		if total < size/2 && leftOut != 0 || total > size && (head.Len() < size/3 || tail.Len() < size/4) {
			t.Errorf("of %d bytes the first %d and the last %d were kept", total, head.Len(), tail.Len())
		}
		if info, _ := os.Stat(filepath.Join(s.dir, "big.log")); info.Size() > size+headerSize {
			t.Errorf("the file has %d bytes, the limit is %d", info.Size(), size)
		}
	}
}

func TestLogProgressIsNeverCut(t *testing.T) {
	const size = 256 << 10
	s := newStore(t, size)
	l := openLog(t, s, "build")
	w := l.Stream(Progress)
	written := map[string]bool{}
	for i := range 500 {
		n := (i * 37) % (size/2/tailSlots + 100) // some are too large
		p := fmt.Sprintf("{%d%s}", i, strings.Repeat(".", n))
		written[p] = true
		if n, err := io.WriteString(w, p); n != len(p) || err != nil {
			t.Fatal(n, err)
		}
		_, _ = l.Stream(Stdout).Write(make([]byte, 100))
	}
	_, frames := readLog(t, s, "build")
	n := 0
	for _, f := range frames {
		if f.Stream == Progress {
			n++
			if !written[string(f.Data)] {
				t.Fatalf("a frame of %d bytes was cut", len(f.Data))
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d frames of progress", n)
	}
}

func TestLogFollowers(t *testing.T) {
	s := newStore(t, 0)
	l := openLog(t, s, "live")
	const readers, lines = 20, 2000
	got := make([]strings.Builder, readers)
	var wg sync.WaitGroup
	for i := range readers {
		wg.Go(func() {
			err := s.Read(t.Context(), "live", true, func(f Frame) error { got[i].Write(f.Data); return nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	var want strings.Builder
	for i := range lines {
		line := fmt.Sprintln("line", i)
		want.WriteString(line)
		_, _ = io.WriteString(l.Stream(Stdout), line)
	}
	_ = l.Close()
	wg.Wait()
	for i := range got {
		if got[i].String() != want.String() {
			t.Errorf("reader %d got %d bytes, want %d", i, got[i].Len(), want.Len())
		}
	}
}

func TestLogFollowerThatIsTooSlow(t *testing.T) {
	const size = MinLogSize
	s := newStore(t, size)
	l := openLog(t, s, "fast")
	w := l.Stream(Stdout)
	_, _ = io.WriteString(w, "first\n")
	var kept, leftOut int64
	var last string
	total := int64(6)
	once := false
	err := s.Read(t.Context(), "fast", true, func(f Frame) error {
		if f.LeftOut > 0 {
			leftOut += f.LeftOut
		} else {
			kept += int64(len(f.Data))
			last = string(f.Data)
		}
		if !once { // while the reader is here, the writer goes around the ring
			once = true
			for i := range 5000 {
				n, _ := fmt.Fprintf(w, "line %d of many that nobody could read in time\n", i)
				total += int64(n)
			}
		}
		if strings.HasPrefix(last, "line 4999") {
			_ = l.Close()
		}
		return nil
	})
	if err != nil || kept+leftOut != total || leftOut == 0 || !strings.HasPrefix(last, "line 4999") {
		t.Errorf("%v: kept %d, left out %d of %d, last %q", err, kept, leftOut, total, last)
	}
}

func TestLogFollowEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStore(t, 0)
		openLog(t, s, "quiet")
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("the reader is gone")
		time.AfterFunc(time.Hour, func() { cancel(gone) })
		if err := s.Read(ctx, "quiet", true, func(Frame) error { return nil }); !errors.Is(err, gone) {
			t.Errorf("%v, want %v", err, gone)
		}
	})
}

// TestLogAfterACrash cuts a log's file at every length and damages every byte: reading it must give a
// beginning of what was written.
func TestLogAfterACrash(t *testing.T) {
	s := newStore(t, MinLogSize)
	l := openLog(t, s, "crashed")
	for i := range 10 {
		_, _ = fmt.Fprintf(l.Stream(Stdout), "line %d\n", i)
	}
	_ = l.Close()
	path := filepath.Join(s.dir, "crashed.log")
	want, _ := readLog(t, s, "crashed")
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := headerSize; n < len(whole); n++ {
		for _, torn := range [][]byte{whole[:n], append(append(bytes.Clone(whole[:n]), whole[n]^0x55), whole[n+1:]...)} {
			if err := os.WriteFile(path, torn, 0o600); err != nil {
				t.Fatal(err)
			}
			got, _ := readLog(t, s, "crashed")
			if !strings.HasPrefix(want, got) {
				t.Fatalf("cut at %d: %q", n, got)
			}
		}
	}
}

func TestLogRefuses(t *testing.T) {
	s := newStore(t, 0)
	for _, id := range []string{"", "../x", "a/b", ".", "A", "a\x00", strings.Repeat("a", 41)} {
		if _, err := s.Open(id); err == nil {
			t.Errorf("Open(%q) succeeds", id)
		}
		if err := s.Remove(id); err == nil {
			t.Errorf("Remove(%q) succeeds", id)
		}
		if err := s.Read(t.Context(), id, false, func(Frame) error { return nil }); err == nil {
			t.Errorf("Read(%q) succeeds", id)
		}
	}
	l := openLog(t, s, "one")
	if _, err := s.Open("one"); err == nil {
		t.Error("a log is opened twice at once")
	}
	if err := s.Remove("one"); err == nil {
		t.Error("a live log is removed")
	}
	_ = l.Close()
	if _, err := l.Stream(Stdout).Write([]byte("x")); err == nil {
		t.Error("a write after Close succeeds")
	}
	if err := s.Remove("one"); err != nil {
		t.Error(err)
	}
	if err := s.Read(t.Context(), "one", false, func(Frame) error { return nil }); !errors.Is(err, ErrNoLog) {
		t.Errorf("%v, want ErrNoLog", err)
	}
	if _, err := NewLogStore(t.TempDir(), 1000); err == nil {
		t.Error("a limit of 1000 bytes is taken")
	}
}

func TestLogSweep(t *testing.T) {
	s := newStore(t, 0)
	now := time.Now()
	for i := range 6 {
		l := openLog(t, s, fmt.Sprint("job-", i))
		_, _ = l.Stream(Stdout).Write(make([]byte, 30<<10))
		if i != 0 {
			_ = l.Close()
		}
		when := now.Add(time.Duration(i-10) * time.Hour)
		if err := os.Chtimes(filepath.Join(s.dir, fmt.Sprintf("job-%d.log", i)), when, when); err != nil {
			t.Fatal(err)
		}
	}
	removed, err := s.Sweep(t.Context(), 8*time.Hour+time.Minute, 0) // job-0 is live, job-1 is 9 h old
	if err != nil || fmt.Sprint(removed) != "[job-1]" {
		t.Errorf("by age: %v, %v", removed, err)
	}
	removed, err = s.Sweep(t.Context(), 0, 110<<10)
	if err != nil || fmt.Sprint(removed) != "[job-2 job-3]" {
		t.Errorf("by size: %v, %v", removed, err)
	}
}

func TestLogMemoryDoesNotGrow(t *testing.T) {
	s := newStore(t, 1<<20)
	l := openLog(t, s, "huge")
	chunk := bytes.Repeat([]byte("some output of a job\n"), 1500)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 2000 { // 60 MiB
		_, _ = l.Stream(Stdout).Write(chunk)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 256<<10 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

func BenchmarkLogWrite(b *testing.B) {
	for _, n := range []int{100, 32 << 10} {
		b.Run(fmt.Sprint("bytes=", n), func(b *testing.B) {
			l := openLog(b, newStore(b, 0), "bench")
			p := bytes.Repeat([]byte("x"), n)
			b.SetBytes(int64(n))
			b.ReportAllocs()
			for b.Loop() {
				_, _ = l.Stream(Stdout).Write(p)
			}
		})
	}
}
