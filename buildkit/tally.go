package buildkit

import (
	"io"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

type writer = io.WriteCloser

// tally counts a build's steps from the statuses that BuildKit sends.
type tally struct {
	steps map[digest.Digest]*client.Vertex
}

func newTally() *tally { return &tally{map[digest.Digest]*client.Vertex{}} }

func (t *tally) add(s *client.SolveStatus) {
	for _, v := range s.Vertexes {
		t.steps[v.Digest] = v // a later status of a vertex holds all of it
	}
}

// isStep tells what a Dockerfile does (RUN, COPY, …) from what surrounds it: loading, resolving, exporting, and FROM, which does nothing.
func isStep(v *client.Vertex) bool {
	return strings.HasPrefix(v.Name, "[") && !strings.HasPrefix(v.Name, "[internal]") && !strings.HasPrefix(v.Name, "[auth]") && !strings.Contains(v.Name, "] FROM ")
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

// failed names the step that failed; "" if none did.
func (t *tally) failed() string {
	for _, v := range t.steps {
		if v.Error != "" && !strings.Contains(v.Error, "context canceled") {
			return v.Name
		}
	}
	return ""
}
