package gitlab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// fakeForge knows runners by their tokens.
type fakeForge struct {
	t *testing.T

	mu       sync.Mutex
	runners  map[string]int64
	managers map[string]int // verified system ids
	made     int
	life     time.Duration // of tokens; 0: for ever
	err      error         // of the next call
	resets   int
	during   func() // is called in the midst of a call
}

func newForge(t *testing.T) *fakeForge {
	return &fakeForge{t: t, runners: map[string]int64{testToken: 42, "legacy-own-token-1234": 7}, managers: map[string]int{}}
}

func (f *fakeForge) enter(ctx context.Context) (func(), error) {
	f.mu.Lock()
	if f.during != nil {
		f.during()
	}
	err := errors.Join(f.err, ctx.Err())
	f.err = nil
	return f.mu.Unlock, err
}

func (f *fakeForge) renewed() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.resets
}

func (f *fakeForge) expires() string {
	if f.life == 0 {
		return ""
	}
	return time.Now().Add(f.life).UTC().Format(time.RFC3339)
}

func (f *fakeForge) know(token string) (int64, error) {
	if id := f.runners[token]; id != 0 {
		return id, nil
	}
	return 0, &StatusError{Status: 403, Message: "403 Forbidden"}
}

func (f *fakeForge) Verify(ctx context.Context, token, systemID string) (spec.Registered, error) {
	leave, err := f.enter(ctx)
	defer leave()
	if err != nil {
		return spec.Registered{}, err
	}
	id, err := f.know(token)
	if err != nil {
		return spec.Registered{}, err
	}
	f.managers[systemID]++
	return spec.Registered{ID: id, Token: token, TokenExpiresAt: f.expires()}, nil
}

func (f *fakeForge) Register(ctx context.Context, r spec.RegisterRequest) (spec.Registered, error) {
	leave, err := f.enter(ctx)
	defer leave()
	if err != nil {
		return spec.Registered{}, err
	}
	if r.Token != "GR1348941registration" {
		return spec.Registered{}, &StatusError{Status: 403}
	}
	f.made++
	token := fmt.Sprintf("made-token-%d", f.made)
	f.runners[token] = int64(100 + f.made)
	return spec.Registered{ID: f.runners[token], Token: token, TokenExpiresAt: f.expires()}, nil
}

func (f *fakeForge) Unregister(ctx context.Context, token string) error {
	leave, err := f.enter(ctx)
	defer leave()
	if err != nil {
		return err
	}
	if isCreated(token) {
		f.t.Error("a runner that was made in GitLab is removed there")
	}
	_, err = f.know(token)
	delete(f.runners, token)
	return err
}

func (f *fakeForge) UnregisterManager(ctx context.Context, token, systemID string) error {
	leave, err := f.enter(ctx)
	defer leave()
	if err != nil {
		return err
	}
	if !isCreated(token) {
		f.t.Error("a legacy runner has no managers")
	}
	_, err = f.know(token)
	delete(f.managers, systemID)
	return err
}

func (f *fakeForge) ResetToken(ctx context.Context, token string) (spec.Registered, error) {
	leave, err := f.enter(ctx)
	defer leave()
	if err != nil {
		return spec.Registered{}, err
	}
	id, err := f.know(token)
	if err != nil {
		return spec.Registered{}, err
	}
	delete(f.runners, token)
	f.resets++
	fresh := fmt.Sprintf("glrt-t1_renewed-%d", f.resets)
	f.runners[fresh] = id
	return spec.Registered{Token: fresh, TokenExpiresAt: f.expires()}, nil
}

func newEnrolment(t *testing.T, f *fakeForge) *Enrolment {
	return NewEnrolment(EnrolConfig{
		Runners: openRegistrations(t, t.TempDir()), Contacts: &Contacts{},
		Dial: func(Registration) (Forge, error) { return f, nil },
	})
}

func TestRegister(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	r, err := e.Register(t.Context(), Registration{URL: "https://gitlab.example.com:8443", Token: testToken}, nil)
	if err != nil || r.Name != "gitlab.example.com-8443-42" || r.ID != 42 || r.TokenObtained.IsZero() {
		t.Fatalf("%+v %v", r, err)
	}
	if e.Contacts.Of(r.Name).Health() != Online || f.managers[r.SystemID] != 1 {
		t.Errorf("%+v %v", e.Contacts.Of(r.Name), f.managers)
	}
	if _, err := e.Register(t.Context(), Registration{Name: r.Name, URL: "https://gitlab.example.com", Token: testToken}, nil); !errors.Is(err, ErrExists) {
		t.Errorf("the same name: %v", err)
	}
	if _, err := e.Register(t.Context(), Registration{Name: "x", URL: "nonsense", Token: testToken}, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a wrong URL: %v", err)
	}
	if err := e.Unregister(t.Context(), r.Name, false); err != nil || len(f.managers) != 0 || len(e.Runners.List()) != 0 {
		t.Errorf("%v %v", err, f.managers)
	}
}

