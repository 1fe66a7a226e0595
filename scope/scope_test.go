package scope

import (
	"strings"
	"testing"
)

func TestOf(t *testing.T) {
	for _, c := range []struct {
		origin Origin
		want   string
	}{
		{Origin{}, "default (untrusted)"},
		{Origin{Protected: true}, "default"},
		{Origin{Project: "p", Protected: true}, "p"},
		{Origin{Forge: "GitLab.example.com", Project: "g/p", Kind: Branch, Protected: true}, "gitlab.example.com/g/p"},
		{Origin{Forge: "f", Project: "p", Kind: Tag, Protected: true}, "f/p"},
		{Origin{Forge: "f", Project: "p", Kind: Tag}, "f/p (untrusted)"},
		{Origin{Forge: "f", Project: "p", Kind: Branch}, "f/p (untrusted)"},
		{Origin{Forge: "f", Project: "p", Kind: MergeRequest, Protected: true}, "f/p (untrusted)"},
		{Origin{Forge: "f", Project: "p", Kind: Branch, Protected: true, Fork: true}, "f/p (untrusted)"},
	} {
		got, err := Of(c.origin)
		if err != nil || got.String() != c.want {
			t.Errorf("Of(%+v) = %v, %v, want %s", c.origin, got, err, c.want)
		}
	}
	for _, bad := range []Origin{
		{Forge: "f"}, {Project: "a\x00b"}, {Project: "a\nb"}, {Project: "a\xff"}, {Project: "a\u202eb"}, {Project: strings.Repeat("p", 501)},
	} {
		if got, err := Of(bad); err == nil || !got.IsZero() {
			t.Errorf("Of(%+v) = %v, %v, want an error", bad, got, err)
		}
	}
}

// TestMatrix holds the whole of who may do what: 5 kinds of refs of 2 projects, each against each.
func TestMatrix(t *testing.T) {
	refs := []Origin{
		{Kind: Branch}, {Kind: Branch, Protected: true}, {Kind: MergeRequest}, {Kind: MergeRequest, Fork: true}, {Kind: Tag, Protected: true},
	}
	var all []Origin
	for _, project := range []string{"a", "b"} {
		for _, o := range refs {
			o.Forge, o.Project = "forge", project
			all = append(all, o)
		}
	}
	for _, actor := range all {
		for _, owner := range all {
			a, err := Of(actor)
			if err != nil {
				t.Fatal(err)
			}
			o, err := Of(owner)
			if err != nil {
				t.Fatal(err)
			}
			same := actor.Project == owner.Project
			if got, want := a.MayWrite(o), same && actor.Protected == owner.Protected; got != want {
				t.Errorf("%v may write of %v: %v, want %v", a, o, got, want)
			}
			if got, want := a.MayRead(o), same && (owner.Protected || !actor.Protected); got != want {
				t.Errorf("%v may read of %v: %v, want %v", a, o, got, want)
			}
		}
	}
}

func TestZeroMayNothing(t *testing.T) {
	var zero Scope
	some := Scope{Forge: Local, Project: "p", Trust: Trusted}
	for _, c := range [][2]Scope{{zero, zero}, {zero, some}, {some, zero}} {
		if c[0].MayRead(c[1]) || c[0].MayWrite(c[1]) {
			t.Errorf("%+v may read or write %+v", c[0], c[1])
		}
	}
	if above, ok := zero.Above(); ok {
		t.Errorf("above nobody is %v", above)
	}
}

func FuzzID(f *testing.F) {
	f.Add("f", "p", "f/p", "")
	f.Add("1:a", "b", "1", "a b")
	f.Fuzz(func(t *testing.T, forge1, project1, forge2, project2 string) {
		one, two := Scope{forge1, project1, Trusted}, Scope{forge2, project2, Trusted}
		if (one == two) != (one.ID() == two.ID()) {
			t.Errorf("%q and %q: ids %s and %s", one, two, one.ID(), two.ID())
		}
		if low := (Scope{forge1, project1, Untrusted}); low.ID() == one.ID() {
			t.Errorf("%q has one id for both levels", one)
		}
	})
}
