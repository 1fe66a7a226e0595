package cache

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/runnerd/runnerd/scope"
)

// refs are the jobs of the matrix: what a job runs for, in two projects.
func refs(t *testing.T) map[string]scope.Scope {
	all := map[string]scope.Scope{}
	for _, project := range []string{"group/one", "group/two"} {
		for name, o := range map[string]scope.Origin{
			"branch":           {Kind: scope.Branch},
			"protected branch": {Kind: scope.Branch, Protected: true},
			"merge request":    {Kind: scope.MergeRequest, Protected: true},
			"fork":             {Kind: scope.Branch, Protected: true, Fork: true},
			"tag":              {Kind: scope.Tag, Protected: true},
		} {
			o.Forge, o.Project = "forge.test", project
			s, err := scope.Of(o)
			if err != nil {
				t.Fatal(err)
			}
			all[project+" "+name] = s
		}
	}
	return all
}

// may is the matrix, written down again: who may read and write whose caches.
func may(by, owner string) (read, write bool) {
	trusted := func(ref string) bool {
		return strings.HasSuffix(ref, "protected branch") || strings.HasSuffix(ref, "tag")
	}
	if by[:9] != owner[:9] {
		return false, false
	}
	return trusted(owner) || trusted(owner) == trusted(by), trusted(owner) == trusted(by)
}

