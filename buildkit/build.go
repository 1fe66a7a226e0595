package buildkit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	gateway "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/opencontainers/go-digest"
)

// Build is one target of a plan, ready to be built. Nothing but what it says goes into the build: neither the
// environment nor the home directory of the process is read.
type Build struct {
	Dir     string // holds all local paths of the plan
	Plan    Plan   // Target and all it takes
	Target  string
	Secrets map[string][]byte // values by id; memory only
	// SSH connects to agents, by id; "default" is the one that has no id in the Dockerfile. A connection
	// ends with the build's context.
	SSH map[string]Dial
	// Auth are the credentials for registries, by host (host:port if it has one).
	Auth map[string]Credentials
	// Push sends the image to the registry that its tags name, over plain HTTP if Insecure says so.
	Push     bool
	Insecure func(host string) bool
	// Create makes the file that a "type=oci", "docker", "tar" or "local" output writes; nil: they are refused.
	// A "local" output is a tar of its directory: its files are foreign, so they are not made on this machine.
	Create func(name string) (io.WriteCloser, error)
	// Record, when not nil, is told what the build was made of when it has ended, however it did. What it is told is
	// to be completed.
	Record func(Record)
}

// Dial opens one connection.
type Dial func(ctx context.Context) (net.Conn, error)

// Output is a file that a build has written.
type Output struct {
	Name string `json:"name"` // as Create was given it
	Type string `json:"type"` // as the target has it
	Dest string `json:"dest"` // where the user wants it
	Size int64  `json:"size"` // bytes
}

// Result is what came of a build.
type Result struct {
	Target   string        `json:"target"`
	Digest   string        `json:"digest,omitempty"` // of the image's manifest or index
	Tags     []string      `json:"tags,omitempty"`
	Steps    int           `json:"steps"`  // of the Dockerfiles: RUN, COPY, ADD, WORKDIR; see tally
	Cached   int           `json:"cached"` // of Steps, those that the cache held
	Duration time.Duration `json:"duration_ns"`
	Outputs  []*Output     `json:"outputs,omitempty"`
	Failed   *StepError    `json:"failed,omitempty"` // of a build that failed by the user's doing
}

// Run builds the target with a worker's client. progress is called with every status BuildKit sends, from
// one goroutine. A build that fails by the user's doing is a *StepError.
func (b Build) Run(ctx context.Context, c *client.Client, progress func(*client.SolveStatus)) (Result, error) {
	began := time.Now()
	target, ok := b.Plan.Targets[b.Target]
	if !ok {
		return Result{}, fmt.Errorf("the plan has no target %q", b.Target)
	}
	if err := b.Plan.acyclic(b.Target); err != nil {
		return Result{}, err
	}
	opt, err := b.sessionOpt()
	if err != nil {
		return Result{}, err
	}
	outputs, err := b.exports(&opt, target)
	if err != nil {
		return Result{}, err
	}
	sessions, end, err := b.contextSessions(ctx, c)
	defer end()
	if err != nil {
		return Result{}, err
	}
	recorder := &recorder{build: b, sessions: sessions, keep: b.Record != nil, known: map[digest.Digest]int{}, locals: map[string]localSource{}}
	statuses := make(chan *client.SolveStatus)
	tally := newTally()
	var follow sync.WaitGroup
	follow.Go(func() {
		for status := range statuses {
			tally.add(status)
			if progress != nil {
				progress(status)
			}
		}
	})
	response, err := c.Build(ctx, opt, "runnerd", func(ctx context.Context, gw gateway.Client) (*gateway.Result, error) {
		return newSolver(b, gw, sessions, recorder).solve(ctx, b.Target)
	}, statuses)
	follow.Wait()
	result := Result{Target: b.Target, Tags: target.Tags, Duration: time.Since(began)}
	result.Steps, result.Cached = tally.count()
	if b.Record != nil {
		b.Record(recorder.record(tally))
	}
	if err != nil {
		if ctx.Err() != nil {
			return result, context.Cause(ctx)
		}
		err = classify(err, tally)
		if errors.As(err, &result.Failed) {
			result.Failed.Message = result.Failed.Error()
		}
		return result, err
	}
	result.Digest = response.ExporterResponse[exptypes.ExporterImageDigestKey]
	result.Outputs = outputs
	return result, nil
}
