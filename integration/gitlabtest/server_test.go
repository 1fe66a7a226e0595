package gitlabtest

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

func TestRightRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{LongPoll: 50 * time.Second})
		a := newAgent(t, s)
		offered := s.Offer(spec.Job{Steps: []spec.Step{{Name: spec.StepScript, Script: []string{"true"}}}})
		j, r := a.request()
		want(t, r, http.StatusCreated)
		if j.ID != offered.ID || j.Token == "" || j.Steps[0].Timeout != 3600 || !j.Features.TraceSections {
			t.Errorf("job: %+v", j)
		}
		want(t, a.update(j, spec.Update{State: spec.Pending}), http.StatusOK)
		r = a.update(j, spec.Update{State: spec.Running})
		want(t, r, http.StatusOK)
		if got := r.Header.Get("Job-Status"); got != "running" {
			t.Errorf("Job-Status %q", got)
		}
		r = a.patch(j, 0, "one\n")
		want(t, r, http.StatusAccepted)
		if r.Header.Get("Range") != "0-4" || r.Header.Get(traceInterval) != "3" || r.Header.Get("Job-Status") != "running" {
			t.Errorf("headers: %v", r.Header)
		}
		want(t, a.patch(j, 4, "two\n"), http.StatusAccepted)
		want(t, a.final(j, spec.Update{State: spec.Success}, "one\ntwo\n"), http.StatusOK)
		got, err := s.Wait(t.Context(), j.ID)
		if err != nil || got.Status != Success || got.TraceSize != 8 || got.Assignments != 1 || got.Acceptances != 1 || got.SystemID != testSystem {
			t.Errorf("%+v %v", got, err)
		}
		if trace, _ := s.Trace(j.ID); string(trace) != "one\ntwo\n" {
			t.Errorf("trace %q", trace)
		}
		c := got.Clock
		for _, at := range []time.Time{c.Offered, c.Assigned, c.Accepted, c.FirstOutput, c.Finished} {
			if at.IsZero() {
				t.Errorf("clock: %+v", c)
			}
		}
		clean(t, s)
	})
}

func TestLongPoll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{LongPoll: 50 * time.Second})
		a := newAgent(t, s)
		_, r := a.request()
		want(t, r, http.StatusNoContent) // knows nothing: is answered at once
		first := a.lastUpdate
		if first == "" {
			t.Fatal("no " + lastUpdate)
		}
		began := time.Now()
		_, r = a.request()
		want(t, r, http.StatusNoContent)
		if took := time.Since(began); took != 50*time.Second || a.lastUpdate != first {
			t.Errorf("held for %v, %s then %s", took, first, a.lastUpdate)
		}
		go func() {
			time.Sleep(7 * time.Second)
			s.Offer(spec.Job{})
		}()
		began = time.Now()
		j, r := a.request()
		want(t, r, http.StatusCreated)
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("after %v", took)
		}
		want(t, a.update(j, spec.Update{State: spec.Running}), http.StatusOK)
		_, r = a.request() // an old value looks at once
		want(t, r, http.StatusNoContent)
		if a.lastUpdate == first {
			t.Error("the value did not change")
		}
		a.succeed(j)
		clean(t, s)
		a.lastUpdate = "nonsense"
		_, r = a.request()
		want(t, r, http.StatusNoContent)
		breach(t, s, "last_update")
	})
}

func TestRequestRefused(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	token := a.token
	a.token = "glrt-wrong"
	_, r := a.request()
	want(t, r, http.StatusForbidden)
	if !strings.Contains(string(r.body), `"message":"403 Forbidden"`) {
		t.Errorf("body %s", r.body)
	}
	a.token = token
	s.Offer(spec.Job{}, "docker")
	_, r = a.request()
	want(t, r, http.StatusNoContent) // not its tags
	if err := s.SetRunner(token, func(r *Runner) { r.Tags, r.Paused = []string{"docker"}, true }); err != nil {
		t.Fatal(err)
	}
	_, r = a.request()
	want(t, r, http.StatusNoContent) // paused
	if err := s.SetRunner(token, func(r *Runner) { r.Paused = false }); err != nil {
		t.Fatal(err)
	}
	_, r = a.request()
	want(t, r, http.StatusCreated)
	if err := s.Orphan(token); err != nil {
		t.Fatal(err)
	}
	_, r = a.request()
	want(t, r, http.StatusUnprocessableEntity)
	if err := s.Revoke(token); err != nil {
		t.Fatal(err)
	}
	_, r = a.request()
	want(t, r, http.StatusForbidden)
	clean(t, s)
}

