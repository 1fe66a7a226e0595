package main

import (
	"strings"
	"testing"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

func TestWriteTable(t *testing.T) {
	var out buffer
	rows := [][]string{{"TARGET", "OUTCOME", "JOB"}, {"a", "\x1b[32msucceeded\x1b[0m", "x1"}, {"größer", "\x1b[31mfailed\x1b[0m", ""}}
	if err := writeTable(&out, rows); err != nil {
		t.Fatal(err)
	}
	const want = "TARGET  OUTCOME    JOB\na       \x1b[32msucceeded\x1b[0m  x1\ngrößer  \x1b[31mfailed\x1b[0m\n"
	if out.String() != want {
		t.Errorf("%q", out.String())
	}
}

// TestDisplayShares holds that a step that two jobs share is shown once, by the name that it came with.
func TestDisplayShares(t *testing.T) {
	d := &display{statuses: make(chan *bkclient.SolveStatus, 100), notices: map[string]*bkclient.Vertex{}, names: map[digest.Digest]string{}, speaks: map[digest.Digest]string{}}
	step := digest.FromString("step")
	say := func(target, job, text string) {
		s := &bkclient.SolveStatus{
			Vertexes: []*bkclient.Vertex{{Digest: step, Name: "[base 1/2] RUN true"}},
			Logs:     []*bkclient.VertexLog{{Vertex: step, Data: []byte(text)}},
		}
		d.share(target, job, s)
		d.send(s)
	}
	say("one", "job1", "a")
	say("two", "job2", "a")
	say("one", "job1", "b")
	d.ended("job1")
	say("two", "job2", "c")
	close(d.statuses)
	var names, logs []string
	for s := range d.statuses {
		for _, v := range s.Vertexes {
			names = append(names, v.Name)
		}
		for _, l := range s.Logs {
			logs = append(logs, string(l.Data))
		}
	}
	if got := strings.Join(logs, ""); got != "abc" {
		t.Errorf("logs %q", got)
	}
	for _, n := range names {
		if n != "[one base 1/2] RUN true" {
			t.Errorf("name %q", n)
		}
	}
}
