package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/runnerd/runnerd/cache"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/runner"
	"github.com/runnerd/runnerd/runner/api"
	gitlabjob "github.com/runnerd/runnerd/runner/gitlab/job"
	"github.com/runnerd/runnerd/sandbox"
)

// workspace is where jobs work that do not say: a directory that an engine in the sandbox sees too.
const workspace = "/workspace"

// keptStep is a script between the caches that it restores and what it leaves. That a cache was not restored or
// saved is no reason to fail; that an artifact was not kept is.
type keptStep struct {
	runner.Step
	kept      api.Kept
	dir, user string // of the files
	archiver  archiver
	caches    keptCaches
	limits    config.Cache
}

// newKeptStep wraps the step of a request of KindScript, unless that keeps nothing.
// Where the job has a client, that is told what has become of it.
func newKeptStep(r runner.Request, step scriptStep, store *cache.Store, limits config.Cache, uses uses) (runner.Step, error) {
	s := keptStep{
		Step: step, dir: step.script.Dir, user: step.script.User, limits: limits,
		archiver: newArchiver(limits), caches: keptCaches{store, uses, r.Scope, r.ID},
	}
	if err := json.Unmarshal(r.Payload, &s.kept); err != nil {
		return nil, fmt.Errorf("read what the job keeps: %w", err)
	}
	if len(s.kept.Caches) == 0 && len(s.kept.Artifacts) == 0 {
		return step, nil
	}
	if s.dir == "" {
		s.dir = workspace
	}
	if step.attach {
		return noticesStep{Step: s, job: r.ID, secrets: step.secrets, sessions: step.sessions}, nil
	}
	return s, nil
}

// checkKept refuses keys that cannot be ones, when the job is submitted.
func checkKept(payload json.RawMessage) error {
	var kept api.Kept
	if err := json.Unmarshal(payload, &kept); err != nil {
		return err
	}
	for i, c := range kept.Caches {
		for _, key := range append([]string{c.Key}, c.Fallback...) {
			if err := cache.CheckKey(key); err != nil {
				return fmt.Errorf("%w: caches[%d]: %w", api.ErrInvalid, i, err)
			}
		}
	}
	return nil
}

func (s keptStep) Run(ctx context.Context, on sandbox.Host, out runner.Output) (sandbox.Exit, error) {
	notice := func(format string, args ...any) {
		_, _ = fmt.Fprintf(out.Stream(runner.Notice), format+"\n", args...)
	}
	for _, c := range s.kept.Caches {
		if cache.Policy(c.Policy).Pulls() {
			notice("cache %s: %s", shown(c.Key), s.restore(ctx, on, c))
		}
		if ctx.Err() != nil {
			return sandbox.Exit{}, context.Cause(ctx)
		}
	}
	exit, err := s.Step.Run(ctx, on, out)
	if err != nil {
		return exit, err
	}
	for _, c := range s.kept.Caches {
		if ctx.Err() == nil && cache.Policy(c.Policy).Pushes() && cache.When(c.When).Holds(exit.Success()) {
			notice("cache %s: %s", shown(c.Key), s.save(ctx, on, c))
		}
	}
	for _, a := range s.kept.Artifacts {
		if ctx.Err() != nil || !cache.When(a.When).Holds(exit.Success()) {
			continue
		}
		text, err := s.keep(ctx, on, a)
		if err == nil {
			notice("artifact %s: %s", a.Name, text)
			continue
		}
		notice("artifact %s: not kept: %v", a.Name, err)
		var failed *gitlabjob.PackError
		if !errors.As(err, &failed) && !errors.Is(err, cache.ErrTooLarge) && !errors.Is(err, errSlow) {
			return exit, fmt.Errorf("keep artifact %s: %w", a.Name, err)
		}
		if exit.Success() {
			exit = sandbox.Exit{Code: 1}
		}
	}
	if ctx.Err() != nil {
		return exit, context.Cause(ctx)
	}
	return exit, nil
}

var errSlow = errors.New("it took longer than cache.timeout allows")

func (s keptStep) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, time.Duration(s.limits.Timeout), errSlow)
}

