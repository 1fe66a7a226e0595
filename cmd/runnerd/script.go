package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/runner/queue"
	"github.com/runnerd/runnerd/sandbox"
)

// scriptStep runs a job's one command.
type scriptStep struct {
	id       string
	script   api.Script
	attach   bool
	secrets  []string // what the client must not see either
	sessions *api.Attachments
}

// newScriptStep reads a request of KindScript when its turn has come.
func newScriptStep(ctx context.Context, r runner.Request, sessions *api.Attachments) (scriptStep, error) {
	s := scriptStep{id: r.ID, attach: r.Attach, secrets: queue.SubmittedSecrets(ctx), sessions: sessions}
	if err := json.Unmarshal(r.Payload, &s.script); err != nil {
		return s, fmt.Errorf("read the script: %w", err)
	}
	return s, nil
}

func (s scriptStep) Name() string { return s.script.Command[0] }

// Run runs the command. With an attached client its output goes there, all of it, and to the log, as much as
// that holds; the command ends when the client goes away, because the API then cancels the job.
func (s scriptStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	p := sandbox.Process{
		Args: s.script.Command, Dir: s.script.Dir, User: s.script.User,
		Stdout: out.Stream(runner.Stdout), Stderr: out.Stream(runner.Stderr),
	}
	if !s.attach {
		return on.Exec(ctx, p)
	}
	client, err := s.sessions.Session(ctx, s.id)
	if err != nil {
		return sandbox.Exit{}, fmt.Errorf("attach the command to its client: %w", err)
	}
	p.Signals = client.Signals
	mask := runner.NewMask(s.secrets)
	stdout, stderr := mask.Writer(client.Stream(ctx, runner.Stdout)), mask.Writer(client.Stream(ctx, runner.Stderr))
	defer stdout.Close()
	defer stderr.Close()
	p.Stdout = &tee{stdout, p.Stdout}
	p.Stderr = &tee{stderr, p.Stderr}
	if s.script.Stdin {
		p.Stdin = client.Stdin()
	}
	if s.script.TTY {
		p.Terminal = &sandbox.Terminal{Size: sandbox.WindowSize{Rows: s.script.Rows, Cols: s.script.Cols}, Resize: client.Resize}
	}
	exit, err := on.Exec(ctx, p)
	_ = client.Stdin().Close()
	return exit, err
}

// tee writes to the client first, which holds up the command as much as the client does.
type tee struct{ client, log io.Writer }

func (t *tee) Write(p []byte) (int, error) {
	if n, err := t.client.Write(p); err != nil {
		return n, err
	}
	return t.log.Write(p)
}
