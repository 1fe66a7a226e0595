package buildkit

import (
	"io/fs"
	"slices"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
)

func TestTaken(t *testing.T) {
	all := []string{"a", "src", "src/a.go", "src/b.go", "src/doc", "src/doc/x", "srcs"}
	for _, c := range []struct {
		taken Taken
		want  []string
	}{
		{Taken{Paths: []string{"."}}, all},
		{Taken{Paths: []string{"a"}}, []string{"a"}},
		{Taken{Paths: []string{"src"}}, []string{"src", "src/a.go", "src/b.go", "src/doc", "src/doc/x"}},
		{Taken{Paths: []string{"src/*.go", "a"}}, []string{"a", "src/a.go", "src/b.go"}},
		{Taken{Paths: []string{"src/d*"}}, []string{"src/doc", "src/doc/x"}},
		{Taken{Paths: []string{"src"}, Exclude: []string{"doc"}}, []string{"src", "src/a.go", "src/b.go"}},
		{Taken{Paths: []string{"."}, Include: []string{"/src/doc"}}, []string{"src/doc", "src/doc/x"}},
		{Taken{Paths: []string{"[", "nothing"}}, nil},
		{Taken{}, nil},
	} {
		m := Manifest{}
		for _, path := range all {
			m.Files = append(m.Files, File{Path: path, Sum: "x"})
		}
		var got []string
		for _, f := range m.Taken(c.taken) {
			got = append(got, f.Path)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%+v takes %v, want %v", c.taken, got, c.want)
		}
	}
}

// TestManifestSum holds that a sum stands for all that is taken, or is none.
func TestManifestSum(t *testing.T) {
	take := []Taken{{Paths: []string{"a"}}}
	one := Manifest{Files: []File{{Path: "a", Sum: "1"}, {Path: "b", Sum: "1"}}}
	for name, other := range map[string]Manifest{
		"contents": {Files: []File{{Path: "a", Sum: "2"}}},
		"mode":     {Files: []File{{Path: "a", Sum: "1", Mode: 0o100}}},
		"link":     {Files: []File{{Path: "a", Sum: "1", Mode: fs.ModeSymlink}}},
		"none":     {},
	} {
		if one.sum(take) == other.sum(take) {
			t.Errorf("%s: the sums are equal", name)
		}
	}
	if same := (Manifest{Files: []File{{Path: "a", Sum: "1"}, {Path: "b", Sum: "2"}}, Partial: "more"}); one.sum(take) != same.sum(take) {
		t.Error("what is not taken changes the sum")
	}
	for name, unknown := range map[string]Manifest{
		"a file that was not read": {Files: []File{{Path: "a"}}, Partial: "more"},
		"a failure":                {Partial: "permission denied"},
	} {
		if sum := unknown.sum(take); sum != "" {
			t.Errorf("%s: %s", name, sum)
		}
	}
}

func TestWritten(t *testing.T) {
	at := time.Now()
	record := func(description string, after time.Duration) *client.UsageInfo {
		return &client.UsageInfo{Description: description, CreatedAt: at.Add(after)}
	}
	run := Written{Name: "[2/3] RUN make", Args: []string{"/bin/sh", "-c", "make"}, From: at, To: at.Add(10 * time.Second)}
	file := Written{Name: "[2/3] COPY a /", From: at, To: at.Add(10 * time.Second)}
	elsewhere := Written{Name: run.Name, Args: run.Args}
	for _, c := range []struct {
		w    Written
		u    *client.UsageInfo
		want bool
	}{
		{run, record("mount / from exec /bin/sh -c make", time.Second), true},
		{run, record("mount / from exec /bin/sh -c make", -time.Minute), false},
		{run, record("mount / from exec /bin/sh -c make", time.Minute), false},
		{run, record("mount / from exec /bin/sh -c make test", time.Second), false},
		{run, record("[2/3] RUN make", time.Second), false},
		{run, record("imported sha256:00", time.Second), false},
		{file, record("[2/3] COPY a /", time.Second), true},
		{file, record("[2/3] COPY b /", time.Second), false},
		{elsewhere, record("mount / from exec /bin/sh -c make", -time.Hour), true},
		{elsewhere, record("imported sha256:00", -time.Hour), true},
		{elsewhere, record("pulled from docker.io/library/debian", -time.Hour), false},
	} {
		if got := c.w.left(c.u); got != c.want {
			t.Errorf("%+v, %+v: %t", c.w, c.u, got)
		}
	}
}
