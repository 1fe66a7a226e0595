package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/runnerd/runnerd/buildkit"
	"github.com/runnerd/runnerd/cmd/runnerd/config"
	"github.com/runnerd/runnerd/ledger"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/scope"
)

// sharing shares the cache of builds with other machines through a registry. A trusted scope has a repository of its
// own there, which its untrusted one reads and never writes; each target has a tag, since an export replaces all
// that the tag was.
type sharing struct {
	ref    string // empty: nothing is shared
	auth   map[string]buildkit.Credentials
	ledger *ledger.Ledger
	lease  func(ctx context.Context, of scope.Scope) (*buildkit.Lease, error)
	hold   func(workspace string) (release func())
	// insecure tells which registries speak plain HTTP.
	insecure func(host string) bool
	log      *slog.Logger

	ctx  context.Context // of the exports
	stop context.CancelFunc
	all  sync.WaitGroup
	turn chan struct{} // one export at a time, so that jobs have the machine

	mu   sync.Mutex
	busy map[string]bool // refs that are being exported to
}

// exportTime bounds one export.
const exportTime = 30 * time.Minute

func newSharing(c config.CacheShare, l *ledger.Ledger, workers *buildkit.Workers, spaces *api.Workspaces, insecure func(host string) bool, log *slog.Logger) (*sharing, error) {
	s := &sharing{
		ledger: l, lease: workers.Lease, hold: spaces.Hold, insecure: insecure, log: log,
		auth: map[string]buildkit.Credentials{}, turn: make(chan struct{}, 1), busy: map[string]bool{},
	}
	s.ctx, s.stop = context.WithCancel(context.Background())
	if c.Ref == "" {
		return s, nil
	}
	named, err := reference.ParseNormalizedNamed(c.Ref)
	if err != nil {
		return nil, fmt.Errorf("builder.share.ref: %w", err)
	}
	s.ref = named.Name()
	if c.PasswordFile != "" {
		password, err := readPassword(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("builder.share.password_file: %w", err)
		}
		s.auth[reference.Domain(named)] = buildkit.Credentials{Username: c.Username, Password: password}
	}
	return s, nil
}

// close ends the exports that are under way: what they have not finished is not to be seen in the registry.
func (s *sharing) close(context.Context) error {
	s.stop()
	s.all.Wait()
	return nil
}

// refOf is where a scope's cache of a target is, and whether the scope may write it.
func (s *sharing) refOf(of scope.Scope, b buildkit.Build) (ref string, write bool) {
	if s.ref == "" || of.IsZero() {
		return "", false
	}
	trusted, below := of.Above()
	if !below {
		trusted = of
	}
	return s.ref + "/" + trusted.ID() + ":" + targetKey(b.Plan.Targets[b.Target]), of.MayWrite(trusted)
}

// importing is b as it imports the scope's cache, from ref.
func (s *sharing) importing(of scope.Scope, b buildkit.Build) (_ buildkit.Build, ref string) {
	if ref, _ = s.refOf(of, b); ref == "" {
		return b, ""
	}
	// The share's credentials are for its registry's host, whatever is asked for there: a build that itself names
	// something on that host has its own alone.
	named := b.Plan.Registries(true)
	b = b.Importing(ref)
	if !slices.ContainsFunc(named, func(host string) bool { _, ok := s.auth[host]; return ok }) {
		b.Auth = merged(b.Auth, s.auth)
	}
	return b, ref
}

// ended decides whether to export what a build has cached, and begins to. It returns the decision, if there was
// anything to decide. lease is the job's own.
func (s *sharing) ended(ctx context.Context, lease *buildkit.Lease, workspace string, b buildkit.Build, made ledger.Build) (*ledger.Export, error) {
	ref, write := s.refOf(made.Scope, b)
	if !write || made.Failed {
		return nil, nil
	}
	e := ledger.Export{Job: made.Job, Scope: made.Scope, Ref: ref, At: time.Now()}
	var written []buildkit.Written
	for _, step := range made.Steps {
		if step.State == ledger.Run && step.Source == "" && step.Error == "" {
			e.Spent += step.Ended.Sub(step.Started).Seconds()
			written = append(written, buildkit.Written{Name: step.Name, Args: step.Args, From: step.Started, To: step.Ended})
		}
	}
	if len(written) == 0 {
		return nil, nil
	}
	known, err := s.ledger.Estimate(ctx, made.Scope)
	if err != nil {
		return nil, err
	}
	if e.Decide(known); e.Pays { // as if nothing were to be sent: only then it is worth to look how much it is
		if e.Bytes, err = buildkit.Size(ctx, lease.Client, written); err != nil {
			return nil, err
		}
		e.Decide(known)
	}
	if e.Pays && !s.begin(ref) {
		e.Error = "another job's export of the same target is under way"
	}
	s.ledger.Exported(e)
	if !e.Pays || e.Error != "" {
		return &e, nil
	}
	keep, err := s.lease(ctx, made.Scope) // before the job gives its own back
	if err != nil {
		s.end(ref)
		return nil, err
	}
	release := s.hold(workspace)
	s.all.Go(func() {
		defer s.end(ref)
		defer release()
		defer func() { _ = keep.Close(context.Background()) }()
		s.export(keep, b, e)
	})
	return &e, nil
}

func (s *sharing) begin(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy[ref] {
		return false
	}
	s.busy[ref] = true
	return true
}

func (s *sharing) end(ref string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.busy, ref)
}

func (s *sharing) export(lease *buildkit.Lease, b buildkit.Build, e ledger.Export) {
	if take(s.ctx, s.turn) != nil {
		return
	}
	defer func() { <-s.turn }()
	ctx, cancel := context.WithTimeoutCause(s.ctx, exportTime, errors.New("it took too long"))
	defer cancel()
	b = b.Exporting(e.Ref)
	b.Auth = merged(b.Auth, s.auth)
	result, err := b.Run(ctx, lease.Client, nil)
	if e.Took = result.Duration.Seconds(); err != nil {
		e.Took, e.Error = 0, err.Error()
		s.log.Warn("a cache was not exported", "job", e.Job, "ref", e.Ref, "error", err)
	} else {
		s.log.Info("a cache was exported", "job", e.Job, "ref", e.Ref, "seconds", e.Took, "bytes", e.Bytes)
	}
	s.ledger.Exported(e)
}

// forgetTime bounds what is asked of the registry when something is revoked.
const forgetTime = 30 * time.Second

// forget puts nothing in the place of the caches of a trusted scope's targets: not all registries let tags be
// deleted, and whoever may export may do this.
func (s *sharing) forget(ctx context.Context, of scope.Scope, targets []string) error {
	if s.ref == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, forgetTime)
	defer cancel()
	for _, target := range targets {
		text := s.ref + "/" + of.ID() + ":" + target
		host, _, _ := strings.Cut(text, "/")
		var options []name.Option
		if s.insecure(host) {
			options = append(options, name.Insecure)
		}
		ref, err := name.ParseReference(text, options...)
		if err != nil {
			return err
		}
		with := []remote.Option{remote.WithContext(ctx)}
		if c, ok := s.auth[host]; ok {
			with = append(with, remote.WithAuth(&authn.Basic{Username: c.Username, Password: c.Password}))
		}
		var answer *transport.Error
		if _, err := remote.Head(ref, with...); errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound {
			continue
		}
		if err := remote.Write(ref, empty.Image, with...); err != nil {
			return fmt.Errorf("revoke the exported cache %s: %w", text, err)
		}
	}
	return nil
}
