package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/runner/api"
)

// What reading one plan may use, beside buildkit.ReadCPU and ReadMemory.
const (
	planTime    = 20 * time.Second
	planTurn    = 30 * time.Second // that one waits for others; with planTime less than an answer may take
	planOutput  = 16 << 20         // bytes
	planErrors  = 4 << 10          // bytes
	plansAtOnce = 2
)

// planProgram reads plans. It is in the directory of the engines.
const planProgram = "runnerd-plan"

// planner reads plans in processes of their own, so that no build file can use up the daemon. Each process
// reads one plan.
type planner struct {
	program string
	turn    chan struct{}
	spare   chan *planProcess // the one that waits for the next plan; nil for none
	done    context.Context   // when it ends, so do the processes
}

// newPlanner returns a planner for one plan, whose program is among the engines in a directory.
func newPlanner(engines string) planner {
	return planner{program: filepath.Join(engines, planProgram), turn: make(chan struct{}, plansAtOnce), done: context.Background()}
}

// newWarmPlanner returns a planner that starts a process ahead, since the start takes longer than most plans.
// Its processes end with ctx.
func newWarmPlanner(ctx context.Context, engines string) planner {
	p := newPlanner(engines)
	p.spare, p.done = make(chan *planProcess, 1), ctx
	context.AfterFunc(ctx, p.drop)
	return p
}

// planProcess is a process that waits for what it is to read.
type planProcess struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout *limited
	stderr *limited // its start, where a Go program that dies says why; stacks as long as can be follow
}

func (p planner) start() (_ *planProcess, err error) {
	c := &planProcess{stdout: &limited{left: planOutput}, stderr: &limited{left: planErrors}, cmd: exec.CommandContext(p.done, p.program)}
	// Nothing of ours is seen: bake looks into the environment, and compose into the working directory.
	c.cmd.Dir, c.cmd.Env = "/", []string{"GOMAXPROCS=1", "GOTRACEBACK=none"}
	c.cmd.Stdout, c.cmd.Stderr = c.stdout, c.stderr
	c.cmd.WaitDelay = time.Second
	if c.stdin, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	return c, c.cmd.Start()
}

// next returns the process that was started ahead, or a new one.
func (p planner) next() (*planProcess, error) {
	select {
	case c := <-p.spare:
		return c, nil
	default:
		return p.start()
	}
}

// startAhead sees to it that the next plan finds a process.
func (p planner) startAhead() {
	if p.spare == nil || len(p.spare) > 0 {
		return
	}
	c, err := p.start()
	if err != nil {
		return // the next plan says so
	}
	select {
	case p.spare <- c:
		if p.done.Err() != nil {
			p.drop()
		}
	default:
		c.discard()
	}
}

// drop ends the process that was started ahead.
func (p planner) drop() {
	select {
	case c := <-p.spare:
		c.discard()
	default:
	}
}

// discard ends a process that has nothing to read.
func (c *planProcess) discard() {
	_ = c.stdin.Close()
	_ = c.cmd.Wait()
}

// run gives the process its input and waits for its end, at the latest that of ctx.
func (c *planProcess) run(ctx context.Context, input []byte) error {
	defer context.AfterFunc(ctx, func() { _ = c.cmd.Process.Kill() })()
	_, writeErr := c.stdin.Write(input)
	return errors.Join(c.stdin.Close(), c.cmd.Wait(), writeErr)
}

const planAdvice = "a build may have at most %d targets in small files: name fewer targets, or split the bake file"

// read is buildkit.Read. An error that is the user's is an *api.FileError or wraps api.ErrInvalid.
func (p planner) read(ctx context.Context, in buildkit.Input) (buildkit.Plan, error) {
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-time.After(planTurn):
		return buildkit.Plan{}, fmt.Errorf("%w: it reads the files of other builds", api.ErrBusy)
	case <-ctx.Done():
		return buildkit.Plan{}, context.Cause(ctx)
	}
	advice := fmt.Sprintf(planAdvice, buildkit.MaxTargets)
	tooLong := invalid("reading the build files takes longer than %s: %s", planTime, advice)
	ctx, cancel := context.WithTimeoutCause(ctx, planTime, tooLong)
	defer cancel()
	input, err := json.Marshal(in)
	if err != nil {
		return buildkit.Plan{}, err
	}
	c, err := p.next()
	if err != nil {
		return buildkit.Plan{}, fmt.Errorf("start a process that reads the build files: %w: run \"make build\"", err)
	}
	err = c.run(ctx, input)
	go p.startAhead()
	stdout, stderr := c.stdout, string(c.stderr.text)
	var out buildkit.Outcome
	switch state := c.cmd.ProcessState; {
	case ctx.Err() != nil:
		return out.Plan, context.Cause(ctx)
	case stdout.left < 0:
		return out.Plan, invalid("the build's plan is larger than %d bytes: %s", planOutput, advice)
	case state != nil && state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL, strings.Contains(stderr, "SIGXCPU"):
		return out.Plan, invalid("reading the build files takes more than %d s of processor time: %s", buildkit.ReadCPU, advice)
	case err != nil && strings.Contains(stderr, "out of memory"), err != nil && strings.Contains(stderr, "cannot allocate memory"):
		return out.Plan, invalid("reading the build files takes more than %d MiB of memory: %s", buildkit.ReadMemory>>20, advice)
	case err != nil:
		first, _, _ := strings.Cut(strings.TrimSpace(stderr), "\n")
		return out.Plan, fmt.Errorf("reading the build files failed: %w: %s", err, first)
	}
	if err := json.Unmarshal(stdout.text, &out); err != nil {
		return out.Plan, fmt.Errorf("read the build's plan: %w", err)
	}
	if out.Error != "" {
		return out.Plan, fileError(in.Dir, out.Error)
	}
	return out.Plan, nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", api.ErrInvalid, fmt.Errorf(format, args...))
}

// limited is a buffer that takes so many bytes and fails at more.
type limited struct {
	text []byte
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	fits := min(len(p), max(l.left, 0))
	l.text = append(l.text, p[:fits]...)
	if l.left -= len(p); l.left < 0 {
		return fits, io.ErrShortBuffer
	}
	return fits, nil
}
