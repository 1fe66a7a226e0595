package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	bkclient "github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
)

// display shows the progress of builds from the frames of their logs. BuildKit does work that several jobs share
// once, and tells each of them all of it: what is shown is what the first of them says.
type display struct {
	statuses chan *bkclient.SolveStatus
	done     chan struct{}

	mu      sync.Mutex
	notices map[string]*bkclient.Vertex // by job
	waiting *bkclient.Vertex            // until the first progress
	names   map[digest.Digest]string    // of steps
	speaks  map[digest.Digest]string    // whose log of a step is shown: a job's
}

func startDisplay(ctx context.Context, w io.Writer, mode string) *display {
	d := &display{
		statuses: make(chan *bkclient.SolveStatus), done: make(chan struct{}),
		notices: map[string]*bkclient.Vertex{}, names: map[digest.Digest]string{}, speaks: map[digest.Digest]string{},
	}
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

// wait shows that a build waits, until there is progress.
func (d *display) wait() {
	now := time.Now()
	d.waiting = &bkclient.Vertex{Digest: digest.FromString("runnerd/waiting"), Name: "[runnerd] waiting for the builder", Started: &now}
	d.send(&bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{d.waiting}})
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
		d.share(name, job, s)
		d.endWaiting()
		d.send(s)
	case runner.Notice, runner.Stdout, runner.Stderr:
		d.notice(name, job, f)
	}
}

// share names steps for the first target that has them, and leaves out what another job says of them too.
func (d *display) share(name, job string, s *bkclient.SolveStatus) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, v := range s.Vertexes {
		if d.names[v.Digest] == "" {
			d.names[v.Digest] = prefixed(name, v.Name)
		}
		v.Name = d.names[v.Digest]
	}
	s.Logs = slices.DeleteFunc(s.Logs, func(l *bkclient.VertexLog) bool {
		if d.speaks[l.Vertex] == "" {
			d.speaks[l.Vertex] = job
		}
		return d.speaks[l.Vertex] != job
	})
}

func (d *display) endWaiting() {
	d.mu.Lock()
	v := d.waiting
	d.waiting = nil
	d.mu.Unlock()
	d.complete(v)
}

// ended shows that there is no more to come from a job. What it has shared others may go on with.
func (d *display) ended(job string) {
	d.mu.Lock()
	v := d.notices[job]
	delete(d.notices, job)
	maps.DeleteFunc(d.speaks, func(_ digest.Digest, who string) bool { return who == job })
	d.mu.Unlock()
	d.complete(v)
}

func (d *display) complete(v *bkclient.Vertex) {
	if v == nil {
		return
	}
	now, done := time.Now(), *v
	done.Completed = &now
	d.send(&bkclient.SolveStatus{Vertexes: []*bkclient.Vertex{&done}})
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
	d.endWaiting()
	for job := range maps.Clone(d.notices) {
		d.ended(job)
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
