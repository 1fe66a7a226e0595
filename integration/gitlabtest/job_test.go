package gitlabtest

import (
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func TestTwoPhases(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		j, _ := a.request()
		if got, _ := s.Job(j.ID); got.Status != Pending || got.Assignments != 1 || got.Acceptances != 0 {
			t.Errorf("assigned: %+v", got)
		}
		_, r := a.request()
		want(t, r, http.StatusNoContent) // it is not there twice
		for range 5 {
			time.Sleep(100 * time.Second)
			want(t, a.update(j, spec.Update{State: spec.Pending}), http.StatusOK)
		}
		time.Sleep(121 * time.Second) // no sign of life: back into the queue
		want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusConflict)
		again, r := a.request()
		want(t, r, http.StatusCreated)
		if again.ID != j.ID || again.Token == j.Token {
			t.Errorf("%d %s, then %d %s", j.ID, j.Token, again.ID, again.Token)
		}
		want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusConflict) // by the token of the first time
		want(t, a.update(again, spec.Update{State: spec.Running}), http.StatusOK)
		want(t, a.update(again, spec.Update{State: spec.Running}), http.StatusOK) // a touch
		clean(t, s)
		want(t, a.update(again, spec.Update{State: spec.Pending}), http.StatusBadRequest)
		breach(t, s, `state "pending" of a job that is running`)
		a.succeed(again)
		if got, _ := s.Job(j.ID); got.Assignments != 2 || got.Acceptances != 1 {
			t.Errorf("ended: %+v", got)
		}
		clean(t, s)

		s.Offer(spec.Job{})
		j, _ = a.request()
		want(t, a.final(j, spec.Update{State: spec.Success}, ""), http.StatusBadRequest)
		breach(t, s, `state "success" of a job that is pending`)
		want(t, a.patch(j, 0, "early"), http.StatusAccepted)
		breach(t, s, "before the job is accepted")
	})
}

func TestOnePhase(t *testing.T) {
	s := newServer(t, Options{OnePhase: true})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j, _ := a.request()
	if got, _ := s.Job(j.ID); got.Status != Running {
		t.Errorf("assigned: %s", got.Status)
	}
	want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusOK)
	a.succeed(j)
	clean(t, s)
}

func TestFinalState(t *testing.T) {
	s := newServer(t, Options{FailureReasons: []string{"image_pull_failure"}})
	a := newAgent(t, s)
	next := func() spec.Job {
		s.Offer(spec.Job{})
		return a.take()
	}
	j := next()
	a.fail(j, 3)
	if got, _ := s.Job(j.ID); got.Status != Failed || got.ExitCode != 3 || got.FailureReason != spec.ScriptFailure {
		t.Errorf("%+v", got)
	}
	j = next()
	want(t, a.final(j, spec.Update{State: spec.Failed, FailureReason: spec.ImagePullFailure}, ""), http.StatusOK)
	clean(t, s)

	for text, u := range map[string]spec.Update{
		"without a failure_reason":   {State: spec.Failed},
		"not among the three":        {State: spec.Failed, FailureReason: spec.ConfigurationError},
		"with state success":         {State: spec.Success, FailureReason: spec.ScriptFailure},
		"exit_code 1 with state suc": {State: spec.Success, ExitCode: 1},
	} {
		want(t, a.final(next(), u, ""), http.StatusOK)
		breach(t, s, text)
	}
	want(t, a.update(next(), spec.Update{State: "done"}), http.StatusBadRequest)
	breach(t, s, `state "done"`)
	want(t, a.update(next(), spec.Update{State: spec.Success, Checksum: "abc", Output: spec.Output{Checksum: "abc"}}), http.StatusPreconditionFailed)
	breach(t, s, "eight hexadecimal digits")
	want(t, a.update(next(), spec.Update{State: spec.Success, Output: spec.Output{Checksum: checksum(0)}}), http.StatusOK)
	breach(t, s, "output.checksum")
	j = next()
	want(t, a.patch(j, 0, "x"), http.StatusAccepted)
	want(t, a.update(j, spec.Update{State: spec.Success}), http.StatusOK)
	breach(t, s, "without the checksum")
}