// TestWrongHeaders has what no request may do.
func TestWrongHeaders(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	for name, change := range map[string]change{
		"X-Request-Id is":              header("X-Request-Id", "not-a-uuid"),
		"Accept is":                    header("Accept", "text/html"),
		"Content-Type is":              header("Content-Type", "text/plain"),
		"the header RUNNER-TOKEN is":   header(runnerToken, ""),
		"the header JOB-TOKEN has":     header(jobToken, "x"),
		"the header PRIVATE-TOKEN has": header(privateToken, "x"),
	} {
		_, r := a.request(change)
		want(t, r, http.StatusNoContent)
		breach(t, s, name)
	}
	a.features = spec.Features{}
	_, _ = a.request()
	breach(t, s, "no features")
	r := a.json("POST", "jobs/request", runnerToken, a.token, map[string]any{"token": a.token, "system_id": "host", "info": a.info()})
	want(t, r, http.StatusNoContent)
	breach(t, s, "system_id")
	r = a.do("POST", "jobs/request", http.Header{"Content-Type": {"application/json"}}, strings.NewReader("{"))
	want(t, r, http.StatusBadRequest)
	breach(t, s, "not the JSON")
	want(t, a.do("GET", "jobs", nil, nil), http.StatusNotFound)
	breach(t, s, "no such call")
}

func TestRegistration(t *testing.T) {
	s := newServer(t, Options{RegistrationToken: "GR1348941abc", AccessToken: "glpat-x", TokenLifetime: time.Hour})
	a := newAgent(t, s)
	in := spec.RegisterRequest{Info: a.info(), Token: "GR1348941abc", Description: "one", TagList: "a, b", MaximumTimeout: 900}
	r := a.json("POST", "runners", runnerToken, in.Token, in)
	want(t, r, http.StatusCreated)
	var got spec.Registered
	if err := json.Unmarshal(r.body, &got); err != nil || got.ID != 2 || got.Token == "" || got.TokenExpiresAt == "" {
		t.Fatalf("%+v %v", got, err)
	}
	bad := in
	bad.Token = "wrong"
	want(t, a.json("POST", "runners", runnerToken, "wrong", bad), http.StatusForbidden)
	bad = in
	bad.TagList = ""
	want(t, a.json("POST", "runners", runnerToken, in.Token, bad), http.StatusBadRequest)

	info := a.info()
	v := spec.VerifyRequest{Token: got.Token, SystemID: testSystem, Info: &info}
	r = a.json("POST", "runners/verify", runnerToken, got.Token, v)
	want(t, r, http.StatusOK)
	if !strings.Contains(string(r.body), got.Token) {
		t.Errorf("verify says %s", r.body)
	}
	r = a.json("POST", "runners/reset_authentication_token", runnerToken, got.Token, spec.VerifyRequest{Token: got.Token})
	want(t, r, http.StatusCreated)
	old := got.Token
	if err := json.Unmarshal(r.body, &got); err != nil || got.Token == old {
		t.Errorf("reset says %s", r.body)
	}
	r = a.json("POST", "runners/reset_authentication_token", runnerToken, got.Token, spec.VerifyRequest{Token: got.Token}, header(runnerToken, ""))
	want(t, r, http.StatusCreated)
	v.Token = old
	want(t, a.json("POST", "runners/verify", runnerToken, old, v), http.StatusForbidden)
	r = a.do("POST", "runners/2/reset_authentication_token", http.Header{"Private-Token": {"glpat-x"}}, nil)
	want(t, r, http.StatusCreated)
	if err := json.Unmarshal(r.body, &got); err != nil {
		t.Fatal(err)
	}
	want(t, a.do("POST", "runners/2/reset_authentication_token", http.Header{"Private-Token": {"other"}}, nil), http.StatusUnauthorized)
	want(t, a.do("GET", "runners/router/discovery", http.Header{"Runner-Token": {got.Token}}, nil), http.StatusNotImplemented)
	v.Token = got.Token
	want(t, a.json("POST", "runners/verify", runnerToken, got.Token, v), http.StatusOK)
	manager := spec.VerifyRequest{Token: got.Token, SystemID: testSystem}
	want(t, a.json("DELETE", "runners/managers", runnerToken, got.Token, manager), http.StatusNoContent)
	want(t, a.json("DELETE", "runners/managers", runnerToken, got.Token, manager), http.StatusNotFound)
	want(t, a.json("DELETE", "runners", runnerToken, got.Token, spec.VerifyRequest{Token: got.Token}), http.StatusNoContent)
	want(t, a.json("DELETE", "runners", runnerToken, got.Token, spec.VerifyRequest{Token: got.Token}), http.StatusForbidden)
	clean(t, s)

	in.Token = a.token
	want(t, a.json("POST", "runners", runnerToken, in.Token, in), http.StatusForbidden)
	breach(t, s, "never registered")
	want(t, a.json("DELETE", "runners", runnerToken, a.token, spec.VerifyRequest{Token: a.token}), http.StatusNoContent)
	breach(t, s, "deleted there")
	v.Info = nil
	v.Token = "x"
	want(t, a.json("POST", "runners/verify", runnerToken, "x", v), http.StatusForbidden)
	breach(t, s, "no info")

	closed := newServer(t, Options{})
	b := newAgent(t, closed)
	in.Token = "GR1348941abc"
	want(t, b.json("POST", "runners", runnerToken, in.Token, in), http.StatusGone)
	clean(t, closed)
}

func TestExpiredToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{TokenLifetime: time.Hour})
		a := newAgent(t, s)
		_, r := a.request()
		want(t, r, http.StatusNoContent)
		time.Sleep(61 * time.Minute)
		_, r = a.request()
		want(t, r, http.StatusForbidden)
	})
}

func TestRateLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{RateLimit: RateLimit{Requests: 2, Window: time.Minute}})
		a := newAgent(t, s)
		for range 2 {
			_, r := a.request()
			want(t, r, http.StatusNoContent)
		}
		_, r := a.request()
		want(t, r, http.StatusTooManyRequests)
		if r.Header.Get("Retry-After") != "60" || r.Header.Get("RateLimit-ResetTime") == "" {
			t.Errorf("headers %v", r.Header)
		}
		clean(t, s)
		_, r = a.request()
		want(t, r, http.StatusTooManyRequests)
		breach(t, s, "before the time")
		time.Sleep(time.Minute)
		_, r = a.request()
		want(t, r, http.StatusNoContent)
		clean(t, s)
	})
}

func TestRuntimeEnvironmentKey(t *testing.T) {
	s := newServer(t, Options{})
	a := newAgent(t, s)
	s.Offer(spec.Job{})
	j := a.take()
	want(t, a.do("GET", "jobs/1/runtime_environment_key", http.Header{"Job-Token": {j.Token}}, nil), http.StatusNotFound)
	clean(t, s)
}

// TestListens is the server on a real port, and that it goes away.
func TestListens(t *testing.T) {
	s, err := New(Options{Uploads: Objects})
	if err != nil {
		t.Fatal(err)
	}
	if store, err := http.Get(s.storeURL + "/objects/none"); err != nil || store.StatusCode != http.StatusForbidden || s.storeURL == s.URL {
		t.Errorf("the object store: %v %v", store, err)
	} else {
		_ = store.Body.Close()
	}
	res, err := http.Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(res.Body)
	_ = res.Body.Close()
	if !strings.Contains(string(text), "group/project") {
		t.Errorf("status: %s", text)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := http.Get(s.URL); err == nil {
		t.Error("it answers after Close")
	}
}
