package job

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/runnerd/runnerd/runner/gitlab/spec"
)

var errSlow = errors.New("it took longer than the configuration's cache.timeout allows")

func (k *Kept) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if k.CacheTimeout <= 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, k.CacheTimeout, errSlow)
}

// policy reports whether a cache's policy has something done.
func (k *Kept) policy(c spec.Cache, wanted, key string) (bool, error) {
	switch p := k.Variables.Expand(c.Policy); p {
	case "", "pull-push":
		return true, nil
	case "pull", "push":
		return p == wanted, nil
	default:
		return false, fmt.Errorf("unknown cache policy %s for %s", p, key)
	}
}

// RestoreCache restores a cache from its key or the first of its fallback keys that has something. That there is none,
// or none that can be restored, is no error: a job must work without. An error is the context's, or an unknown policy.
func (k *Kept) RestoreCache(ctx context.Context, c spec.Cache) error {
	key, err := k.key(c.Key)
	if err != nil {
		k.notice("Skipping cache extraction due to %v", err)
		return nil
	}
	pulls, err := k.policy(c, "pull", key)
	if err != nil {
		return err
	}
	if !pulls {
		k.notice("Not downloading cache %s due to policy", key)
		return nil
	}
	for _, key := range append([]string{key}, k.fallbacks(c.FallbackKeys)...) {
		k.notice("Checking cache for %s...", key)
		restored := k.restore(ctx, key)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if restored {
			k.notice("Successfully extracted cache")
			return nil
		}
		k.alarm("Failed to extract cache")
	}
	return nil
}

func (k *Kept) restore(ctx context.Context, key string) bool {
	ctx, cancel := k.limit(ctx)
	defer cancel()
	var sum Extracted
	from, err := k.Caches.Restore(ctx, key, func(size int64, from func(io.Writer) error) (err error) {
		sum, err = k.Archiver.Extract(ctx, k.On, Target{Dir: k.Dir, User: k.User, Format: FormatTar}, size, from)
		return err
	})
	switch {
	case err != nil:
		k.warn("%v", err)
		return false
	case from == "":
		k.warn("Cache file does not exist")
		return false
	}
	k.info("%d files, %s", sum.Files, from)
	k.extracted(sum)
	return true
}

// extracted says what is strange about what was extracted.
func (k *Kept) extracted(sum Extracted) {
	if sum.Skipped > 0 {
		k.warn("%d devices, sockets and FIFOs ignored", sum.Skipped)
	}
	if sum.Git {
		k.git("extract")
	}
}

// SaveCache saves a cache. That it cannot be is no error. An error is the context's, or an unknown policy.
func (k *Kept) SaveCache(ctx context.Context, c spec.Cache) error {
	key, err := k.key(c.Key)
	if err != nil {
		k.notice("Skipping cache archiving due to %v", err)
		return nil
	}
	pushes, err := k.policy(c, "push", key)
	if err != nil {
		return err
	}
	if !pushes {
		k.notice("Not uploading cache %s due to policy", key)
		return nil
	}
	k.notice("Creating cache %s...", key)
	err = k.save(ctx, key, c)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		k.fatal("%v", err)
		k.alarm("Failed to create cache")
		return nil
	}
	k.notice("Created cache")
	return nil
}

func (k *Kept) save(ctx context.Context, key string, c spec.Cache) error {
	ctx, cancel := k.limit(ctx)
	defer cancel()
	s := Selection{Paths: k.expand(c.Paths), Format: FormatTar}
	p, err := k.pack(ctx, s, c.Untracked)
	if err != nil {
		return err
	}
	defer func() { _ = p.Close() }()
	k.tell(s, c.Untracked, p.Found())
	if p.Found().Entries == 0 {
		k.warn("No files to cache.")
		return nil
	}
	what, err := k.Caches.Save(ctx, key, p)
	if err == nil {
		k.info("%s", what)
	}
	return err
}
