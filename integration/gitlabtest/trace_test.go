package gitlabtest

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func TestPatches(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	want(t, a.patch(j, 0, "0123456789"), http.StatusAccepted)
	want(t, a.patch(j, 0, "0123456789"), http.StatusAccepted) // the same again, as after a lost answer
	clean(t, s)

	r := a.patch(j, 20, "x")
	want(t, r, http.StatusRequestedRangeNotSatisfiable)
	if got := r.Header.Get("Range"); got != "0-10" {
		t.Errorf("Range %q", got)
	}
	breach(t, s, "a patch from 20, though the runner was told that the server has 10")
	want(t, a.patch(j, 10, "abc"), http.StatusAccepted)
	clean(t, s)
	r = a.patch(j, 5, "xyz")
	want(t, r, http.StatusRequestedRangeNotSatisfiable)
	clean(t, s) // it may not have heard
	want(t, a.patch(j, 5, "xyz"), http.StatusRequestedRangeNotSatisfiable)
	breach(t, s, "a patch from 5") // but now it has

	for text, c := range map[string]change{
		"the end is inclusive": func(r *http.Request) {
			start, _, _ := strings.Cut(r.Header.Get("Content-Range"), "-")
			r.Header.Set("Content-Range", start+"-99")
		},
		"not the first and last":  header("Content-Range", "bytes 13-13/14"),
		"there is no Content-Ran": header("Content-Range", ""),
		"not text/plain":          header("Content-Type", "application/json"),
		"neither true nor false":  func(r *http.Request) { r.URL.RawQuery = "" },
		"JOB-TOKEN":               header(runnerToken, "x"),
	} {
		trace, _ := s.Trace(j.ID)
		r := a.patch(j, len(trace), "y", c)
		if text == "JOB-TOKEN" {
			text = "RUNNER-TOKEN has no business"
		}
		breach(t, s, text)
		if bad := strings.Contains(text, "not the first") || strings.Contains(text, "there is no"); bad {
			want(t, r, http.StatusBadRequest)
		} else {
			want(t, r, http.StatusAccepted)
		}
	}
	trace, _ := s.Trace(j.ID)
	_ = a.patch(j, len(trace), "")
	breach(t, s, "an empty patch")
}

// TestInterval has a runner that keeps to the interval, and one that does not.
func TestInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		j := a.take()
		size := 0
		send := func(n int) {
			t.Helper()
			want(t, a.patch(j, size, strings.Repeat("x", n)), http.StatusAccepted)
			size += n
		}
		for range 5 {
			send(10)
			time.Sleep(3 * time.Second)
		}
		for range 5 {
			send(100 << 10) // there is much to send
		}
		send(10)
		send(10)
		clean(t, s)
		send(10)
		breach(t, s, "before half the interval")
	})
}

// TestSecondPatch is a patch while another is on its way, and a final state at such a time.
func TestSecondPatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		j := a.take()
		body, pipe := io.Pipe()
		done := make(chan answer)
		go func() {
			h := http.Header{"Content-Type": {"text/plain"}, "Content-Range": {"0-3"}, jobToken: {j.Token}}
			done <- a.do("PATCH", "jobs/1/trace?debug_trace=false", h, body)
		}()
		_, _ = io.WriteString(pipe, "ab")
		synctest.Wait()
		want(t, a.patch(j, 0, "abcd"), http.StatusConflict)
		breach(t, s, "a second patch")
		r := a.final(j, spec.Update{State: spec.Success}, "abcd")
		want(t, r, http.StatusAccepted)
		if got := r.Header.Get(traceInterval); got != "3" {
			t.Errorf("interval %q", got)
		}
		breach(t, s, "on its way")
		_, _ = io.WriteString(pipe, "cd")
		_ = pipe.Close()
		want(t, <-done, http.StatusAccepted)
		want(t, a.final(j, spec.Update{State: spec.Success}, "abcd"), http.StatusOK)
		breach(t, s, "before the time that was told")
	})
}

