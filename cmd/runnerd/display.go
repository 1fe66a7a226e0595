package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

// display shows the progress of builds from the frames of their logs.
type display struct {
	mu       sync.Mutex
	statuses chan *bkclient.SolveStatus
	done     chan struct{}
	notices  map[string]*bkclient.Vertex // by job
}

func startDisplay(ctx context.Context, w io.Writer, mode string) *display {
	d := &display{statuses: make(chan *bkclient.SolveStatus), done: make(chan struct{}), notices: map[string]*bkclient.Vertex{}}
	if _, tty := terminal(w); !tty && mode == "auto" {
		mode = "plain"
	}
	go func() {
		defer close(d.done)
		if err := buildkit.Display(ctx, w, mode, d.statuses); err != nil {
			_, _ = fmt.Fprintf(w, "runnerd: the progress is not shown: %v\n", err)
			for range d.statuses { // nobody is to wait for it
			}
		}
	}()
	return d
}

// showsFailures tells whether a mode of the progress ends with the log of the step that failed.
func showsFailures(mode string) bool { return mode != "quiet" && mode != "rawjson" }

// frame shows one frame of a job's log. name, if not empty, tells the jobs of one build apart.
func (d *display) frame(name, job string, f api.Frame) {
	switch f.Stream() {
	case runner.Progress:
		s := new(bkclient.SolveStatus)
		if json.Unmarshal(f.Data, s) != nil {
			return
		}
		if name != "" {
			for _, v := range s.Vertexes {
				v.Name = prefixed(name, v.Name)
			}
		}
		d.send(s)
	case runner.Notice, runner.Stdout, runner.Stderr:
		d.notice(name, job, f)
	}
}

// notice shows what is no progress of BuildKit's as the log of a step of its own.
func (d *display) notice(name, job string, f api.Frame) {
	d.mu.Lock()
	v, known := d.notices[job], true
	if v == nil {
		known = false
		started := f.Time
		v = &bkclient.Vertex{Digest: digest.FromString("runnerd/" + job), Name: prefixed(name, "[runnerd] job "+job), Started: &started}
		d.notices[job] = v
	}
	d.mu.Unlock()
	s := &bkclient.SolveStatus{Logs: []*bkclient.VertexLog{{Vertex: v.Digest, Stream: 1, Data: append([]byte(nil), f.Data...), Timestamp: f.Time}}}
	if !known {
		s.Vertexes = []*bkclient.Vertex{v}
	}
	d.send(s)
}

func (d *display) send(s *bkclient.SolveStatus) { d.statuses <- s }

// end shows what is left and returns when it is shown.
func (d *display) end() {
	now := time.Now()
	for _, v := range d.notices {
		ended := *v
		ended.Completed = &now
		d.send(&bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{&ended}})
	}
	close(d.statuses)
	<-d.done
}

// prefixed is a step's name with its target's in it, as docker buildx bake has it.
func prefixed(target, name string) string {
	if target == "" {
		return name
	}
	if rest, ok := strings.CutPrefix(name, "["); ok {
		return "[" + target + " " + rest
	}
	return "[" + target + "] " + name
}
