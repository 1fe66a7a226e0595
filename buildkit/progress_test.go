package buildkit

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
)

func TestDisplay(t *testing.T) {
	for mode, want := range map[string]string{"plain": "#1 0.000 hello", "rawjson": `"name":"[1/2] RUN echo hello"`, "quiet": "", "auto": "hello", "nonsense": "invalid"} {
		now := time.Now()
		v := &client.Vertex{Digest: digest.FromString("v"), Name: "[1/2] RUN echo hello", Started: &now}
		statuses := make(chan *client.SolveStatus, 1)
		statuses <- &client.SolveStatus{
			Vertexes: []*client.Vertex{v},
			Logs:     []*client.VertexLog{{Vertex: v.Digest, Stream: 1, Data: []byte("hello\n"), Timestamp: now}},
		}
		close(statuses)
		var out bytes.Buffer
		err := Display(t.Context(), &out, mode, statuses)
		if mode == "nonsense" {
			if err == nil {
				t.Error("an unknown mode was taken")
			}
			continue
		}
		if err != nil || !strings.Contains(out.String(), want) || mode == "quiet" && out.Len() > 0 {
			t.Errorf("%s: %v: %q", mode, err, out.String())
		}
	}
}

func TestTally(t *testing.T) {
	tally := newTally()
	for name, cached := range map[string]bool{
		"[internal] load build definition from Dockerfile": false, "[1/3] FROM docker.io/library/debian": true,
		"[2/3] RUN make": true, "[linux/amd64 build  3/12] COPY . /": false, "[stage-1 2/2] WORKDIR /x": true,
		"exporting to image": false, "[auth] token": false, "[context base] load .dockerignore": false, "[a]/1/2] no": false,
	} {
		tally.add(&client.SolveStatus{Vertexes: []*client.Vertex{{Digest: digest.FromString(name), Name: name, Cached: cached}}})
	}
	if steps, cached := tally.count(); steps != 3 || cached != 2 {
		t.Errorf("%d steps, %d cached", steps, cached)
	}
}