// restore says what has come of it.
func (s keptStep) restore(ctx context.Context, on sandbox.Host, c api.Cache) string {
	ctx, cancel := s.limit(ctx)
	defer cancel()
	start := time.Now()
	var sum counts
	e, note, err := s.caches.restore(ctx, append([]string{c.Key}, c.Fallback...), func(size int64, from func(io.Writer) error) (err error) {
		target := gitlabjob.Target{Dir: s.dir, User: s.user, Format: gitlabjob.FormatTar}
		sum, err = s.archiver.extract(ctx, on, target, size, from)
		return err
	})
	switch {
	case err != nil && e == nil:
		return fmt.Sprintf("%smiss: %v", note, err)
	case err != nil:
		return fmt.Sprintf("%smiss: %s of job %s was not restored: %v", note, shown(e.Key), e.Job, err)
	case e == nil:
		return note + "miss"
	}
	fallback := ""
	if e.Key != c.Key {
		fallback = fmt.Sprintf(" (fallback %s)", shown(e.Key))
	}
	return fmt.Sprintf("%srestored %s, %s from %s, written by job %s%s, %s", note, mebi(e.Bytes), sum, e.Scope, e.Job, fallback, seconds(start))
}

func (s keptStep) save(ctx context.Context, on sandbox.Host, c api.Cache) string {
	start := time.Now()
	saved, sum, err := s.pack(ctx, on, c.Paths, func(ctx context.Context, r io.Reader) (cache.Saved, error) {
		return s.caches.save(ctx, c.Key, r)
	})
	if err != nil {
		return fmt.Sprintf("not saved: %v", err)
	}
	return fmt.Sprintf("saved %s, %s (%s new), %s", mebi(saved.Bytes), sum, mebi(saved.NewBytes), seconds(start))
}

func (s keptStep) keep(ctx context.Context, on sandbox.Host, a api.Artifact) (string, error) {
	start := time.Now()
	until := start.Add(time.Duration(s.limits.KeepArtifact))
	if a.Keep > 0 {
		until = start.Add(time.Duration(a.Keep))
	}
	saved, sum, err := s.pack(ctx, on, a.Paths, func(ctx context.Context, r io.Reader) (cache.Saved, error) {
		return s.caches.store.SaveArtifact(ctx, s.caches.scope, s.caches.job, a.Name, until, r)
	})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("kept %s, %s until %s, %s", mebi(saved.Bytes), sum, until.Format(time.DateTime), seconds(start)), nil
}

// pack has save read a tar of what paths match, which must be a file at least, and within the directory.
func (s keptStep) pack(ctx context.Context, on sandbox.Host, paths []string, save func(context.Context, io.Reader) (cache.Saved, error)) (cache.Saved, counts, error) {
	ctx, cancel := s.limit(ctx)
	defer cancel()
	p, err := s.archiver.pack(ctx, on, gitlabjob.Selection{Dir: s.dir, User: s.user, Paths: paths, Format: gitlabjob.FormatTar})
	if err != nil {
		return cache.Saved{}, counts{}, err
	}
	defer func() { _ = p.Close() }()
	for _, m := range p.Found().Paths {
		if m.Wrong != "" {
			return cache.Saved{}, counts{}, &gitlabjob.PackError{Message: m.Wrong}
		}
	}
	saved, err := save(ctx, someFiles{p})
	return saved, p.sum, err
}

// someFiles does not end well without a file.
type someFiles struct{ *packing }

func (f someFiles) Read(buf []byte) (int, error) {
	n, err := f.packing.Read(buf)
	if errors.Is(err, io.EOF) && f.sum.files == 0 {
		err = &gitlabjob.PackError{Message: "no file matches its paths"}
	}
	return n, err
}

// shown is a key for people.
func shown(key string) string {
	if len(key) > 80 {
		key = strings.ToValidUTF8(key[:77], "") + "..."
	}
	return key
}

func mebi(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

func seconds(since time.Time) string { return fmt.Sprintf("%.1f s", time.Since(since).Seconds()) }