func TestRegisterWithARegistrationToken(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	with := &spec.RegisterRequest{Description: "d"}
	r, err := e.Register(t.Context(), Registration{Name: "old", URL: "https://gitlab.example.com", Token: "GR1348941registration"}, with)
	if err != nil || r.Token != "made-token-1" || r.ID != 101 {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := e.Register(t.Context(), Registration{Name: "old", URL: "https://gitlab.example.com", Token: "GR1348941registration"}, with); !errors.Is(err, ErrExists) || f.made != 1 {
		t.Errorf("a runner was made that nobody uses: %v", err)
	}
	if err := e.Unregister(t.Context(), "old", false); err != nil || f.runners["made-token-1"] != 0 {
		t.Errorf("%v %v", err, f.runners)
	}
}

// A GitLab may have a prefix of its own before all tokens: taken for a legacy token, one would be registered, and the
// whole runner would go with one machine of it.
func TestTokensWithAnInstancePrefix(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	for token, own := range map[string]bool{"glrt-x": true, "acmeglrt-x": true, "acme-glrt-t1_x": true, "glrtr-x": true, "GR1348941x": false, "abcdefgh": false, "glpat-x": false} {
		if IsAuthenticationToken(token) != own {
			t.Errorf("%s: %v", token, !own)
		}
	}
	for name, token := range map[string]string{"created": "acme-" + testToken, "registered": "glrtr-abcdefghijklmnopqrst"} {
		f.runners[token] = 5
		if _, err := e.Register(t.Context(), Registration{Name: name, URL: "https://gitlab.example.com", Token: token}, nil); err != nil {
			t.Fatal(err)
		}
		if err := e.Unregister(t.Context(), name, false); err != nil {
			t.Error(err)
		}
		if left := f.runners[token] != 0; left != (name == "created") {
			t.Errorf("%s: the runner is there: %v", name, left)
		}
	}
}

func TestRefusalsSayHowToMend(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	own := Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}
	legacy := own
	legacy.Token = "GR1348941registration"
	for _, c := range []struct {
		r      Registration
		err    error
		status int
		wants  string
	}{
		{own, &StatusError{Status: 403, Message: "403 Forbidden"}, 403, "copy it again"},
		{own, &StatusError{Status: 422, Message: "runner is orphaned"}, 422, "runner is orphaned (request ): the runner belongs to no project"},
		{legacy, &StatusError{Status: 403}, 403, "use its glrt- token"},
		{legacy, &StatusError{Status: 410, Message: "410 Gone"}, 410, "takes no registration tokens any more"},
		{own, &StatusError{Status: 404, Message: "<html>"}, 404, "check it, with its path"},
		{own, &StatusError{Status: 502}, 502, "502 Bad Gateway (request ): GitLab has a problem of its own"},
		{own, errors.New("dial tcp: connection refused"), 0, "connection refused: check the URL"},
	} {
		var with *spec.RegisterRequest
		if !IsAuthenticationToken(c.r.Token) {
			with = &spec.RegisterRequest{}
		}
		f.err = c.err
		_, err := e.Register(t.Context(), c.r, with)
		var refused *ForgeError
		if !errors.As(err, &refused) || refused.Status != c.status || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("%v: %v", c.err, err)
		}
		if strings.Contains(err.Error(), c.r.Token) {
			t.Errorf("the token is told: %v", err)
		}
		if left := e.Runners.List(); len(left) != 0 {
			t.Fatalf("left: %v", left)
		}
	}
}

func TestVerify(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	if err := e.Runners.Add(Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}); err != nil {
		t.Fatal(err)
	}
	f.life = 24 * time.Hour
	r, err := e.Verify(t.Context(), "n")
	if kept, _ := e.Runners.Get("n"); err != nil || r.ID != 42 || kept.ID != 42 || kept.TokenExpires.IsZero() {
		t.Errorf("%+v %v", kept, err)
	}
	delete(f.runners, testToken)
	_, err = e.Verify(t.Context(), "n")
	c := e.Contacts.Of("n")
	if err == nil || !strings.Contains(err.Error(), "runnerd unregister --keep-on-server n") || c.Health() != Refused || c.Failing.IsZero() {
		t.Errorf("%v %+v", err, c)
	}
	f.err = errors.New("no route to host")
	if _, err = e.Verify(t.Context(), "n"); err == nil || e.Contacts.Of("n").Health() != Unreachable {
		t.Errorf("%v %+v", err, e.Contacts.Of("n"))
	}
	if _, err = e.Verify(t.Context(), "other"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestUnregisterKeepsWhatTheForgeDoesNotLetGo(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	if err := e.Runners.Add(Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}); err != nil {
		t.Fatal(err)
	}
	f.err = errors.New("no route to host")
	if err := e.Unregister(t.Context(), "n", false); err == nil || len(e.Runners.List()) != 1 {
		t.Errorf("it is forgotten: %v", err)
	}
	f.err = errors.New("nobody asks")
	if err := e.Unregister(t.Context(), "n", true); err != nil || len(e.Runners.List()) != 0 || f.err == nil {
		t.Errorf("%v", err)
	}
	f.err = nil
	gone := Registration{Name: "gone", URL: "https://gitlab.example.com", Token: testToken + "-gone"}
	if err := errors.Join(e.Runners.Add(gone), e.Unregister(t.Context(), "gone", false)); err != nil {
		t.Errorf("of one that the forge has forgotten: %v", err)
	}
}

func TestTokensAreRenewedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newForge(t)
		f.life = 8 * time.Hour
		e := newEnrolment(t, f)
		if _, err := e.Register(t.Context(), Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}, nil); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); e.KeepTokens(ctx) }()

		time.Sleep(6*time.Hour - time.Minute)
		if synctest.Wait(); f.renewed() != 0 {
			t.Error("too early")
		}
		f.mu.Lock()
		f.err = &StatusError{Status: 502}
		f.mu.Unlock()
		time.Sleep(90 * time.Second)
		if synctest.Wait(); f.renewed() != 0 {
			t.Error("the first try has failed")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		r, err := e.Runners.Get("n")
		if err != nil || f.renewed() != 1 || r.Token != "glrt-t1_renewed-1" || time.Until(r.TokenExpires) < 7*time.Hour {
			t.Errorf("%d %+v %v", f.renewed(), r, err)
		}
		time.Sleep(30 * time.Hour) // each 6 h
		if synctest.Wait(); f.renewed() != 6 {
			t.Errorf("renewed %d times", f.renewed())
		}
		f.mu.Lock()
		f.life = time.Nanosecond // GitLab's clock is wrong
		f.mu.Unlock()
		time.Sleep(6 * time.Hour)
		synctest.Wait()
		before := f.renewed()
		time.Sleep(time.Hour)
		if synctest.Wait(); f.renewed()-before > 61 {
			t.Errorf("renewed %d times in an hour", f.renewed()-before)
		}
		stop()
		<-done
	})
}

// Who asks may go, and the daemon may be stopped: the answer, which has the only token, must not be lost.
func TestTokensAreNotLostWhenTheirReaderGoes(t *testing.T) {
	f := newForge(t)
	e := newEnrolment(t, f)
	if err := e.Runners.Add(Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.during = cancel
	if _, err := e.Rotate(ctx, "n"); err != nil {
		t.Error(err)
	}
	if r, _ := e.Runners.Get("n"); f.runners[r.Token] == 0 {
		t.Error("the token is lost")
	}
	if _, err := e.Rotate(ctx, "n"); !errors.Is(err, context.Canceled) || f.resets != 1 {
		t.Errorf("nobody waits for another one: %v", err)
	}
	ctx, f.during = context.WithCancel(t.Context())
	if r, err := e.Register(ctx, Registration{Name: "old", URL: "https://gitlab.example.com", Token: "GR1348941registration"}, &spec.RegisterRequest{}); err != nil || f.runners[r.Token] == 0 {
		t.Errorf("%+v %v", r, err)
	}
}

func TestContacts(t *testing.T) {
	var c Contacts
	if h := c.Of("n").Health(); h != Unasked {
		t.Error(h)
	}
	for status, want := range map[int]string{409: GotConflict, 403: GotForbidden, 422: GotInvalid, 429: GotLimited, 502: GotServer, 418: GotUnexpected} {
		c.Asked("n", false, fmt.Errorf("ask: %w", &StatusError{Status: status}))
		if got := c.Of("n"); got.Answers[want] != 1 || got.Status != status || (got.Err == nil) != (status == 409) {
			t.Errorf("%d is no %s: %+v", status, want, got)
		}
	}
	c.Asked("n", false, errors.New("no route to host"))
	if got := c.Of("n"); got.Health() != Unreachable || got.Answers[GotNoAnswer] != 1 || got.Failing.IsZero() {
		t.Errorf("%+v", got)
	}
	c.Asked("n", false, &StatusError{Status: 500})
	if h := c.Of("n").Health(); h != Failing {
		t.Error(h)
	}
	c.Asked("n", false, nil)
	c.Asked("n", true, nil)
	if got := c.Of("n"); got.Health() != Online || !got.Failing.IsZero() || got.Answers[GotJob] != 1 || got.Answers[GotNone] != 1 {
		t.Errorf("%+v", got)
	}
	if c.forget("n"); len(c.Of("n").Answers) != 0 {
		t.Error("not forgotten")
	}
}

func TestWhyARunnerGetsNoJobs(t *testing.T) {
	e := newEnrolment(t, newForge(t))
	r := Registration{Name: "n", URL: "https://gitlab.example.com", Token: testToken}
	if why := e.Asked(r, true, nil); why != "" || e.Contacts.Of("n").Health() != Online {
		t.Error(why)
	}
	for status, want := range map[int]string{403: "runnerd unregister --keep-on-server n", 422: "belongs to no project", 500: "try again later", 429: "too many requests"} {
		if why := e.Asked(r, false, fmt.Errorf("ask: %w", &StatusError{Status: status})); !strings.Contains(why, want) || why != e.Why(r) {
			t.Errorf("%d: %s", status, why)
		}
	}
	if why := e.Asked(r, false, errors.New("no route to host")); !strings.Contains(why, "no route to host: check the URL") {
		t.Error(why)
	}
}
