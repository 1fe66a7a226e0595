package main

import (
	"context"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox"
)

// noticesStep shows the attached client what a step says of itself, which otherwise is in the job's log only. What the
// runner says, why the job waits and how it ended, the client has from the job's states.
type noticesStep struct {
	runner.Step
	job      string
	secrets  []string // what the client must not see
	sessions *api.Attachments
}

func (s noticesStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	client, err := s.sessions.Session(ctx, s.job)
	if err != nil {
		return sandbox.Exit{}, fmt.Errorf("attach the job to its client: %w", err)
	}
	mask := runner.NewMask(s.secrets).Writer(client.Stream(ctx, runner.Notice))
	defer mask.Close()
	return s.Step.Run(ctx, on, noticesOutput{out, mask})
}

type noticesOutput struct {
	runner.Output
	client *runner.MaskWriter
}

func (o noticesOutput) Stream(stream runner.Stream) io.Writer {
	w := o.Output.Stream(stream)
	if stream != runner.Notice {
		return w
	}
	return noticesWriter{log: w, client: o.client}
}

type noticesWriter struct {
	log    io.Writer
	client *runner.MaskWriter
}

// Write writes a sentence to the log and then to the client. That the client is gone ends the job, not the sentence.
func (w noticesWriter) Write(p []byte) (int, error) {
	n, err := w.log.Write(p)
	if _, gone := w.client.Write(p); gone == nil {
		_ = w.client.Flush() // a sentence is complete
	}
	return n, err
}
