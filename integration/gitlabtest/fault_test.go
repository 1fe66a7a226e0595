package gitlabtest

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func faulty(t *testing.T, s *Server, f ...Fault) {
	t.Helper()
	if err := s.Faults(Plan{Faults: f}); err != nil {
		t.Fatal(err)
	}
}

// TestLostResponse is a job that is assigned, and the runner never hears of it.
func TestLostResponse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		faulty(t, s, Fault{On: Request, Drop: After, Count: 1})
		_, r := a.request()
		if r.err == nil {
			t.Fatal("there is an answer")
		}
		_, r = a.request()
		want(t, r, http.StatusNoContent)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		a.succeed(a.take())
		if got := s.Jobs()[0]; got.Assignments != 2 || got.Acceptances != 1 {
			t.Errorf("%+v", got)
		}
		clean(t, s)
	})
}

func TestDroppedPatch(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	faulty(t, s, Fault{On: PatchTrace, Drop: Before, Count: 1}, Fault{On: PatchTrace, Drop: After, Skip: 1, Count: 1})
	if r := a.patch(j, 0, "one"); r.err == nil {
		t.Error("not dropped")
	}
	if got, _ := s.Job(j.ID); got.TraceSize != 0 {
		t.Error("handled before it was dropped")
	}
	want(t, a.patch(j, 0, "one"), http.StatusAccepted)
	if r := a.patch(j, 3, "two"); r.err == nil {
		t.Error("not dropped")
	}
	want(t, a.patch(j, 3, "two!"), http.StatusRequestedRangeNotSatisfiable) // it has grown meanwhile
	want(t, a.patch(j, 6, "!"), http.StatusAccepted)
	faulty(t, s, Fault{On: UpdateJob, State: "success", Drop: After, Count: 1})
	if r := a.final(j, spec.Update{State: spec.Success}, "onetwo!"); r.err == nil {
		t.Error("not dropped")
	}
	want(t, a.final(j, spec.Update{State: spec.Success}, "onetwo!"), http.StatusForbidden)
	clean(t, s)
}

func TestStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		faulty(t, s, Fault{Status: 502, For: Duration(15 * time.Minute), After: Duration(time.Minute)})
		status := func() int {
			_, r := a.request()
			return r.StatusCode
		}
		if got := status(); got != 204 {
			t.Errorf("before: %d", got)
		}
		time.Sleep(time.Minute)
		if got := status(); got != 502 {
			t.Errorf("in it: %d", got)
		}
		time.Sleep(15 * time.Minute)
		if got := status(); got != 204 {
			t.Errorf("after: %d", got)
		}
		faulty(t, s, Fault{On: Request, Status: 429, RetryAfter: Duration(10 * time.Second), Count: 1})
		_, r := a.request()
		if r.StatusCode != 429 || r.Header.Get("Retry-After") != "10" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		_, _ = a.request()
		breach(t, s, "before the time that was told")
		time.Sleep(10 * time.Second)
		faulty(t, s, Fault{On: Request, Status: 429, ResetTime: Duration(10 * time.Second), Count: 1})
		_, r = a.request()
		if reset, err := http.ParseTime(r.Header.Get("RateLimit-ResetTime")); err != nil || time.Until(reset) > 10*time.Second {
			t.Errorf("%v %v", r.Header, err)
		}
		time.Sleep(10 * time.Second)
		_, _ = a.request()
		clean(t, s)
	})
}

func TestOtherFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{JobInfo: spec.JobInfo{Name: "build"}})
		j := a.take()
		faulty(t, s, Fault{On: PatchTrace, Range: "0-7", Count: 1, Job: "b*"}, Fault{Job: "other", Status: 500})
		if r := a.patch(j, 0, "one"); r.StatusCode != 202 || r.Header.Get("Range") != "0-7" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		faulty(t, s, Fault{On: PatchTrace, Status: 416, Range: "0-3", Count: 1})
		if r := a.patch(j, 3, "two"); r.StatusCode != 416 || r.Header.Get("Range") != "0-3" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		faulty(t, s, Fault{On: PatchTrace, Lose: true, Count: 1})
		if r := a.patch(j, 3, "two"); r.StatusCode != 416 || r.Header.Get("Range") != "0-0" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		faulty(t, s, Fault{On: PatchTrace, Slow: Duration(time.Second), Delay: Duration(time.Minute)})
		began := time.Now()
		go func() {
			for range 70 {
				time.Sleep(time.Second)
				_ = s.Jobs() // a slow answer keeps nobody else waiting
			}
		}()
		want(t, a.patch(j, 0, strings.Repeat("x", 4096)), http.StatusAccepted)
		if took := time.Since(began); took < time.Minute+4*time.Second {
			t.Errorf("in %v", took)
		}
		faulty(t, s, Fault{On: UpdateJob, Status: 412, Count: 1, Header: map[string]string{"Job-Status": "running"}})
		if r := a.final(j, spec.Update{State: spec.Success}, strings.Repeat("x", 4096)); r.StatusCode != 412 || r.Header.Get("Job-Status") != "running" {
			t.Errorf("%d %v", r.StatusCode, r.Header)
		}
		clean(t, s)
		other := s.Offer(spec.Job{})
		faulty(t, s, Fault{On: PatchTrace, LogLimit: true, Count: 1})
		limited := a.take()
		want(t, a.patch(limited, 0, "x"), http.StatusForbidden)
		if got, _ := s.Job(other.ID); got.FailureReason != traceTooLarge {
			t.Errorf("%+v", got)
		}
		faulty(t, s, Fault{On: PatchTrace, Revoke: true, Count: 1})
		want(t, a.patch(j, 4096, "x"), http.StatusForbidden)
		faulty(t, s, Fault{On: Request, Revoke: true, Count: 1})
		_, r := a.request()
		want(t, r, http.StatusForbidden)
		faulty(t, s, Fault{On: Verify, Status: 200, Body: "200"})
		r = a.json("POST", "runners/verify", runnerToken, a.token, map[string]string{"token": a.token})
		if string(r.body) != "200" || r.Header.Get("Content-Type") != "text/plain" {
			t.Errorf("%s %v", r.body, r.Header)
		}
	})
}

func TestProbability(t *testing.T) {
	s := newServer(t, Options{Faults: Plan{Seed: 1, Faults: []Fault{{Probability: 0.5, Status: 500}}}})
	a := newAgent(t, s)
	n := 0
	for range 100 {
		if _, r := a.request(); r.StatusCode == 500 {
			n++
		}
	}
	if n < 30 || n > 70 {
		t.Errorf("%d of 100 failed", n)
	}
}

func TestReadPlan(t *testing.T) {
	file := filepath.Join(t.TempDir(), "faults.json")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"seed": 7, "faults": [{"on": "trace", "status": 503, "for": "15m"}, {"on": "request", "drop": "after", "count": 1}]}`)
	p, err := ReadPlan(file)
	if err != nil || len(p.Faults) != 2 || p.Faults[0].For != Duration(15*time.Minute) {
		t.Errorf("%+v %v", p, err)
	}
	for _, text := range []string{
		`{"faults": [{"on": "traces"}]}`, `{"faults": [{"drop": "never"}]}`, `{"faults": [{"job": "["}]}`,
		`{"faults": [{"status": 99}]}`, `{"fault": []}`, `{"faults": [{"for": 15}]}`,
	} {
		write(text)
		if _, err := ReadPlan(file); err == nil {
			t.Errorf("%s is taken", text)
		}
	}
}
