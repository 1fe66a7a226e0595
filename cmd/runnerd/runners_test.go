package main

import (
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/api/apitest"
	"github.com/runnerd/runnerd/runner/api/client"
	"github.com/runnerd/runnerd/runner/gitlab"
	"github.com/runnerd/runnerd/runner/gitlab/script"
	"github.com/runnerd/runnerd/sandbox"
)

// runnersFor is a daemon with runners, in dir.
func runnersFor(t *testing.T, dir string) (*apitest.Server, runners) {
	t.Helper()
	known, err := gitlab.OpenRegistrations(dir)
	if err != nil {
		t.Fatal(err)
	}
	contacts := &gitlab.Contacts{}
	rs := runners{gitlab.NewEnrolment(gitlab.EnrolConfig{Runners: known, Contacts: contacts, Dial: forgeOf(enrolInfo(false), nil)}), sandbox.DefaultPolicy().Allow}
	s := apitest.Start(t, func(c *api.Config, _ *apitest.Backend) { c.Runners = rs })
	return s, rs
}

func TestRegisterGitLab(t *testing.T) {
	f := newFakeForge(t)
	dir := t.TempDir()
	s, rs := runnersFor(t, dir)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte(ownToken+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runnerd(t, s.Socket, "", "register", "gitlab", "--url", f.URL+"/", "--token-file", token, "--name", "one", "--concurrent", "3",
		"--image", "alpine", "--cpu", "1.5", "--memory", "2GiB", "--sandbox", "container/dind", "-e", "A=b", "--pull", "always", "--clone-url", "https://clone.example.com/",
		"--output-limit", "8MiB", "--pre-get-sources-script", "echo a", "--post-get-sources-script", "echo b", "--pre-build-script", "echo c", "--post-build-script", "echo d")
	expect(t, "register", code, 0, out+errs, "one\n")
	r, err := rs.Enrolment.Runners.Get("one")
	if err != nil || r.ID != 42 || r.Concurrent != 3 || r.Image != "alpine" || r.Limits != (sandbox.Limits{CPU: 1500, Memory: 2 << 30}) ||
		r.Nesting.String() != "container/dind" || r.Env[0] != "A=b" || r.Pull != sandbox.Always || r.CloneURL != "https://clone.example.com" || r.OutputLimit != 8<<20 ||
		r.Scripts != (script.Scripts{PreGetSources: "echo a", PostGetSources: "echo b", PreBuild: "echo c", PostBuild: "echo d"}) || !f.managers[r.SystemID] {
		t.Errorf("%+v %v", r, err)
	}
	code, out, errs = runnerd(t, s.Socket, "", "runners")
	expect(t, "runners", code, 0, out+errs, "one", "online", "container/dind", "glrt-t1_aaaa…")
	if strings.Contains(out, ownToken) {
		t.Error("the token is shown")
	}
	code, out, errs = runnerd(t, s.Socket, "", "runners", "--json")
	var all []api.Runner
	if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 || len(all) != 1 || all[0].State != "online" || all[0].ID != 42 || strings.Contains(out, ownToken) {
		t.Errorf("%v: %s%s", err, out, errs)
	}
	code, _, errs = runnerd(t, s.Socket, ownToken, "register", "gitlab", "--url", f.URL, "--token-file", "-", "--name", "one")
	expect(t, "the same name", code, 1, errs, "use another name")
	code, _, errs = runnerd(t, s.Socket, ownToken, "register", "gitlab", "--url", f.URL, "--token-file", "-")
	expect(t, "the same token", code, 1, errs, `"one" has the same token`)
	code, out, errs = runnerd(t, s.Socket, "", "verify")
	expect(t, "verify", code, 0, out+errs, "one: valid")
	code, out, errs = runnerd(t, s.Socket, "", "rotate", "one")
	expect(t, "rotate", code, 0, out+errs, "one: glrt-t1_")
	if r, _ := rs.Enrolment.Runners.Get("one"); r.Token == ownToken || f.tokens[r.Token] != 42 {
		t.Errorf("the token was not renewed: %+v", f.tokens)
	}
	code, out, errs = runnerd(t, s.Socket, "", "unregister", "one")
	expect(t, "unregister", code, 0, out+errs, "one\n")
	if len(f.managers) != 0 || !f.called("DELETE runners/managers") {
		t.Errorf("it is still known: %v", f.managers)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.json")); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
	code, _, errs = runnerd(t, s.Socket, "", "unregister", "one")
	expect(t, "unregister twice", code, 1, errs, `runner "one": there is no runner of that name: see 'runnerd runners'`)
}

func TestRegisterByARegistrationToken(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	t.Setenv(envServerURL, f.URL)
	t.Setenv(envServerToken, registrationToken)
	code, out, errs := runnerd(t, s.Socket, "", "register", "gitlab", "--name", "old", "--description", "d", "--tag-list", "a, b", "--locked",
		"--access-level", "ref_protected", "--maximum-timeout", "1h", "--paused", "--json")
	expect(t, "register", code, 0, out+errs, `"id": 101`)
	if len(f.register) != 1 {
		t.Fatalf("%+v", f.register)
	}
	if g := f.register[0]; g.Description != "d" || g.TagList != "a,b" || g.RunUntagged || !g.Locked || g.AccessLevel != "ref_protected" || g.MaximumTimeout != 3600 || !g.Paused {
		t.Errorf("%+v", g)
	}
	code, out, errs = runnerd(t, s.Socket, "", "register", "gitlab")
	expect(t, "without tags", code, 0, out+errs, "-102\n")
	code, _, errs = runnerd(t, s.Socket, "", "unregister", "--all")
	expect(t, "unregister", code, 0, errs)
	if len(f.tokens) != 1 || len(rs.Enrolment.Runners.List()) != 0 {
		t.Errorf("left: %v", f.tokens)
	}
}

func TestRegisterSaysWhatIsWrong(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	register := func(args ...string) []string { return append([]string{"register", "gitlab"}, args...) }
	for _, c := range []struct {
		what   string
		args   []string
		status int
		code   int
		wants  string
	}{
		{"no URL", register("--token", ownToken), 0, 2, "the URL of the GitLab is missing"},
		{"no token", register("--url", f.URL), 0, 2, "the runner's token is missing: give --token-file, or set $CI_SERVER_TOKEN"},
		{"two tokens", register("--url", f.URL, "--token", ownToken, "--token-file", "x"), 0, 2, "exclude each other"},
		{"settings of GitLab", register("--url", f.URL, "--token", ownToken, "--tag-list", "a"), 0, 2, "set them in GitLab"},
		{"no file", register("--url", f.URL, "--token-file", "/nowhere"), 0, 2, "/nowhere"},
		{"another scheme", register("--url", "ftp://x", "--token", ownToken), 0, 2, "use https://HOST"},
		{"a name", register("--url", f.URL, "--token", ownToken, "--name", "../x"), 0, 2, "runner name"},
		{"a sandbox", register("--url", f.URL, "--token", ownToken, "--sandbox", "moon"), 0, 2, "unknown layer"},
		{"depth", register("--url", f.URL, "--token", ownToken, "--sandbox", "container/dind/container"), 0, 3, "3 layers deep"},
		{"a timeout", register("--url", f.URL, "--token", registrationToken, "--maximum-timeout", "1m"), 0, 2, "at least 10m"},
		{"a CA", register("--url", f.URL, "--token", ownToken, "--ca-file", "/nowhere.pem"), 0, 2, "/nowhere.pem"},
		{"a wrong token", register("--url", f.URL, "--token", ownToken+"x"), 0, 3, "copy it again"},
		{"a wrong registration token", register("--url", f.URL, "--token", registrationToken+"x"), 0, 3, "invalid token supplied"},
		{"gone", register("--url", f.URL, "--token", registrationToken), 410, 3, "takes no registration tokens any more"},
		{"orphaned", register("--url", f.URL, "--token", ownToken), 422, 2, "belongs to no project"},
		{"not found", register("--url", f.URL, "--token", ownToken), 404, 1, "no GitLab of this version below the URL"},
		{"not there", register("--url", "http://127.0.0.1:1", "--token", ownToken), 0, 1, "check the URL, the network"},
		{"unregister what", []string{"unregister"}, 0, 2, "name the runners, or give --all"},
		{"unregister whom", []string{"unregister", "a", "--all"}, 0, 2, "name the runners, or give --all"},
		{"rotate whom", []string{"rotate", "nobody"}, 0, 1, "no runner of that name"},
		{"verify whom", []string{"verify", "nobody"}, 0, 1, "no runner of that name"},
	} {
		f.answers(c.status)
		code, out, errs := runnerd(t, s.Socket, "", c.args...)
		expect(t, c.what, code, c.code, out+errs, c.wants)
		if strings.Contains(errs, ownToken+"x") || strings.Contains(errs, registrationToken) {
			t.Errorf("%s: the token is told: %s", c.what, errs)
		}
		if left := rs.Enrolment.Runners.List(); len(left) != 0 {
			t.Fatalf("%s: left: %v", c.what, left)
		}
	}
}

func TestVerifyAndDelete(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	for _, r := range []gitlab.Registration{
		{Name: "good", URL: f.URL, Token: ownToken},
		{Name: "removed", URL: f.URL, Token: ownToken + "-removed"},
		{Name: "silent", URL: "http://127.0.0.1:1", Token: ownToken},
	} {
		if err := rs.Enrolment.Runners.Add(r); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := runnerd(t, s.Socket, "", "verify")
	expect(t, "verify", code, 1, out+errs, "good: valid", "removed: not valid", "runnerd unregister --keep-on-server removed", "silent: not valid", "check the URL")
	code, out, errs = runnerd(t, s.Socket, "", "runners")
	expect(t, "runners", code, 0, out+errs, "refused", "unreachable", "online")
	code, out, errs = runnerd(t, s.Socket, "", "verify", "--delete", "--json")
	var got []verified
	if err := json.Unmarshal([]byte(out), &got); err != nil || code != 1 || len(got) != 3 || !got[0].Valid || !got[1].Deleted || got[2].Deleted || got[2].Valid {
		t.Errorf("%d %v: %s%s", code, err, out, errs)
	}
	if left := rs.Enrolment.Runners.List(); len(left) != 2 || left[1].Name != "silent" {
		t.Errorf("left: %v", left)
	}
	code, _, errs = runnerd(t, s.Socket, "", "unregister", "silent")
	expect(t, "unregister", code, 1, errs, "or give --keep-on-server")
	code, out, errs = runnerd(t, s.Socket, "", "unregister", "silent", "--keep-on-server")
	expect(t, "unregister", code, 0, out+errs, "silent")
	code, out, errs = runnerd(t, s.Socket, "", "__complete", "verify", "")
	expect(t, "completion", code, 0, out, "good\tonline")
	_ = errs
}

func TestEphemeralRunnersEndWithTheirClient(t *testing.T) {
	f := newFakeForge(t)
	s, rs := runnersFor(t, t.TempDir())
	c := client.New(s.Socket)
	defer c.Close()
	r, end, err := c.RegisterFor(t.Context(), api.NewRunner{Forge: "gitlab", URL: f.URL, Token: ownToken})
	if err != nil || !r.Ephemeral || r.ID != 42 {
		t.Fatalf("%+v %v", r, err)
	}
	if known, err := c.Runner(t.Context(), r.Name); err != nil || !known.Ephemeral {
		t.Errorf("%+v %v", known, err)
	}
	time.Sleep(100 * time.Millisecond) // it stays
	if _, err := rs.Enrolment.Runners.Get(r.Name); err != nil {
		t.Error(err)
	}
	changed := rs.Enrolment.Runners.Changed()
	end()
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Fatal("it outlives its client")
	}
	if _, err := rs.Enrolment.Runners.Get(r.Name); !errors.Is(err, gitlab.ErrUnknown) {
		t.Error(err)
	}
	_, _, err = c.RegisterFor(t.Context(), api.NewRunner{Forge: "gitlab", URL: f.URL, Token: ownToken + "x"})
	var problem *client.Problem
	if !errors.As(err, &problem) || problem.Status != http.StatusForbidden {
		t.Error(err)
	}
}
