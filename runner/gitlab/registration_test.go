package gitlab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/runnerd/runnerd/sandbox"
)

const testToken = "glrt-t1_abcdefghijklmnopqrst"

func testRegistration(name string) Registration {
	return Registration{Name: name, URL: "https://gitlab.example.com", Token: testToken + name}
}

func openRegistrations(t *testing.T, dir string) *Registrations {
	t.Helper()
	rs, err := OpenRegistrations(dir)
	if err != nil {
		t.Fatal(err)
	}
	return rs
}

func TestRegistrationsAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "runners")
	rs := openRegistrations(t, dir)
	r := testRegistration("one")
	r.Env, r.Limits, r.TokenExpires = []string{"A=b=c"}, sandbox.Limits{CPU: 1500, Memory: 1 << 30}, time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	changed := rs.Changed()
	if err := rs.Add(r); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
	fi, err := os.Stat(filepath.Join(dir, "one.json"))
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("the file of a token: %v %v", fi, err)
	}
	if fi, err := os.Stat(dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v %v", fi, err)
	}
	if err := rs.Update("one", func(r *Registration) { r.Token, r.Name = "glrt-t1_another-one", "other" }); err != nil {
		t.Fatal(err)
	}
	again := openRegistrations(t, dir)
	got, err := again.Get("one")
	if err != nil || got.Token != "glrt-t1_another-one" || got.Name != "one" || got.Limits != r.Limits || !got.TokenExpires.Equal(r.TokenExpires) ||
		!slices.Equal(got.Env, r.Env) || got.Nesting.String() != "container" || got.Executor != DefaultExecutor || got.SystemID != rs.SystemID() {
		t.Errorf("read again: %+v %v", got, err)
	}
	if err := again.Remove("one"); err != nil {
		t.Fatal(err)
	}
	if err := again.Remove("one"); !errors.Is(err, ErrUnknown) {
		t.Errorf("removed twice: %v", err)
	}
	if left := openRegistrations(t, dir).List(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestSystemIDStays(t *testing.T) {
	dir := t.TempDir()
	rs := openRegistrations(t, dir)
	id := rs.SystemID()
	if !systemIDForm.MatchString(id) {
		t.Errorf("system id %q", id)
	}
	if again := openRegistrations(t, dir).SystemID(); again != id {
		t.Errorf("it became %q, was %q", again, id)
	}
	if err := os.WriteFile(filepath.Join(dir, systemIDFile), []byte("s_\x1b[2J"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRegistrations(dir); err == nil {
		t.Error("a broken system id is taken")
	}
}

func TestNamesAndTokensAreUnique(t *testing.T) {
	rs := openRegistrations(t, t.TempDir())
	r := testRegistration("one")
	if err := rs.Add(r); err != nil {
		t.Fatal(err)
	}
	if err := rs.Add(r); !errors.Is(err, ErrExists) {
		t.Errorf("the same name: %v", err)
	}
	r.Name = "two"
	if err := rs.Add(r); !errors.Is(err, ErrExists) {
		t.Errorf("the same token: %v", err)
	}
	r.URL = "https://other.example.com"
	if err := rs.Add(r); err != nil {
		t.Errorf("the same token of another forge: %v", err)
	}
}

func TestHostileRegistrations(t *testing.T) {
	rs := openRegistrations(t, t.TempDir())
	for _, name := range []string{"", ".", "..", ".system-id", ".tmp-a", "a/b", "../a", "a\x00", "a\n", "-a", "a b", "ä", strings.Repeat("a", 64)} {
		if err := rs.Add(testRegistration(name)); err == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
	for what, change := range map[string]func(r *Registration){
		"no scheme":           func(r *Registration) { r.URL = "gitlab.example.com" },
		"another scheme":      func(r *Registration) { r.URL = "file:///etc/passwd" },
		"a user in the URL":   func(r *Registration) { r.URL = "https://a:b@gitlab.example.com" },
		"a slash at its end":  func(r *Registration) { r.URL = "https://gitlab.example.com/" },
		"the API's path":      func(r *Registration) { r.URL = "https://gitlab.example.com/api/v4" },
		"a query":             func(r *Registration) { r.CloneURL = "https://gitlab.example.com?a=b" },
		"a line in the token": func(r *Registration) { r.Token = "glrt-aaaaaaaa\r\nX: y" },
		"no token":            func(r *Registration) { r.Token = "" },
		"a system id":         func(r *Registration) { r.SystemID = "x" },
		"less than none":      func(r *Registration) { r.Concurrent = -1 },
		"less memory":         func(r *Registration) { r.Limits.Memory = -1 },
		"a worker":            func(r *Registration) { r.Nesting = sandbox.Nesting{sandbox.BuildKit} },
		"a relative path":     func(r *Registration) { r.Builds = "builds" },
		"a detour":            func(r *Registration) { r.CAFile = "/etc/../root/ca.pem" },
		"no key":              func(r *Registration) { r.Env = []string{"=a"} },
		"an image":            func(r *Registration) { r.Image = "alpine\n" },
		"a pull policy":       func(r *Registration) { r.Pull = "sometimes" },
	} {
		r := testRegistration("a")
		change(&r)
		if err := rs.Add(r); err == nil {
			t.Errorf("%s: is taken", what)
		} else if strings.Contains(err.Error(), "glrt-aaa") || strings.Contains(err.Error(), "a:b@") {
			t.Errorf("%s: tells a secret: %v", what, err)
		}
	}
	if left := rs.List(); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

func TestBrokenFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	rs := openRegistrations(t, dir)
	for _, name := range []string{"good", "open", "moved"} {
		if err := rs.Add(testRegistration(name)); err != nil {
			t.Fatal(err)
		}
	}
	file := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(
		os.WriteFile(file("cut.json"), []byte(`{"name": "cut", "ur`), 0o600),
		os.Chmod(file("open.json"), 0o644),
		os.Rename(file("moved.json"), file("here.json")),
		os.WriteFile(file(".tmp-good.json123"), []byte("{"), 0o600),
		os.WriteFile(file("README"), []byte("is not ours"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenRegistrations(dir)
	for _, want := range []string{"cut.json", "open.json", "chmod 600", "here.json"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is not named: %v", want, err)
		}
	}
	if err == nil || strings.Contains(err.Error(), "good") || strings.Contains(err.Error(), "README") {
		t.Errorf("a good one is named: %v", err)
	}
	if _, err := os.Stat(file(".tmp-good.json123")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a cut off write left is there: %v", err)
	}
}

func TestEphemeralRegistrationsAreNotWritten(t *testing.T) {
	dir := t.TempDir()
	rs := openRegistrations(t, dir)
	r := testRegistration("exec")
	r.Ephemeral = true
	if err := rs.Add(r); err != nil {
		t.Fatal(err)
	}
	if left := openRegistrations(t, dir).List(); len(left) != 0 {
		t.Errorf("written: %v", left)
	}
	if err := rs.Remove("exec"); err != nil {
		t.Error(err)
	}
}

func TestRegistrationsAreSafeTogether(t *testing.T) {
	dir := t.TempDir()
	rs := openRegistrations(t, dir)
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			name := fmt.Sprint("r", i)
			if err := rs.Add(testRegistration(name)); err != nil {
				t.Error(err)
			}
			for range 5 {
				if err := rs.Update(name, func(r *Registration) { r.Concurrent++ }); err != nil {
					t.Error(err)
				}
				rs.List()
			}
		})
	}
	all.Wait()
	for _, r := range openRegistrations(t, dir).List() {
		if r.Concurrent != 5 {
			t.Errorf("%s: %d", r.Name, r.Concurrent)
		}
	}
}

func TestTokensAreNotLogged(t *testing.T) {
	var b strings.Builder
	r := testRegistration("one")
	r.Env = []string{"PASSWORD=sesame"}
	slog.New(slog.NewTextHandler(&b, nil)).Info("runner", "runner", r)
	if strings.Contains(b.String(), r.Token) || strings.Contains(b.String(), "sesame") || !strings.Contains(b.String(), "one") {
		t.Error(b.String())
	}
	for token, want := range map[string]string{testToken: "glrt-t1_abcd", "acme-glrt-t1_abcdefghijklmnopqrst": "acme-glrt-t1_abcd", "glrtr-abcdefghijklmnopqrstuvwxyzabc": "glrtr-abcdefghi", "GR1348941abcdefghijklmnop": "GR1348941abcde", "abcdefghi": "abc", "": ""} {
		if got := ShortToken(token); got != want {
			t.Errorf("%q: %q, want %q", token, got, want)
		}
	}
}

func TestNormalURL(t *testing.T) {
	for text, want := range map[string]string{
		"https://GitLab.example.com/":            "https://gitlab.example.com",
		"https://gitlab.example.com/api/v4/":     "https://gitlab.example.com",
		"https://gitlab.example.com/ci":          "https://gitlab.example.com",
		"http://host:8080/gitlab//":              "http://host:8080/gitlab",
		"https://gitlab.example.com/sub/api/v4":  "https://gitlab.example.com/sub",
		"ssh://git@gitlab.example.com":           "",
		"https://":                               "",
		"https://gitlab.example.com/#x":          "",
		"https://u:p@gitlab.example.com/":        "",
		"https://gitlab.example.com\n.evil.test": "",
	} {
		got, err := NormalURL(text)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
}
