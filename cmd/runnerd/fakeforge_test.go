package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

// fakeForge is the part of GitLab's runner API that runners are enrolled by. It is strict: what GitLab does not take
// fails the test.
type fakeForge struct {
	*httptest.Server
	t *testing.T

	mu       sync.Mutex
	tokens   map[string]int64 // of runners
	managers map[string]bool  // by system id
	register []spec.RegisterRequest
	expires  time.Time
	status   int // of all answers, if not 0
	calls    []string
}

const (
	ownToken          = "glrt-t1_aaaaaaaaaaaaaaaaaaaa"
	registrationToken = "GR1348941bbbbbbbbbbbbbbbbbbbb"
)

func newFakeForge(t *testing.T) *fakeForge {
	f := &fakeForge{t: t, tokens: map[string]int64{ownToken: 42}, managers: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/v4/runners/verify", f.verify)
	mux.HandleFunc("POST /api/v4/runners", f.make)
	mux.HandleFunc("POST /api/v4/runners/reset_authentication_token", f.reset)
	mux.HandleFunc("DELETE /api/v4/runners", f.remove)
	mux.HandleFunc("DELETE /api/v4/runners/managers", f.removeManager)
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls = append(f.calls, r.Method+" "+strings.TrimPrefix(r.URL.Path, "/api/v4/"))
		if f.status != 0 {
			f.answer(w, f.status, map[string]string{"message": fmt.Sprintf("%d %s", f.status, http.StatusText(f.status))})
			return
		}
		mux.ServeHTTP(w, r)
	}))
	t.Cleanup(f.Close)
	return f
}

func (f *fakeForge) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v)
}

// read reads a request whose token is in the header, too.
func read[T any](f *fakeForge, r *http.Request, token func(T) string) (v T) {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		f.t.Errorf("%s %s: %v", r.Method, r.URL.Path, err)
	}
	if got := r.Header.Get("RUNNER-TOKEN"); got != token(v) || r.Header.Get("Content-Type") != "application/json" || r.Header.Get("X-Request-Id") == "" {
		f.t.Errorf("%s %s: headers %v", r.Method, r.URL.Path, r.Header)
	}
	return v
}

func verifyToken(v spec.VerifyRequest) string { return v.Token }

func (f *fakeForge) registered(id int64, token string) map[string]any {
	r := map[string]any{"id": id, "token": token, "token_expires_at": nil}
	if !f.expires.IsZero() {
		r["token_expires_at"] = f.expires.Format(time.RFC3339)
	}
	return r
}

func (f *fakeForge) known(w http.ResponseWriter, token string) int64 {
	id := f.tokens[token]
	if id == 0 {
		f.answer(w, http.StatusForbidden, map[string]string{"message": "403 Forbidden"})
	}
	return id
}

func (f *fakeForge) verify(w http.ResponseWriter, r *http.Request) {
	v := read(f, r, verifyToken)
	if v.Info == nil || v.Info.Name != "runnerd" || !v.Info.Features.CancelGracefully || v.SystemID == "" {
		f.t.Errorf("verify says not who asks: %+v", v)
	}
	if id := f.known(w, v.Token); id != 0 {
		f.managers[v.SystemID] = true
		f.answer(w, http.StatusOK, f.registered(id, v.Token))
	}
}

func (f *fakeForge) make(w http.ResponseWriter, r *http.Request) {
	v := read(f, r, func(v spec.RegisterRequest) string { return v.Token })
	if v.Token != registrationToken {
		f.answer(w, http.StatusForbidden, map[string]string{"message": "403 Forbidden - invalid token supplied"})
		return
	}
	if !v.RunUntagged && v.TagList == "" {
		f.answer(w, http.StatusBadRequest, map[string]any{"message": map[string]any{"tags_list": []string{"can not be empty when runner is not allowed to pick untagged jobs"}}})
		return
	}
	f.register = append(f.register, v)
	token := fmt.Sprintf("legacy-own-token-%d", len(f.register))
	f.tokens[token] = int64(100 + len(f.register))
	f.answer(w, http.StatusCreated, f.registered(f.tokens[token], token))
}

func (f *fakeForge) reset(w http.ResponseWriter, r *http.Request) {
	v := read(f, r, verifyToken)
	if id := f.known(w, v.Token); id != 0 {
		delete(f.tokens, v.Token)
		token := v.Token[:len(v.Token)-2] + "zz"
		f.tokens[token] = id
		f.answer(w, http.StatusCreated, map[string]any{"token": token, "token_expires_at": nil})
	}
}

func (f *fakeForge) remove(w http.ResponseWriter, r *http.Request) {
	v := read(f, r, verifyToken)
	if strings.HasPrefix(v.Token, "glrt-") {
		f.t.Error("a runner that was made in GitLab is removed there")
	}
	if f.known(w, v.Token) != 0 {
		delete(f.tokens, v.Token)
		w.WriteHeader(http.StatusNoContent)
	}
}

func (f *fakeForge) removeManager(w http.ResponseWriter, r *http.Request) {
	v := read(f, r, verifyToken)
	if f.known(w, v.Token) == 0 {
		return
	}
	if !f.managers[v.SystemID] {
		f.answer(w, http.StatusNotFound, map[string]string{"message": "404 Not Found"})
		return
	}
	delete(f.managers, v.SystemID)
	w.WriteHeader(http.StatusNoContent)
}

// called reports whether there was such a call.
func (f *fakeForge) called(call string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.calls, call)
}

func (f *fakeForge) answers(status int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status = status
}
