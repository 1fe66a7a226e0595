package buildkit

import (
	"errors"
	"regexp"
	"strings"

	"github.com/moby/buildkit/client"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/sandbox"
)

// tally counts a build's steps from the statuses that BuildKit sends, and keeps the end of what each wrote.
//
// A step is a numbered vertex ("[stage 2/5] RUN make"): what a Dockerfile does. What surrounds it is not
// counted: loading, resolving, exporting; nor is FROM, which does nothing, nor what only changes the image's
// configuration, which is no vertex. A step that two platforms or two linked targets share counts once.
type tally struct {
	steps map[digest.Digest]*client.Vertex
	logs  map[digest.Digest]*sandbox.Tail
}

const (
	logBytes = 8 << 10 // of a step's end that are kept
	logLines = 20
)

func newTally() *tally {
	return &tally{map[digest.Digest]*client.Vertex{}, map[digest.Digest]*sandbox.Tail{}}
}

func (t *tally) add(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		t.steps[v.Digest] = v // a later status of a vertex holds all of it
	}
	for _, l := range s.Logs {
		tail := t.logs[l.Vertex]
		if tail == nil {
			tail = sandbox.NewTail(logBytes)
			t.logs[l.Vertex] = tail
		}
		_, _ = tail.Write(l.Data)
	}
}

var stepName = regexp.MustCompile(`^\[(?:[^\]]* )?\d+/\d+\] `)

func isStep(v *client.Vertex) bool {
	return stepName.MatchString(v.Name) && !strings.Contains(v.Name, "] FROM ")
}

// count returns how many steps there were, and how many of them the cache held.
func (t *tally) count() (steps, cached int) {
	for _, v := range t.steps {
		if !isStep(v) {
			continue
		}
		steps++
		if v.Cached {
			cached++
		}
	}
	return steps, cached
}

// failed names the step that err comes from, and the last lines it wrote; "" if it comes from none.
func (t *tally) failed(err error) (step, log string) {
	var first *client.Vertex
	var vertex *solvererrdefs.VertexError
	if errors.As(err, &vertex) {
		first = t.steps[digest.Digest(vertex.Digest)]
	}
	if first == nil {
		for _, v := range t.steps {
			if v.Error == "" || v.Completed == nil || strings.Contains(v.Error, "context canceled") {
				continue
			}
			if first == nil || v.Completed.Before(*first.Completed) {
				first = v
			}
		}
	}
	if first == nil {
		return "", ""
	}
	if tail := t.logs[first.Digest]; tail != nil {
		lines := strings.Split(tail.String(), "\n")
		log = strings.Join(lines[max(0, len(lines)-logLines):], "\n")
	}
	return first.Name, log
}