// TestAfterTheEnd has what comes too late.
func TestAfterTheEnd(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	a.succeed(j)
	r := a.patch(j, 0, "late")
	want(t, r, http.StatusForbidden)
	if r.Header.Get("Job-Status") != "success" || !strings.Contains(string(r.body), "Job is not processing on runner") {
		t.Errorf("%v %s", r.Header, r.body)
	}
	breach(t, s, "told that the job has ended")
	s.Restarted() // a runner that was killed may not know
	want(t, a.final(j, spec.Update{State: spec.Success}, ""), http.StatusForbidden)
	clean(t, s)
	wrong := j
	wrong.Token = "other"
	want(t, a.patch(wrong, 0, "late"), http.StatusForbidden)
	breach(t, s, "not the job's token")
}

func TestCancel(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	next := func() spec.Job {
		s.Offer(spec.Job{})
		return a.take()
	}
	cancel := func(id int64) {
		t.Helper()
		if err := s.Cancel(id); err != nil {
			t.Error(err)
		}
	}
	ended := func(id int64) {
		t.Helper()
		if got, _ := s.Job(id); got.Status != Canceled {
			t.Errorf("job %d is %s", id, got.Status)
		}
	}
	// A runner that can runs after_script first.
	j := next()
	cancel(j.ID)
	r := a.patch(j, 0, "after_script\n")
	want(t, r, http.StatusAccepted)
	if got := r.Header.Get("Job-Status"); got != "canceling" {
		t.Errorf("Job-Status %q", got)
	}
	want(t, a.final(j, spec.Update{State: spec.Failed, FailureReason: spec.JobCanceled}, "after_script\n"), http.StatusOK)
	ended(j.ID)
	if err := s.Cancel(j.ID); err == nil {
		t.Error("an ended job can be cancelled")
	}
	// One that cannot is cut off.
	a.features.CancelGracefully = false
	j = next()
	cancel(j.ID)
	r = a.patch(j, 0, "x")
	want(t, r, http.StatusForbidden)
	if got := r.Header.Get("Job-Status"); got != "canceled" {
		t.Errorf("Job-Status %q", got)
	}
	ended(j.ID)
	a.features.CancelGracefully = true
	// Before it is accepted.
	s.Offer(spec.Job{})
	j, _ = a.request()
	cancel(j.ID)
	want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusForbidden)
	ended(j.ID)
	// In the moment of it.
	offered := s.Offer(spec.Job{})
	if err := s.CancelOnAccept(offered.ID); err != nil {
		t.Error(err)
	}
	j, _ = a.request()
	r = a.update(j, spec.Update{State: spec.Running})
	want(t, r, http.StatusOK)
	if got := r.Header.Get("Job-Status"); got != "canceling" {
		t.Errorf("Job-Status %q", got)
	}
	want(t, a.final(j, spec.Update{State: spec.Failed, FailureReason: spec.JobCanceled}, ""), http.StatusOK)
	ended(j.ID)
	// In the queue.
	offered = s.Offer(spec.Job{})
	cancel(offered.ID)
	ended(offered.ID)
	_, r = a.request()
	want(t, r, http.StatusNoContent)
	clean(t, s)
}

func TestStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		a := newAgent(t, s)
		s.Offer(spec.Job{})
		j := a.take()
		for range 4 {
			time.Sleep(50 * time.Minute)
			want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusOK)
		}
		time.Sleep(61 * time.Minute)
		if got, _ := s.Job(j.ID); got.Status != Failed || got.FailureReason != "stuck_or_timeout_failure" {
			t.Errorf("%+v", got)
		}
		r := a.update(j, spec.Update{State: spec.Running})
		want(t, r, http.StatusForbidden)
		if got := r.Header.Get("Job-Status"); got != "failed" {
			t.Errorf("Job-Status %q", got)
		}
		clean(t, s)
	})
}