// TestTrust tries every read and write of each kind of ref of what each other has, by the store's API, where what
// is illegal fails and leaves all as it was, and past its check, where the same succeeds.
func TestTrust(t *testing.T) {
	s := fileStore(t)
	all := refs(t)
	illegal := 0
	for by, me := range all {
		for owner, them := range all {
			key := fmt.Sprint(by, owner)
			save(t, s, them, key, []byte("theirs"))
			mayRead, mayWrite := may(by, owner)

			e, err := s.Lookup(t.Context(), me, them, key)
			if got := e != nil && err == nil; got != mayRead || !mayRead && !errors.Is(err, ErrDenied) {
				t.Errorf("%s reads %s: %v, %v", by, owner, got, err)
			}
			if _, e := find(t, s, me, key); (e != nil) != mayRead {
				t.Errorf("%s finds what %s has: %v", by, owner, e != nil)
			}
			_, err = s.Save(t.Context(), me, them, key, "evil", strings.NewReader("mine"))
			if (err == nil) != mayWrite || !mayWrite && !errors.Is(err, ErrDenied) {
				t.Errorf("%s writes %s: %v", by, owner, err)
			}
			if got, _ := find(t, s, them, key); (string(got) == "mine") != mayWrite {
				t.Errorf("%s writes %s: it has %q", by, owner, got)
			}

			if !mayRead { // with the check gone
				illegal++
				if e, err := s.read(t.Context(), entryPath(them, key)); e == nil || err != nil {
					t.Errorf("the read of %s by %s that is denied would not have worked: %v", owner, by, err)
				}
			}
			if !mayWrite {
				illegal++
				if _, err := s.save(t.Context(), &Entry{Scope: them, Key: key, Job: "evil", path: entryPath(them, key)}, strings.NewReader("mine")); err != nil {
					t.Error(err)
				}
				if got, _ := find(t, s, them, key); string(got) != "mine" {
					t.Errorf("the write of %s by %s that is denied would not have worked", owner, by)
				}
			}
			if _, err := s.Remove(t.Context(), []string{entryPath(them, key)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Of 100 pairs 50 are of two projects. In each project 3 kinds of ref are untrusted and 2 trusted: 12 writes up,
	// 12 reads and as many writes down.
	if want := 2*50 + 12 + 12 + 12; illegal != want {
		t.Errorf("%d illegal reads and writes were tried, not %d", illegal, want)
	}

	var nobody scope.Scope
	if _, err := s.Save(t.Context(), nobody, nobody, "k", "j", strings.NewReader("x")); !errors.Is(err, ErrDenied) {
		t.Error("nobody writes: ", err)
	}
	if _, err := s.Lookup(t.Context(), nobody, nobody, "k"); !errors.Is(err, ErrDenied) {
		t.Error("nobody reads: ", err)
	}
}

// hostileKeys look like paths, like each other, or like nothing.
var hostileKeys = []string{
	"../x", "../../etc/passwd", "/etc/passwd", "/./", "a/./b", "a//b", "a/b", "a/../a/b", ".", "..", "/", "a/", "a",
	"A", "\u00e9", "e\u0301", "\ufb01", "fi", "\u041a", "\u212a", "K", "%2e%2e%2f", "a%00", "-protected", "key-protected", "key", "key/../key-protected",
	" ", "a ", " a", "$HOME", "*", "?", "a*", "..\\x", "chunks", "entries/x", "\u202ea", "\u200ba", "\ufeffa", "💥",
	strings.Repeat("x", maxKey), strings.Repeat("../", 341), "__0x2f__", "../chunks/" + strings.Repeat("0", 64),
}

func TestHostileKeys(t *testing.T) {
	stores(t, func(t *testing.T, s *Store) {
		save(t, s, other, "k", []byte("other"))
		saved := map[string]bool{}
		for _, key := range hostileKeys {
			if err := CheckKey(key); err != nil {
				continue
			}
			if saved[key] {
				t.Fatalf("%q is twice in the list", key)
			}
			if _, e := find(t, s, trusted, key); e != nil {
				t.Errorf("%q finds what was saved as %q", key, e.Key)
			}
			save(t, s, trusted, key, []byte(key))
			saved[key] = true
		}
		if len(saved) < 40 {
			t.Errorf("only %d keys are allowed", len(saved))
		}
		for key := range saved {
			if got, e := find(t, s, trusted, key); string(got) != key || e.Key != key || e.Scope != trusted {
				t.Errorf("%q has %q of %+v", key, got, e)
			}
			if _, e := find(t, s, other, key); e != nil {
				t.Errorf("%q has left its scope", key)
			}
		}
		for _, key := range []string{"", "\x00", "a\x00b", "a\nb", "\x7f", "\u0085", "\xff", strings.Repeat("x", maxKey+1), strings.Repeat("k", 10<<10)} {
			if _, err := s.Save(t.Context(), trusted, trusted, key, "j", strings.NewReader("x")); !errors.Is(err, ErrKey) {
				t.Errorf("%.20q: %v", key, err)
			}
			if _, err := s.Find(t.Context(), trusted, key); !errors.Is(err, ErrKey) {
				t.Errorf("%.20q: %v", key, err)
			}
		}
	})
}

func FuzzKeys(f *testing.F) {
	for _, key := range hostileKeys {
		f.Add(key, key+"x")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		if CheckKey(a) != nil || CheckKey(b) != nil {
			return
		}
		if pa, pb := entryPath(trusted, a), entryPath(trusted, b); (pa == pb) != (a == b) || !strings.HasPrefix(pa, projectID(trusted)+entriesDir+trusted.ID()+"/") || strings.Contains(pa, "..") {
			t.Errorf("%q: %s, %q: %s", a, pa, b, pb)
		}
	})
}

func TestPolicies(t *testing.T) {
	for _, p := range []struct {
		policy      Policy
		pull, pushs bool
	}{{"", true, true}, {Pull, true, false}, {Push, false, true}, {PullPush, true, true}} {
		if p.policy.Pulls() != p.pull || p.policy.Pushes() != p.pushs {
			t.Errorf("%q", p.policy)
		}
	}
	for _, w := range []struct {
		when            When
		success, failed bool
	}{{"", true, false}, {OnSuccess, true, false}, {OnFailure, false, true}, {Always, true, true}} {
		if w.when.Holds(true) != w.success || w.when.Holds(false) != w.failed {
			t.Errorf("%q", w.when)
		}
	}
}
