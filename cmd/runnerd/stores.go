package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/runnerd/runnerd/budget"
	"github.com/runnerd/runnerd/runner/api"
	"github.com/runnerd/runnerd/sandbox/container"
)

// stores are all that takes up the disk of the state directory.
func (a *assembly) stores() []budget.Store {
	in := func(names ...string) (paths []string) {
		for _, name := range names {
			paths = append(paths, filepath.Join(a.config.StateDir, name))
		}
		return paths
	}
	all := []budget.Store{
		a.workers,
		budget.Directories{Label: "scratch", Paths: in("disks/scratch", "disks/templates")},
		moduleStore{a.modules, a.modulesDir()},
		a.logs.Budget(),
		budget.Directories{Label: "outputs", Paths: in("outputs")},       // removed when fetched, or after outputs.keep
		budget.Directories{Label: "workspaces", Paths: in("workspaces")}, // removed after the build
		budget.Directories{Label: "journal", Paths: in("queue", "ledger", "builders", "runners", "gitlab")},
	}
	if a.config.Containerd.Address == "" { // else its images lie we do not know where
		all = append(all, imageStore{a.driver, in("containerd")[0]})
	}
	if a.cache.Local() {
		all = append(all, a.cache)
	}
	if budget.SameFileSystem(a.config.StateDir, a.config.Registry.Root) {
		all = append(all, a.registry.Store())
	}
	return all
}

// imageStore is the images that were unpacked for sandboxes, with all that containerd keeps.
type imageStore struct {
	driver *container.Driver
	dir    string
}

func (imageStore) Name() string { return "images" }

func (s imageStore) Usage(ctx context.Context) (int64, error) { return budget.DiskUsage(ctx, s.dir) }

func (s imageStore) Entries(ctx context.Context) ([]budget.Entry, error) {
	images, err := s.driver.StoredImages(ctx)
	out := make([]budget.Entry, 0, len(images))
	for _, i := range images {
		what := strings.Join(i.Names, ", ")
		if what == "" {
			what = "an image whose name has moved on"
		}
		out = append(out, budget.Entry{ID: i.ID, Description: what, Bytes: i.Bytes, Created: i.Created, LastUsed: i.LastUsed, Uses: i.Uses, InUse: i.InUse})
	}
	return out, err
}

func (s imageStore) Remove(ctx context.Context, ids []string) (int64, error) {
	return s.driver.RemoveImages(ctx, ids)
}

// checkRoom refuses a job when the disk of the state directory is full, before it fails half-way.
func checkRoom(stateDir string) error {
	if err := budget.CheckRoom(stateDir); errors.Is(err, budget.ErrFull) {
		return fmt.Errorf("%w: %w", api.ErrNoRoom, err)
	} else if err != nil {
		return err
	}
	return nil
}