func TestFinalPolls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{FinalPolls: 2})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		j := a.take()
		for range 2 {
			r := a.final(j, spec.Update{State: spec.Success}, "")
			want(t, r, http.StatusAccepted)
			time.Sleep(3 * time.Second)
		}
		want(t, a.final(j, spec.Update{State: spec.Success}, ""), http.StatusOK)
		clean(t, s)
	})
}

func TestLostTrace(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	want(t, a.patch(j, 0, "all of it"), http.StatusAccepted)
	if err := s.LoseTrace(j.ID); err != nil {
		t.Fatal(err)
	}
	want(t, a.final(j, spec.Update{State: spec.Success}, "all of it"), http.StatusPreconditionFailed)
	want(t, a.patch(j, 0, "all of it"), http.StatusAccepted)
	want(t, a.final(j, spec.Update{State: spec.Success}, "all of it"), http.StatusOK)
	clean(t, s)

	s.Offer(spec.Job{})
	j = a.take()
	want(t, a.patch(j, 0, "part"), http.StatusAccepted)
	want(t, a.final(j, spec.Update{State: spec.Success}, "part of it"), http.StatusPreconditionFailed)
	breach(t, s, "the runner says that the trace is 10 bytes")
	if got, _ := s.Job(j.ID); got.Status != Running || got.TraceSize != 0 {
		t.Errorf("%+v", got)
	}
}

func TestTraceLimit(t *testing.T) {
	s := newServer(t, Options{TraceLimit: 10})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	want(t, a.patch(j, 0, "0123456789"), http.StatusAccepted)
	r := a.patch(j, 10, "0")
	want(t, r, http.StatusForbidden)
	if got, _ := s.Job(j.ID); got.Status != Failed || got.FailureReason != "trace_size_exceeded" {
		t.Errorf("%+v", got)
	}
	clean(t, s)
	want(t, a.patch(j, 10, "0"), http.StatusForbidden)
	breach(t, s, "told that the job has ended")
}

// TestSecrets has each secret whole, and cut at each place.
func TestSecrets(t *testing.T) {
	for what, of := range map[string]func(*agent, spec.Job) string{
		"masked variable PASSWORD": func(*agent, spec.Job) string { return "correct-horse" },
		"the job's token":          func(_ *agent, j spec.Job) string { return j.Token },
		"the runner's token":       func(a *agent, _ spec.Job) string { return a.token },
		"begins with glpat-":       func(*agent, spec.Job) string { return "glpat-x" },
		"begins with corp_":        func(*agent, spec.Job) string { return "corp_1" },
	} {
		for _, at := range []int{0, 1, 3, 5, -1} {
			s := newServer(t, Options{MaskPrefixes: []string{"corp_"}})
			a := newAgent(t, s)
			s.Offer(spec.Job{Variables: []spec.Variable{{Key: "PASSWORD", Value: "correct-horse", Masked: true}}})
			j := a.take()
			value := of(a, j)
			if at < 0 {
				at = len(value) - 1
			}
			text := "before " + value + " after"
			cut := len("before ") + at
			want(t, a.patch(j, 0, text[:cut]), http.StatusAccepted)
			clean(t, s)
			want(t, a.patch(j, cut, text[cut:]), http.StatusAccepted)
			breach(t, s, what)
		}
	}
	s := newServer(t, Options{MaskPrefixes: []string{"corp_"}})
	a := newAgent(t, s)
	s.Offer(spec.Job{Variables: []spec.Variable{
		{Key: "PASSWORD", Value: "correct-horse", Masked: true}, {Key: "SHORT", Value: "a", Masked: true},
	}})
	j := a.take()
	want(t, a.patch(j, 0, "a correct-hors [MASKED] glpat-[MASKED] corp_[MASKED]"), http.StatusAccepted)
	clean(t, s)
}
